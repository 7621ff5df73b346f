//! What a run has measured.

use std::time::Instant;

use pc_image::Counts;

/// What is known of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundFigures {
    /// Its number.
    pub round: u32,
    /// The process stood still.
    pub last: bool,
    /// Pages sent.
    pub counts: Counts,
    /// Its time in microseconds.
    pub elapsed_us: u64,
}

/// Times in microseconds, named as CRIU names them.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Until all threads stood.
    pub freezing_time: u64,
    /// From the freeze until Commit was written.
    pub frozen_time: u64,
    /// Reading the memory and sending it.
    pub memdump_time: u64,
    /// Of this, writing.
    pub memwrite_time: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Each round.
    pub rounds: Vec<RoundFigures>,
    pub(crate) frozen_at: Option<Instant>,
}

impl Figures {
    pub(crate) fn round(&mut self, round: u32, last: bool, counts: Counts, elapsed_us: u64) {
        self.rounds.push(RoundFigures { round, last, counts, elapsed_us });
    }

    /// Pages sent with their bytes, in all rounds.
    pub fn pages_written(&self) -> u64 {
        self.rounds.iter().map(|round| round.counts.pages).sum()
    }
}
