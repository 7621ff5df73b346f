//! A transfer: two directions of bytes, over as many connections as there are.
//!
//! Threads: one reads the source, one writes the sink, each connection has a reader and a writer, packers compress. They
//! meet in [`State`]. Connection readers never wait for anything but their socket, as the window bounds what can arrive; so no
//! direction and no connection can hold up another.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::conn::Conn;
use crate::flow::{Incoming, Outgoing, Pool};
use crate::port::{Sink, Source, Stop};
use crate::settings::{Ends, Figures, Outcome, Settings};
use crate::wire::Heard;
use crate::{Failure, LinkError};

/// Statements that have to reach the other side once on some connection; made again when one breaks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub ack: bool,
    pub fin: bool,
    pub stop: bool,
    pub bye: bool,
}

/// Which side this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Connecting,
    Listening,
}

impl Side {
    /// What the other side's Bye must say of itself before this one may go: the side that can connect again goes last, so that
    /// none waits for one that is gone.
    fn last_word(self) -> Heard {
        match self {
            Side::Connecting => Heard::Over,
            Side::Listening => Heard::Yes,
        }
    }
}

/// What a thread of a transfer does.
type Work = Box<dyn FnOnce(&Arc<Session>) + Send>;

pub(crate) struct State {
    pub outgoing: Outgoing,
    pub incoming: Incoming,
    pub pool: Pool,
    pub due: Due,
    /// The threads of the source and of the sink have ended, and with them the tallies of both directions.
    source_through: bool,
    sink_through: bool,
    pub my_bye: Option<u8>,
    pub their_bye: Option<u8>,
    /// The other side has heard ours, or cannot be informed any more.
    pub bye_heard: bool,
    /// Each connection's generation and socket; empty slots are to be filled by the side that connects.
    pub conns: Vec<Option<(u64, Arc<Socket>)>>,
    pub generation: u64,
    pub ever_connected: Vec<bool>,
    /// Since when there is no connection at all.
    pub alone_since: Option<Instant>,
    pub reconnects: u64,
    pub failed: Option<LinkError>,
    pub finished: bool,
    pub sink_failed: Option<String>,
    pub writers: usize,
}

pub(crate) struct Session {
    pub id: [u8; 16],
    pub settings: Settings,
    side: Side,
    /// For how long a broken connection is waited for, as both sides agreed.
    pub patience: Duration,
    pub state: Mutex<State>,
    /// For connection writers: something is to be sent.
    pub to_send: Condvar,
    /// For the source's thread: there is room.
    pub room: Condvar,
    /// For the sink's thread: something arrived.
    pub arrived: Condvar,
    /// For packers: something is to be packed.
    pub to_pack: Condvar,
    /// For whoever waits for the transfer's course.
    pub course: Condvar,
    /// Ends all waits of this side's threads, the source's, and the sink's.
    pub stop: Stop,
    pub source_stop: Stop,
    pub sink_stop: Stop,
    pub wire_sent: AtomicU64,
    pub pace: crate::rate::Pace,
    began: Instant,
}

