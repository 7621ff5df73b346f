//! The source's machine.
//!
//! | state | the original | what is awaited |
//! | --- | --- | --- |
//! | Greeting | runs | Hello |
//! | Offered | runs; rounds go out | Accepted |
//! | Moving | runs; rounds go out | that a stop pays |
//! | Freezing | stopped; the final round goes out | that it is written (Ready may come before that is noticed) |
//! | Waiting | stopped | Ready, for `--freeze-timeout` at most since the freeze |
//! | Preparing | stopped | that the last looks were taken and the stop outlives the tool |
//! | Committed | stopped | Running |
//! | Moved | ended | (final) |
//! | Kept | runs | (final) |
//! | InDoubt | stopped | (final, exit code 8) |
//!
//! Transitions; what a cell does not say changes nothing. *Back off* is: let the original run, send Cancel (unless
//! the stream cannot be written), finish as Kept.
//!
//! | event | Greeting | Offered | Moving | Freezing | Waiting | Preparing | Committed |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | Hello | → Offered, back off if no version fits | | | | | | |
//! | Accepted | back off | → Moving, back off if it is for another stream | | | | | |
//! | Refused, Lost, Failed, Cancelled | back off | back off | back off | back off | back off | back off | resume → Kept |
//! | RoundApplied | back off | back off | | | | | |
//! | Alive | | | | | | | |
//! | Ready | back off | back off | back off | noted | → Preparing | | |
//! | Running | back off | back off | back off | back off | back off | back off | end the original → Moved |
//! | Stop | | | freeze, send the final round → Freezing | | | | |
//! | FinalWritten | | | | → Waiting, → Preparing if Ready was noted | | | |
//! | Prepared | | | | | | send Commit → Committed | |
//! | WriteFailed | back off | back off | back off | back off | back off | back off | |
//! | PeerLost, Silence | back off | back off | back off | back off | back off | back off | → InDoubt |
//! | FreezeTimeout | | | | back off | back off | back off | |
//! | Interrupted, Failed | back off | back off | back off | back off | back off | back off | |
//!
//! In Committed a write that failed may have carried the whole Commit, so the answer is still awaited; a signal is passed over, for
//! the shortest way to certainty is to wait, which Silence bounds.

use crate::Why;
use crate::message::{Message, PROTOCOL};

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the module's documentation has the table
pub enum SourceState {
    Greeting,
    Offered,
    Moving,
    Freezing {
        /// Ready came before the driver had noticed that the final round is written.
        ready: bool,
    },
    Waiting,
    Preparing,
    Committed,
    Moved,
    Kept,
    InDoubt,
}

/// What happens to the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The destination says something.
    Message(Message),
    /// The back channel ended or failed, or carries what is no message.
    PeerLost(String),
    /// The stream could not be written.
    WriteFailed(String),
    /// A stop pays now (or no more rounds are wanted). Heard in Moving only: ask again later.
    Stop,
    /// The final round is written and flushed.
    FinalWritten,
    /// What [`SourceAction::Prepare`] asks for is done.
    Prepared,
    /// The original has been frozen for as long as it may be.
    FreezeTimeout,
    /// The destination said nothing for as long as it may.
    Silence,
    /// SIGINT or SIGTERM.
    Interrupted,
    /// Capture failed, the original died, or it turned out to be unsupported.
    Failed(String),
}

/// What the source's driver has to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Freeze the original; start the time of [`SourceEvent::FreezeTimeout`].
    Freeze,
    /// Write and flush the final round, all but Commit; then [`SourceEvent::FinalWritten`].
    SendFinal,
    /// Take the last looks (signals that arrived while frozen, whether the original still lives), and make its stop outlive
    /// this process; then [`SourceEvent::Prepared`], or [`SourceEvent::Failed`].
    Prepare,
    /// Tell whoever would resume the original after our death not to; then write and flush Commit and End.
    SendCommit,
    /// Write Cancel and End, as far as the stream takes them. Failure is of no matter.
    SendCancel(Why),
    /// Let the original run as before (nothing to do where it runs).
    Resume,
    /// End the original: the copy runs.
    EndOriginal,
    /// Nothing follows.
    Finish(SourceOutcome),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceOutcome {
    /// The copy runs at the destination, the original is ended.
    Moved {
        /// The copy's process number there.
        pid: u32,
    },
    /// The original runs, and no copy does or will.
    Kept(Why),
    /// It is not known whether the copy runs; the original is stopped.
    InDoubt(Why),
}

/// What has to be so with the original when the tool is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalIfKilled {
    /// It runs on (by itself, or because a guardian lets it).
    Runs,
    /// It stays stopped: Commit may have gone out.
    Stopped,
    /// It is, or is about to be, ended.
    Ended,
}

/// The machine. See the module's documentation for its table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    state: SourceState,
    stream_id: [u8; 16],
}

use SourceAction as Do;
use SourceEvent as On;
use SourceState as S;

impl Source {
    /// A source that has opened its channels and sends the stream of this id.
    pub fn new(stream_id: [u8; 16]) -> Self {
        Source { state: S::Greeting, stream_id }
    }

    /// Where it is.
    pub fn state(&self) -> SourceState {
        self.state
    }

