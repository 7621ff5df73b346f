//! Rounds and the end of the stream.

use bincode::{Decode, Encode};

use crate::Clocks;

/// A round begins.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RoundBegin {
    /// 0, 1, 2 …
    pub number: u32,
    /// The last round: the process is stopped, and what exists only at the stop comes along.
    pub last: bool,
    /// Clock readings at its start; in the last round, of the freeze.
    pub clocks: Clocks,
}

/// Counts over a round, or over the whole stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Counts {
    /// Pages sent with their bytes.
    pub pages: u64,
    /// Pages sent as ranges of zeroes.
    pub zero_pages: u64,
    /// Pages zapped.
    pub zapped_pages: u64,
}

/// A round is complete.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RoundEnd {
    /// Its number.
    pub number: u32,
    /// What it held.
    pub counts: Counts,
}

/// Everything was sent: the copy may run.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Commit {
    /// Rounds in this segment.
    pub rounds: u32,
    /// Over all rounds.
    pub totals: Counts,
    /// Digest of this encoding: CRC-64/NVMe… see pc-stream(5); over the headers of all frames before this one.
    pub encoding_digest: [u8; 32],
}

/// The source gave up: nothing may run.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Cancel {
    /// Why, for people.
    pub reason: String,
}
