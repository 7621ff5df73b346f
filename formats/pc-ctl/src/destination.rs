//! The destination's machine.
//!
//! | state | the copy | what is awaited |
//! | --- | --- | --- |
//! | Listening | nothing | the stream's skeleton |
//! | Judging | nothing | whether it can be taken |
//! | Building | husks | rounds, and the final one |
//! | Ready | husks, complete | Commit or Cancel |
//! | Releasing | husks that are being let go | that they run, or that none ever will |
//! | Runs | runs | (final) |
//! | Gone | nothing | (final) |
//!
//! Transitions; what a cell does not say changes nothing. *Give up* is: kill the husks, only then say so (Refused, Lost,
//! Failed, Cancelled; nothing if the source itself cancelled), finish as Gone.
//!
//! | event | Listening | Judging | Building | Ready | Releasing |
//! | --- | --- | --- | --- | --- | --- |
//! | Skeleton | judge → Judging | | | | |
//! | Judged (yes) | | say Accepted → Building | | | |
//! | Judged (no) | give up: Refused | give up: Refused | give up: Refused | give up: Refused | |
//! | RoundApplied | | | say RoundApplied | say RoundApplied | |
//! | Built | | | say Ready → Ready | | |
//! | Commit | give up: Lost | give up: Lost | give up: Lost | release → Releasing | |
//! | Cancel | give up | give up | give up | give up | |
//! | StreamLost, Silence | give up: Lost | give up: Lost | give up: Lost | give up: Lost | |
//! | Failed | give up: Failed | give up: Failed | give up: Failed | give up: Failed | |
//! | BackLost | give up: Lost | give up: Lost | give up: Lost | | |
//! | Interrupted | give up: Cancelled | give up: Cancelled | give up: Cancelled | give up: Cancelled | |
//! | Tick | say Alive | say Alive | say Alive | say Alive | say Alive |
//! | Released | | | | | say Running → Runs |
//! | ReleaseFailed | | | | | give up: Failed |
//!
//! In Ready a lost back channel decides nothing: the source notices by itself, and the stream says what it decides. In Releasing
//! nothing from outside counts any more.

use crate::Why;
use crate::message::{Clocks, Message, PROTOCOL};

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the module's documentation has the table
pub enum DestinationState {
    Listening,
    Judging,
    Building,
    Ready,
    Releasing,
    Runs,
    Gone,
}

/// What happens to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// The stream's preamble and skeleton were read.
    Skeleton {
        /// The id in the stream's preamble.
        stream_id: [u8; 16],
    },
    /// Whether what the skeleton needs is there, or why not.
    Judged(Result<(), String>),
    /// A round was applied.
    RoundApplied {
        /// Its number.
        round: u32,
        /// Bytes of the stream taken so far.
        bytes: u64,
    },
    /// The final round is applied and all is built.
    Built,
    /// The stream has a valid Commit.
    Commit,
    /// The stream has a Cancel, with this reason.
    Cancel(String),
    /// The stream ended early, failed or is bad.
    StreamLost(String),
    /// A message could not be written.
    BackLost(String),
    /// The stream brought nothing for as long as it may.
    Silence,
    /// SIGINT or SIGTERM.
    Interrupted,
    /// Building failed.
    Failed(String),
    /// It is time to be heard.
    Tick,
    /// The copy runs.
    Released {
        /// Its process number.
        pid: u32,
    },
    /// Release failed before anything ran; nothing will.
    ReleaseFailed(String),
}

/// What the destination's driver has to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Write a message and flush it; on failure [`DestinationEvent::BackLost`].
    Send(Message),
    /// Look whether what the skeleton needs is there; then [`DestinationEvent::Judged`].
    Judge,
    /// Let the copy run; then [`DestinationEvent::Released`] or, if it is certain that nothing runs, [`DestinationEvent::ReleaseFailed`].
    Release,
    /// Kill the husks and wait until they are gone.
    TearDown,
    /// Nothing follows.
    Finish(DestinationOutcome),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationOutcome {
    /// The copy runs here.
    Runs {
        /// Its process number.
        pid: u32,
    },
    /// Nothing runs here and nothing will.
    Gone(Why),
}