    /// Whether [`SourceEvent::Stop`] would be heard: the destination has accepted, and the stop is still to come.
    pub fn may_stop(&self) -> bool {
        self.state == S::Moving
    }

    /// Whether it has finished.
    pub fn finished(&self) -> bool {
        matches!(self.state, S::Moved | S::Kept | S::InDoubt)
    }

    /// What becomes of the original if the tool is killed in this state.
    pub fn if_killed(&self) -> OriginalIfKilled {
        match self.state {
            S::Committed | S::InDoubt => OriginalIfKilled::Stopped,
            S::Moved => OriginalIfKilled::Ended,
            _ => OriginalIfKilled::Runs,
        }
    }

    /// Takes an event; gives what is to be done about it. Every event is defined in every state.
    #[must_use]
    pub fn on(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        if self.finished() {
            return Vec::new();
        }
        match event {
            On::Message(message) => self.message(message),
            On::Stop if self.state == S::Moving => {
                self.go(S::Freezing { ready: false }, vec![Do::Freeze, Do::SendFinal])
            }
            On::FinalWritten => match self.state {
                S::Freezing { ready: false } => self.go(S::Waiting, Vec::new()),
                S::Freezing { ready: true } => self.go(S::Preparing, vec![Do::Prepare]),
                _ => Vec::new(),
            },
            On::Prepared if self.state == S::Preparing => self.go(S::Committed, vec![Do::SendCommit]),
            On::Stop | On::Prepared => Vec::new(),
            On::FreezeTimeout => match self.state {
                S::Freezing { .. } | S::Waiting | S::Preparing => self.back_off(Why::FreezeTimeout, true),
                _ => Vec::new(),
            },
            On::PeerLost(what) => self.lost(Why::Lost(what)),
            On::Silence => self.lost(Why::Silence),
            _ if self.state == S::Committed => Vec::new(),
            On::WriteFailed(what) => self.back_off(Why::Lost(what), false),
            On::Interrupted => self.back_off(Why::Interrupted, true),
            On::Failed(what) => self.back_off(Why::Failed(what), true),
        }
    }

    fn message(&mut self, message: Message) -> Vec<SourceAction> {
        let name = message.name();
        match (message, self.state) {
            (Message::Refused { reason }, _) => self.declined(Why::Refused(reason)),
            (Message::Lost { reason }, _) => self.declined(Why::PeerLost(reason)),
            (Message::Failed { reason }, _) => self.declined(Why::PeerFailed(reason)),
            (Message::Cancelled { reason }, _) => self.declined(Why::PeerCancelled(reason)),
            (Message::Alive, _) => Vec::new(),
            (Message::Hello { lowest, highest, .. }, S::Greeting) => {
                if (lowest..=highest).contains(&PROTOCOL) {
                    return self.go(S::Offered, Vec::new());
                }
                self.back_off(Why::Version { lowest, highest }, true)
            }
            (_, S::Greeting) => self.back_off(Why::Protocol(name), true),
            (Message::Hello { .. }, _) => Vec::new(),
            (Message::Accepted { stream_id }, S::Offered) if stream_id == self.stream_id => {
                self.go(S::Moving, Vec::new())
            }
            (_, S::Offered) => self.back_off(Why::Protocol(name), true),
            (Message::Accepted { .. } | Message::RoundApplied { .. }, _) => Vec::new(),
            (Message::Ready, S::Freezing { .. }) => self.go(S::Freezing { ready: true }, Vec::new()),
            (Message::Ready, S::Waiting) => self.go(S::Preparing, vec![Do::Prepare]),
            (Message::Ready, S::Preparing | S::Committed) => Vec::new(),
            (Message::Running { pid }, S::Committed) => {
                self.go(S::Moved, vec![Do::EndOriginal, Do::Finish(SourceOutcome::Moved { pid })])
            }
            (Message::Ready | Message::Running { .. }, _) => self.back_off(Why::Protocol(name), true),
        }
    }

    fn go(&mut self, state: SourceState, actions: Vec<SourceAction>) -> Vec<SourceAction> {
        self.state = state;
        actions
    }

    /// The destination promises that nothing runs there: good at any time, after Commit too.
    fn declined(&mut self, why: Why) -> Vec<SourceAction> {
        if self.state == S::Committed {
            return self.go(S::Kept, vec![Do::Resume, Do::Finish(SourceOutcome::Kept(why))]);
        }
        self.back_off(why, true)
    }

    fn lost(&mut self, why: Why) -> Vec<SourceAction> {
        if self.state == S::Committed {
            return self.go(S::InDoubt, vec![Do::Finish(SourceOutcome::InDoubt(why))]);
        }
        self.back_off(why, true)
    }

    /// Only before Commit. The original comes first.
    fn back_off(&mut self, why: Why, cancel: bool) -> Vec<SourceAction> {
        debug_assert!(self.state != S::Committed);
        let mut actions = vec![Do::Resume];
        if cancel {
            actions.push(Do::SendCancel(why.clone()));
        }
        actions.push(Do::Finish(SourceOutcome::Kept(why)));
        self.go(S::Kept, actions)
    }
}
