//! The destination's end of a hand-over: what happens here becomes events of pc-ctl's machine, and what it says goes back
//! on standard output.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::fstat;
use nix::time::{ClockId, clock_gettime};
use pc_cli::signals::{Cancel, Cancelled, Silence, timeout_until};
use pc_cli::{Exit, Output, WithExit as _};
use pc_ctl::{
    Clocks, Destination, DestinationAction, DestinationEvent, DestinationOutcome, DestinationState, Encoder,
    Message, Why,
};
use pc_frame::FrameError;
use pc_image::{ImageError, Item, Reader, Source};
use pc_rebuild::{RebuildError, Restored, Stage};

use crate::TOOL;
use crate::args::Args;

/// How often the source hears of us.
const PULSE: Duration = Duration::from_millis(500);

/// The machine and the way back, shared by the thread that works and the one that keeps the pulse.
#[derive(Clone)]
pub struct HandOver(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Set when the machine has given up: pulls the working thread out of whatever it waits for.
    pull: Cancel,
}

struct State {
    machine: Destination,
    back: Back,
    /// What is left to be done once the husks are dead.
    after: Vec<DestinationAction>,
    /// Why nothing runs.
    why: Option<Why>,
}

/// The channel back to the source.
struct Back {
    /// Until it is closed.
    output: Option<Output>,
    encoder: Encoder,
    patience: Duration,
    failed: bool,
}

impl Back {
    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(output) = self.output.as_mut().filter(|_| !self.failed) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        output.give_up_at(Instant::now() + self.patience);
        let said = output.write_all(bytes);
        self.failed = said.is_err();
        said
    }
}

impl HandOver {
    /// Takes standard output for what is said to the source, and greets it.
    pub fn begin(args: &Args, signals: &Cancel) -> anyhow::Result<Self> {
        keep_apart(args).exit(Exit::Usage)?;
        let output = pc_cli::output_until(TOOL, signals)?;
        let back = Back {
            output: Some(output),
            encoder: Encoder::new(id()?),
            patience: args.timeout,
            failed: false,
        };
        let producer = format!("{TOOL} {}", env!("CARGO_PKG_VERSION"));
        let (machine, hello) = Destination::new(clocks().context("reading the clocks")?, producer);
        let state = Mutex::new(State { machine, back, after: Vec::new(), why: None });
        let pull = Cancel::by_hand().context("the hand-over")?;
        let own = HandOver(Arc::new(Shared { state, pull }));
        own.lock().carry_out(hello);
        let (pulse, signals) = (own.clone(), signals.clone());
        thread::Builder::new().name("pulse".into()).spawn(move || pulse.keep(&signals))?;
        Ok(own)
    }

    /// Is set when the machine has given up.
    pub fn pull(&self) -> &Cancel {
        &self.0.pull
    }

    /// Says that we are alive, and hears of signals, until the machine has finished.
    fn keep(self, signals: &Cancel) {
        let mut next = Instant::now() + PULSE;
        let mut interrupted = false;
        while !self.lock().machine.finished() {
            let mut fds = vec![];
            if !interrupted {
                fds.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
            }
            let ready = poll(&mut fds, timeout_until(Some(next)));
            if ready.is_ok_and(|ready| ready > 0) {
                interrupted = true;
                self.feed(DestinationEvent::Interrupted);
            }
            if Instant::now() >= next {
                next = Instant::now() + PULSE;
                self.feed(DestinationEvent::Tick);
            }
        }
    }

    /// Tells the machine what has happened, and says what it wants said at once.
    fn feed(&self, event: DestinationEvent) {
        let mut state = self.lock();
        let actions = state.machine.on(event);
        state.carry_out(actions);
        if state.machine.state() == DestinationState::Gone {
            self.0.pull.set();
        }
    }