/// The machine. See the module's documentation for its table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    state: DestinationState,
    stream_id: [u8; 16],
}

use DestinationAction as Do;
use DestinationEvent as On;
use DestinationState as S;

impl Destination {
    /// A destination that has opened its channels, and the greeting that it has to send at once.
    pub fn new(clocks: Clocks, producer: impl Into<String>) -> (Self, Vec<DestinationAction>) {
        let hello = Message::Hello { lowest: PROTOCOL, highest: PROTOCOL, clocks, producer: producer.into() };
        (Destination { state: S::Listening, stream_id: [0; 16] }, vec![Do::Send(hello)])
    }

    /// Where it is.
    pub fn state(&self) -> DestinationState {
        self.state
    }

    /// Whether it has finished.
    pub fn finished(&self) -> bool {
        matches!(self.state, S::Runs | S::Gone)
    }

    /// Takes an event; gives what is to be done about it. Every event is defined in every state.
    #[must_use]
    pub fn on(&mut self, event: DestinationEvent) -> Vec<DestinationAction> {
        if self.finished() {
            return Vec::new();
        }
        match (event, self.state) {
            (On::Tick, _) => vec![Do::Send(Message::Alive)],
            (On::Released { pid }, S::Releasing) => {
                self.state = S::Runs;
                let outcome = DestinationOutcome::Runs { pid };
                vec![Do::Send(Message::Running { pid }), Do::Finish(outcome)]
            }
            (On::ReleaseFailed(what), S::Releasing) => self.failed(Why::Failed(what)),
            (On::Released { .. } | On::ReleaseFailed(_), _) | (_, S::Releasing) => Vec::new(),
            (On::Skeleton { stream_id }, S::Listening) => {
                (self.state, self.stream_id) = (S::Judging, stream_id);
                vec![Do::Judge]
            }
            (On::Judged(Ok(())), S::Judging) => {
                self.state = S::Building;
                vec![Do::Send(Message::Accepted { stream_id: self.stream_id })]
            }
            (On::Judged(Err(reason)), _) => {
                self.give_up(Why::Failed(reason.clone()), Some(Message::Refused { reason }))
            }
            (On::RoundApplied { round, bytes }, S::Building | S::Ready) => {
                vec![Do::Send(Message::RoundApplied { round, bytes })]
            }
            (On::Built, S::Building) => {
                self.state = S::Ready;
                vec![Do::Send(Message::Ready)]
            }
            (On::Commit, S::Ready) => {
                self.state = S::Releasing;
                vec![Do::Release]
            }
            (On::Commit, _) => self.lost(Why::Protocol("Commit")),
            (On::Cancel(reason), _) => self.give_up(Why::PeerCancelled(reason), None),
            (On::StreamLost(what), _) => self.lost(Why::Lost(what)),
            (On::BackLost(_), S::Ready) => Vec::new(),
            (On::BackLost(what), _) => self.lost(Why::Lost(what)),
            (On::Silence, _) => self.lost(Why::Silence),
            (On::Failed(what), _) => self.failed(Why::Failed(what)),
            (On::Interrupted, _) => {
                let reason = Why::Interrupted.to_string();
                self.give_up(Why::Interrupted, Some(Message::Cancelled { reason }))
            }
            (On::Skeleton { .. } | On::Judged(Ok(())) | On::RoundApplied { .. } | On::Built, _) => Vec::new(),
        }
    }

    fn failed(&mut self, why: Why) -> Vec<DestinationAction> {
        let message = Message::Failed { reason: why.to_string() };
        self.give_up(why, Some(message))
    }

    fn lost(&mut self, why: Why) -> Vec<DestinationAction> {
        let message = Message::Lost { reason: why.to_string() };
        self.give_up(why, Some(message))
    }

    /// The husks die before the source hears that nothing will run.
    fn give_up(&mut self, why: Why, message: Option<Message>) -> Vec<DestinationAction> {
        self.state = S::Gone;
        let said = message.map(Do::Send);
        let end = Do::Finish(DestinationOutcome::Gone(why));
        [Do::TearDown].into_iter().chain(said).chain([end]).collect()
    }
}
