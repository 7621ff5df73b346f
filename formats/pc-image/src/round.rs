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
    /// Pages of which only changed bytes were sent.
    pub patched_pages: u64,
}

impl Counts {
    /// Both together; `None` where that is beyond what can be counted.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            pages: self.pages.checked_add(other.pages)?,
            zero_pages: self.zero_pages.checked_add(other.zero_pages)?,
            zapped_pages: self.zapped_pages.checked_add(other.zapped_pages)?,
            patched_pages: self.patched_pages.checked_add(other.patched_pages)?,
        })
    }
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
    /// Digest of this encoding: SHA-256 over the headers of all frames of the segment before this one. They hold the
    /// checksums of the payloads, so every byte of them is covered.
    pub encoding_digest: [u8; 32],
}

/// The source gave up: nothing may run.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Cancel {
    /// Why, for people.
    pub reason: String,
}
