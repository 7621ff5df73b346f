//! What the destination says.

/// The version of the hand-over that this crate speaks.
pub const PROTOCOL: u16 = 1;
/// Most bytes of a text in a message; longer ones are cut by the sender and refused by the receiver.
pub const MAX_TEXT: usize = 4096;

/// A reading of the destination's clocks, taken together, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Clocks {
    /// `CLOCK_REALTIME`.
    pub realtime: u64,
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
}

/// A message from the destination to the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    /// The first message.
    Hello {
        /// The lowest protocol version that the destination speaks.
        lowest: u16,
        /// The highest.
        highest: u16,
        /// Its clocks at this moment.
        clocks: Clocks,
        /// Name and version of the program, for people.
        producer: String,
    },
    /// What the skeleton needs is there; the source may stop the process when it likes.
    Accepted {
        /// The id of the stream that was judged, as its preamble has it.
        stream_id: [u8; 16],
    },
    /// The process cannot be taken. Nothing runs here and nothing will.
    Refused {
        /// Why.
        reason: String,
    },
    /// A round was applied.
    RoundApplied {
        /// Its number.
        round: u32,
        /// Bytes of the stream that were taken so far.
        bytes: u64,
    },
    /// The destination is alive, and busy.
    Alive,
    /// All is built; Commit is awaited.
    Ready,
    /// The stream ended early, was damaged, or brought nothing for too long. Nothing runs here and nothing will.
    Lost {
        /// Why.
        reason: String,
    },
    /// It failed. Nothing runs here and nothing will.
    Failed {
        /// Why.
        reason: String,
    },
    /// The copy runs.
    Running {
        /// Its process number at the destination.
        pid: u32,
    },
    /// The destination was asked to give up (a signal). Nothing runs here and nothing will.
    Cancelled {
        /// Why.
        reason: String,
    },
}

impl Message {
    /// Its name, as the documentation has it.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello { .. } => "Hello",
            Message::Accepted { .. } => "Accepted",
            Message::Refused { .. } => "Refused",
            Message::RoundApplied { .. } => "RoundApplied",
            Message::Alive => "Alive",
            Message::Ready => "Ready",
            Message::Lost { .. } => "Lost",
            Message::Failed { .. } => "Failed",
            Message::Running { .. } => "Running",
            Message::Cancelled { .. } => "Cancelled",
        }
    }
}