    /// A stage of the restore. Fails if the machine has given up.
    fn reached(&self, stage: Stage, seen: &Seen) -> Result<(), RebuildError> {
        match stage {
            Stage::Judged => {
                self.feed(DestinationEvent::Skeleton { stream_id: seen.stream_id });
                self.feed(DestinationEvent::Judged(Ok(())));
            }
            Stage::Round(round) => self.feed(DestinationEvent::RoundApplied { round, bytes: seen.bytes }),
            Stage::Built => self.feed(DestinationEvent::Built),
            Stage::Committed => self.feed(DestinationEvent::Commit),
        }
        match self.lock().machine.state() {
            DestinationState::Gone => Err(RebuildError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Restores, and says how it ended.
    pub fn restore<R: io::Read>(
        &self,
        settings: &pc_rebuild::Settings,
        reader: Reader<R>,
        notice: &mut dyn FnMut(&str),
    ) -> Result<Restored, RebuildError> {
        let seen = std::cell::Cell::new(Seen::default());
        let mut tap = Tap { reader, seen: &seen };
        let restored =
            pc_rebuild::restore(settings, &mut tap, notice, &mut |stage| self.reached(stage, &seen.get()));
        match &restored {
            Ok(restored) => self.feed(DestinationEvent::Released { pid: restored.pid as u32 }),
            Err(error) => self.failed(error),
        }
        self.end();
        restored
    }

    /// The restore failed, its husks are dead.
    fn failed(&self, error: &RebuildError) {
        let releasing = self.lock().machine.state() == DestinationState::Releasing;
        self.feed(if releasing {
            DestinationEvent::ReleaseFailed(pc_cli::in_a_line(error))
        } else {
            event_of(error)
        });
    }

    /// The stream could not even be opened.
    pub fn not_begun(&self, error: &anyhow::Error) {
        let cancelled = pc_cli::exit_of(error) == Exit::Cancelled;
        let text = pc_cli::chain(error);
        self.feed(if cancelled { DestinationEvent::Interrupted } else { DestinationEvent::StreamLost(text) });
        self.end();
    }

    /// Says what was to be said once nothing is left, and closes the channel.
    fn end(&self) {
        let mut state = self.lock();
        for action in std::mem::take(&mut state.after) {
            match action {
                DestinationAction::Send(message) => state.send(&message),
                DestinationAction::Finish(DestinationOutcome::Gone(why)) => state.why = Some(why),
                _ => {}
            }
        }
        let end = state.back.encoder.end();
        // Whoever has gone needs no end.
        let _ = state.back.say(&end);
        state.back.output = None;
    }

    /// Why nothing runs here.
    pub fn why(&self) -> Option<Why> {
        self.lock().why.clone()
    }

    /// Whether the source could be told how it ended.
    pub fn was_told(&self) -> bool {
        !self.lock().back.failed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What comes after a TearDown waits until the husks are dead.
    fn carry_out(&mut self, actions: Vec<DestinationAction>) {
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            match action {
                DestinationAction::Send(message) => self.send(&message),
                DestinationAction::TearDown => {
                    self.after = actions.collect();
                    return;
                }
                // The engine does these where it tells of its stages.
                DestinationAction::Judge | DestinationAction::Release | DestinationAction::Finish(_) => {}
            }
        }
    }

    fn send(&mut self, message: &Message) {
        let bytes = self.back.encoder.message(message);
        if let Err(error) = self.back.say(&bytes) {
            let actions = self.machine.on(DestinationEvent::BackLost(error.to_string()));
            self.after.extend(actions);
        }
    }
}

fn event_of(error: &RebuildError) -> DestinationEvent {
    match error {
        RebuildError::Interrupted => DestinationEvent::Interrupted,
        RebuildError::Cancelled(reason) => DestinationEvent::Cancel(reason.clone()),
        RebuildError::Unsupported(_) | RebuildError::PidTaken { .. } => {
            DestinationEvent::Judged(Err(pc_cli::in_a_line(error)))
        }
        RebuildError::Image(ImageError::Unsupported(_)) => {
            DestinationEvent::Judged(Err(pc_cli::in_a_line(error)))
        }
        RebuildError::Image(ImageError::Frame(FrameError::Io(io))) if holds::<Cancelled>(io) => {
            DestinationEvent::Interrupted
        }
        RebuildError::Image(ImageError::Frame(FrameError::Io(io))) if holds::<Silence>(io) => {
            DestinationEvent::Silence
        }
        RebuildError::Image(_) | RebuildError::NotCommitted => {
            DestinationEvent::StreamLost(pc_cli::in_a_line(error))
        }
        _ => DestinationEvent::Failed(pc_cli::in_a_line(error)),
    }
}

/// Whether a wait was given up for this reason.
fn holds<E: std::error::Error + 'static>(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<E>())
}

/// What was seen of the stream.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    stream_id: [u8; 16],
    bytes: u64,
}

/// The stream, with a note of how far it was read.
struct Tap<'a, R: io::Read> {
    reader: Reader<R>,
    seen: &'a std::cell::Cell<Seen>,
}

impl<R: io::Read> Source for Tap<'_, R> {
    fn next(&mut self) -> Result<Option<Item>, ImageError> {
        let item = self.reader.next();
        let stream_id = self.reader.preamble().map_or([0; 16], |preamble| preamble.stream_id);
        self.seen.set(Seen { stream_id, bytes: self.reader.offset() });
        item
    }

    fn recycle(&mut self, payload: Vec<u8>) {
        self.reader.recycle(payload);
    }
}

/// Nobody but us may write to the channel, and the copy least of all.
fn keep_apart(args: &Args) -> anyhow::Result<()> {
    let channel = fstat(io::stdout()).context("standard output")?;
    let is_channel = |fd: BorrowedFd<'_>| {
        fstat(fd).is_ok_and(|found| (found.st_dev, found.st_ino) == (channel.st_dev, channel.st_ino))
    };
    if is_channel(io::stderr().as_fd()) {
        return Err(anyhow!(
            "standard error goes where standard output does, which is the hand-over's alone"
        ));
    }
    for (id, attach) in &args.attach {
        if let pc_rebuild::Attach::Fd(fd) = attach
            && is_channel(fd.as_fd())
        {
            return Err(anyhow!("--attach {id}: the process cannot have the hand-over's channel"));
        }
    }
    Ok(())
}

fn clocks() -> nix::Result<Clocks> {
    let read = |id| clock_gettime(id).map(|t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
    Ok(Clocks {
        realtime: read(ClockId::CLOCK_REALTIME)? as u64,
        monotonic: read(ClockId::CLOCK_MONOTONIC)?,
        boottime: read(ClockId::CLOCK_BOOTTIME)?,
    })
}

/// A number that names the channel.
fn id() -> anyhow::Result<[u8; 16]> {
    let mut id = [0; 16];
    let random = std::fs::File::open("/dev/urandom");
    random
        .and_then(|mut random| io::Read::read_exact(&mut random, &mut id))
        .context("reading /dev/urandom")?;
    Ok(id)
}
