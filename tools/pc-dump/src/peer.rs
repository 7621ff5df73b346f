//! The destination as the source sees it: what it says, signals and time become events of the machine, and what the
//! machine wants done waits here for the thread that holds the original.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use pc_cli::signals::{Cancel, timeout_until};
use pc_ctl::{Decoder, Message, Source, SourceAction, SourceEvent, SourceState, Why};

/// The machine, shared by the thread that watches and the one that works.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Set when the machine has given up: pulls the working thread out of whatever it waits for.
    pull: Cancel,
    /// Wakes the watching thread.
    wake: UnixStream,
}

#[derive(Debug)]
struct State {
    machine: Source,
    actions: VecDeque<SourceAction>,
    /// The last round that was applied.
    applied: Option<u32>,
    heard: Instant,
    frozen_until: Option<Instant>,
    /// Nothing more will be heard.
    ended: bool,
}

impl Peer {
    /// Begins to listen to a destination on `input`, which is taken for gone after so much silence.
    pub fn listen(input: File, stream_id: [u8; 16], silence: Duration, signals: Cancel) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let state = State {
            machine: Source::new(stream_id),
            actions: VecDeque::new(),
            applied: None,
            heard: Instant::now(),
            frozen_until: None,
            ended: false,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let peer = Peer(Arc::new(Shared { state, changed, pull: Cancel::by_hand()?, wake }));
        let watch = Watch { peer: peer.clone(), input: Some(input), woken, signals: Some(signals), silence };
        thread::Builder::new().name("peer".into()).spawn(move || watch.run())?;
        Ok(peer)
    }

    /// Is set when the machine has given up.
    pub fn pull(&self) -> &Cancel {
        &self.0.pull
    }

    /// Tells the machine what has happened.
    pub fn feed(&self, event: SourceEvent) {
        let mut state = self.lock();
        let actions = state.machine.on(event);
        state.actions.extend(actions);
        if matches!(state.machine.state(), SourceState::Kept | SourceState::InDoubt) {
            self.0.pull.set();
        }
        drop(state);
        self.0.changed.notify_all();
        self.wake();
    }

    /// Asks for the stop. `false` if it may not be.
    pub fn ask_to_stop(&self, freeze_timeout: Duration) -> bool {
        let mut state = self.lock();
        let actions = state.machine.on(SourceEvent::Stop);
        // Freeze and SendFinal are what capture does next.
        let granted = actions.contains(&SourceAction::Freeze);
        if granted {
            state.frozen_until = Some(Instant::now() + freeze_timeout);
        }
        drop(state);
        self.wake();
        granted
    }

    /// The next thing to be done; waits for it.
    pub fn next_action(&self) -> SourceAction {
        let mut state = self.lock();
        loop {
            if let Some(action) = state.actions.pop_front() {
                return action;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a round to be applied, or for the machine to end, for so long at the most. Whether it was applied.
    pub fn has_applied(&self, round: u32, most: Duration) -> bool {
        let state = self.wait(most, |state| state.machine.finished() || state.applied >= Some(round));
        state.applied >= Some(round)
    }

    /// Waits for the machine to end, for so long at the most.
    pub fn settle(&self, most: Duration) {
        drop(self.wait(most, |state| state.machine.finished()));
    }

    /// Hears the destination out, for so long at the most: what passes its last words on (socat) may fail where they find
    /// nobody.
    pub fn hear_out(&self, most: Duration) {
        drop(self.wait(most, |state| state.ended));
    }

    fn wait(&self, most: Duration, done: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.0.changed.wait_timeout_while(self.lock(), most, |state| !done(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wake(&self) {
        // One that does not fit is not needed: others wait to be read.
        let _ = nix::unistd::write(&self.0.wake, &[1]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that watches.
struct Watch {
    peer: Peer,
    /// Until it has ended.
    input: Option<File>,
    woken: UnixStream,
    /// Until one has come.
    signals: Option<Cancel>,
    silence: Duration,
}

impl Watch {
    fn run(mut self) {
        let mut decoder = Decoder::default();
        while !self.peer.lock().machine.finished() {
            match self.wait() {
                Ok(Ready { input, signal, late }) => {
                    if signal {
                        self.signals = None;
                        self.peer.feed(SourceEvent::Interrupted);
                    }
                    // What it has said counts before that it was silent: we may have been stopped ourselves.
                    if input {
                        self.read(&mut decoder);
                    } else if let Some(event) = late {
                        self.peer.lock().frozen_until = None;
                        self.peer.feed(event);
                    }
                }
                Err(error) => {
                    return self.peer.feed(SourceEvent::PeerLost(format!("waiting failed: {error}")));
                }
            }
        }
        self.hear_out(&mut decoder);
        self.peer.lock().ended = true;
        self.peer.0.changed.notify_all();
    }

    /// Reads on up to the end of the channel.
    fn hear_out(&mut self, decoder: &mut Decoder) {
        self.signals = None;
        self.peer.lock().frozen_until = None;
        while self.input.is_some() && decoder.finish().is_err() {
            match self.wait() {
                Ok(Ready { input: true, .. }) => self.read(decoder),
                Ok(Ready { late: None, .. }) => {}
                _ => return,
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let (heard, frozen_until) = {
            let state = self.peer.lock();
            (state.heard, state.frozen_until)
        };
        let silent = heard + self.silence;
        let until = frozen_until.map_or(silent, |frozen| frozen.min(silent));
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.input.iter().map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.signals.iter().map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout_until(Some(until))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        if ready[0] {
            let _ = (&self.woken).read(&mut [0; 64]);
        }
        let now = Instant::now();
        let late = match frozen_until {
            Some(frozen) if now >= frozen => Some(SourceEvent::FreezeTimeout),
            _ if now >= silent => Some(SourceEvent::Silence),
            _ => None,
        };
        let (with_input, with_signals) = (self.input.is_some(), self.signals.is_some());
        Ok(Ready { input: with_input && ready[1], signal: with_signals && ready[ready.len() - 1], late })
    }

    fn read(&mut self, decoder: &mut Decoder) {
        let mut bytes = [0; 4096];
        let n = match self.input.as_mut().map_or(Ok(0), |input| input.read(&mut bytes)) {
            Ok(n) => n,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return;
            }
            Err(error) => return self.lost(error.to_string()),
        };
        if n == 0 {
            return self.lost("it has closed its side".into());
        }
        self.peer.lock().heard = Instant::now();
        let mut rest = &bytes[..n];
        loop {
            match decoder.feed(&mut rest) {
                Ok(Some(message)) => self.message(message),
                Ok(None) => return,
                Err(error) => return self.lost(error.to_string()),
            }
        }
    }

    fn message(&self, message: Message) {
        if let Message::RoundApplied { round, .. } = message {
            self.peer.lock().applied = Some(round);
        }
        self.peer.feed(SourceEvent::Message(message));
    }

    fn lost(&mut self, what: String) {
        self.input = None;
        self.peer.feed(SourceEvent::PeerLost(what));
    }
}

/// What a wait has brought.
struct Ready {
    input: bool,
    signal: bool,
    late: Option<SourceEvent>,
}

/// Exit code of a move that did not take place.
pub fn exit_for(why: &Why) -> pc_cli::Exit {
    use pc_cli::Exit;
    match why {
        Why::Refused(_) | Why::Version { .. } => Exit::Unsupported,
        Why::PeerCancelled(_) | Why::Interrupted | Why::FreezeTimeout => Exit::Cancelled,
        Why::Lost(_) | Why::PeerLost(_) | Why::Silence | Why::Protocol(_) => Exit::Transport,
        _ => Exit::Failed,
    }
}