impl Session {
    pub(crate) fn new(
        id: [u8; 16],
        settings: &Settings,
        side: Side,
        streams: usize,
        patience: Duration,
    ) -> Result<Arc<Self>, LinkError> {
        let keep = !patience.is_zero() || streams > 1;
        let state = State {
            outgoing: Outgoing::new(keep),
            incoming: Incoming::default(),
            pool: Pool::default(),
            due: Due::default(),
            source_through: false,
            sink_through: false,
            my_bye: None,
            their_bye: None,
            bye_heard: false,
            conns: vec![None; streams],
            generation: 0,
            ever_connected: vec![false; streams],
            alone_since: Some(Instant::now()),
            reconnects: 0,
            failed: None,
            finished: false,
            sink_failed: None,
            writers: 0,
        };
        let stop = || Stop::new().map_err(|error| LinkError::local("a pipe", &error));
        Ok(Arc::new(Session {
            id,
            settings: settings.clone(),
            side,
            patience,
            state: Mutex::new(state),
            to_send: Condvar::new(),
            room: Condvar::new(),
            arrived: Condvar::new(),
            to_pack: Condvar::new(),
            course: Condvar::new(),
            stop: stop()?,
            source_stop: stop()?,
            sink_stop: stop()?,
            wire_sent: AtomicU64::new(0),
            pace: crate::rate::Pace::new(settings.rate),
            began: Instant::now(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        on.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_for<'a>(
        &self,
        on: &Condvar,
        state: MutexGuard<'a, State>,
        limit: Duration,
    ) -> MutexGuard<'a, State> {
        on.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The other side wants no more: nothing more is read.
    pub(crate) fn wake_source(&self) {
        self.source_stop.set();
        self.room.notify_all();
    }

    fn stop_all(&self) {
        for stop in [&self.stop, &self.source_stop, &self.sink_stop] {
            stop.set();
        }
        self.wake_all();
    }

    fn wake_all(&self) {
        for on in [&self.to_send, &self.room, &self.arrived, &self.to_pack, &self.course] {
            on.notify_all();
        }
    }

    /// Ends the transfer with an error, unless it has ended.
    pub(crate) fn fail(&self, error: LinkError) {
        let mut state = self.lock();
        if !state.finished && state.failed.is_none() {
            state.failed = Some(error);
        }
        drop(state);
        self.stop_all();
    }

    /// Takes a connection in, in the place of an older one with its index.
    pub(crate) fn attach(self: &Arc<Self>, index: usize, conn: Conn) {
        let mut state = self.lock();
        if index >= state.conns.len() || state.failed.is_some() || state.finished {
            return;
        }
        if let Some((_, old)) = state.conns[index].take() {
            let _ = old.shutdown(std::net::Shutdown::Both);
            state.outgoing.take_back(index);
        }
        state.reconnects += u64::from(std::mem::replace(&mut state.ever_connected[index], true));
        state.generation += 1;
        let generation = state.generation;
        state.conns[index] = Some((generation, conn.socket.clone()));
        state.alone_since = None;
        state.repeat_statements();
        state.writers += 1;
        drop(state);
        self.wake_all();
        let (reading, writing) = (self.clone(), self.clone());
        let Conn { socket, mut reader, mut writer } = conn;
        let met = Arc::new(OnceLock::new());
        let seen = met.clone();
        thread::spawn(move || {
            let why = crate::links::read(&reading, &mut reader);
            reading.detach(
                index,
                generation,
                match why {
                    LinkError::Lost(_) => seen.get().cloned().unwrap_or(why),
                    why => why,
                },
            );
        });
        thread::spawn(move || {
            if let Err(why) = crate::links::write(&writing, index, generation, &mut writer) {
                // What has arrived is still read: it may be the other side's last words.
                let _ = met.set(why);
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            writing.wire_sent.fetch_add(writer.bytes, Ordering::Relaxed);
            writing.lock().writers -= 1;
            writing.course.notify_all();
        });
    }

    /// A connection broke.
    pub(crate) fn detach(&self, index: usize, generation: u64, why: LinkError) {
        let mut state = self.lock();
        match &state.conns[index] {
            Some((current, socket)) if *current == generation => {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            _ => return,
        }
        state.conns[index] = None;
        if state.over() {
            self.course.notify_all();
            return;
        }
        let alone = state.conns.iter().all(Option::is_none);
        // The other side may be through and closing: the last words come over another connection.
        if (state.my_bye.is_some() || state.their_bye.is_some()) && !alone {
            state.outgoing.take_back(index);
            state.repeat_statements();
            drop(state);
            return self.wake_all();
        }
        let broken = matches!(why, LinkError::Protocol(_) | LinkError::Aborted(_));
        if state.their_bye.is_some() && self.patience.is_zero() && !broken {
            state.bye_heard = true;
            drop(state);
            return self.wake_all();
        }
        if self.patience.is_zero() || broken {
            let why = state.unheard(why);
            drop(state);
            return self.fail(why);
        }
        state.outgoing.take_back(index);
        state.repeat_statements();
        if alone {
            state.alone_since = Some(Instant::now());
        }
        drop(state);
        let seconds = self.patience.as_secs();
        (self.settings.log)(&format!("{why}; waiting up to {seconds} s for it to come back"));
        self.wake_all();
    }

    /// Whether an attempt to connect again that failed does not matter: the last words come over another connection, or the
    /// other side has said all and is gone (which a relay shows by a connection that is closed unanswered).
    pub(crate) fn needs_no_more(&self, error: &LinkError) -> bool {
        let away = matches!(error, LinkError::Connect { nobody: false, .. });
        let mut state = self.lock();
        if state.their_bye.is_some() && !away {
            state.bye_heard = true;
            self.course.notify_all();
        }
        state.ending() || state.bye_heard || state.finished
    }

    /// The other side is through. It is answered until it has heard what this one has to say.
    pub(crate) fn goodbye(&self, state: &mut State, status: u64, heard: Heard) {
        state.their_bye = Some(u8::try_from(status).unwrap_or(u8::MAX));
        if heard >= self.side.last_word() {
            state.bye_heard = true;
        } else if state.my_bye.is_some() {
            state.due.bye = true;
            self.to_send.notify_one();
        }
    }

    /// Runs the transfer to its end. The first connection is attached before or after.
    pub(crate) fn run(self: &Arc<Self>, ends: Ends) -> Result<Outcome, Failure> {
        let Ends { source, sink, status } = ends;
        let mut threads = Vec::new();
        match self.start(source, sink) {
            Ok(started) => threads.extend(started),
            Err(error) => self.fail(error),
        }
        let both_through = self.wait_until(State::through);
        if both_through.is_err() {
            // Descriptors close with their threads: a command hears of the loss by that.
            threads.drain(..).for_each(join);
        }
        let status = status().unwrap_or_else(|error| {
            self.fail(LinkError::local("waiting for the command", &error));
            1
        });
        let through = both_through.and_then(|()| self.say_bye(status));
        self.close();
        threads.into_iter().for_each(join);
        let state = self.lock();
        if let Err(error) = through {
            return Err(Failure { error, status, figures: self.figures(&state) });
        }
        Ok(Outcome {
            status,
            peer_status: state.their_bye.unwrap_or(0),
            stopped_by_peer: state.outgoing.cut_short(),
            sink_failed: state.sink_failed.clone().filter(|_| !state.incoming.complete()),
            figures: self.figures(&state),
        })
    }

    fn figures(&self, state: &State) -> Figures {
        Figures {
            sent: state.outgoing.bytes,
            received: state.incoming.bytes,
            wire_sent: self.wire_sent.load(Ordering::Relaxed),
            reconnects: state.reconnects,
            elapsed: self.began.elapsed(),
        }
    }

    fn start(
        self: &Arc<Self>,
        source: Option<OwnedFd>,
        sink: Option<OwnedFd>,
    ) -> Result<Vec<JoinHandle<()>>, LinkError> {
        let failed = |error: io::Error| LinkError::local("starting the transfer", &error);
        let sink = sink.map(Sink::new).transpose().map_err(failed)?;
        let watched = sink.as_ref().map(Sink::watched).transpose().map_err(failed)?;
        let mut threads = Vec::new();
        let mut spawn = |work: Work| {
            let session = self.clone();
            let started = thread::Builder::new().spawn(move || work(&session));
            started.map(|thread| threads.push(thread)).map_err(failed)
        };
        let source = source.map(Source::new);
        spawn(Box::new(move |session| {
            session.read_source(source);
            session.lock().source_through = true;
            session.course.notify_all();
        }))?;
        spawn(Box::new(move |session| {
            session.write_sink(sink);
            session.lock().sink_through = true;
            session.course.notify_all();
        }))?;
        if let Some(watched) = watched {
            spawn(Box::new(move |session| session.watch_sink(&watched)))?;
        }
        if let Some(cancel) = self.settings.cancel.clone() {
            spawn(Box::new(move |session| session.watch_cancel(&cancel)))?;
        }
        if let Some(level) = self.settings.compress {
            for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()).min(4) {
                spawn(Box::new(move |session| session.pack(level)))?;
            }
        }
        Ok(threads)
    }

    /// Waits for a state of things; watches the time for which the transfer may be without a connection.
    fn wait_until(&self, holds: impl Fn(&State) -> bool) -> Result<(), LinkError> {
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if holds(&state) {
                return Ok(());
            }
            (self.settings.moved)(state.outgoing.bytes, state.incoming.bytes);
            let limit = self.patience.max(self.settings.timeout.min(Duration::from_secs(10)));
            if state.alone_since.is_some_and(|since| since.elapsed() > limit) {
                if state.their_bye.is_some() {
                    // It knows how all ended, or never will; here it is known.
                    state.bye_heard = true;
                    state.alone_since = None;
                    continue;
                }
                let seconds = limit.as_secs();
                let why = state.unheard(LinkError::Lost(format!("it did not come back within {seconds} s")));
                drop(state);
                self.fail(why);
                state = self.lock();
                continue;
            }
            state = self.wait_for(&self.course, state, Duration::from_millis(500));
        }
    }

    /// Exchanges statuses, so that both sides know that the other is through.
    fn say_bye(&self, status: u8) -> Result<(), LinkError> {
        let mut state = self.lock();
        state.my_bye = Some(status);
        state.due.bye = true;
        drop(state);
        self.to_send.notify_all();
        self.wait_until(State::over)
    }

    /// Lets the threads end: in order, the peer closes too; after a failure it is informed, if there is a way to.
    fn close(&self) {
        let mut state = self.lock();
        state.finished = true;
        let failed = state.failed.is_some();
        drop(state);
        self.stop_all();
        // Writers see the end, say Abort where that is so, and shut down their direction.
        let until = Instant::now() + if failed { Duration::from_secs(1) } else { Duration::from_secs(3) };
        let mut state = self.lock();
        while Instant::now() < until {
            let open = state.conns.iter().any(Option::is_some);
            if state.writers == 0 && (failed || !open) {
                break;
            }
            state = self.wait_for(&self.course, state, Duration::from_millis(50));
        }
        for (_, socket) in state.conns.iter().flatten() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl State {
    /// The statuses are being exchanged, and there is a connection for it.
    pub(crate) fn ending(&self) -> bool {
        self.my_bye.is_some() && self.conns.iter().any(Option::is_some)
    }

    /// All that there was has gone both ways, as far as it was wanted.
    fn through(&self) -> bool {
        self.outgoing.done() && self.incoming.done() && self.source_through && self.sink_through
    }

    /// Both sides have said goodbye, and know that they were heard.
    pub(crate) fn over(&self) -> bool {
        self.my_bye.is_some() && self.their_bye.is_some() && self.bye_heard
    }

    /// Tells a loss that comes when only the other side's status is missing from one in the middle.
    fn unheard(&self, why: LinkError) -> LinkError {
        match why {
            LinkError::Lost(why) if self.my_bye.is_some() => LinkError::Lost(format!(
                "{why}; both directions were through, but the other side's status was not heard"
            )),
            other => other,
        }
    }

    /// What may have been lost with a connection is said again.
    fn repeat_statements(&mut self) {
        self.due.ack = true;
        self.due.fin = self.outgoing.ended;
        self.due.stop = self.incoming.stopped;
        self.due.bye = self.my_bye.is_some();
    }
}

fn join(thread: JoinHandle<()>) {
    // A thread that panicked has said so itself.
    let _ = thread.join();
}
