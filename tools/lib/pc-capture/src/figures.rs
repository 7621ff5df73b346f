//! What a run has measured. Times are whole microseconds.

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
    /// Bytes of patches: of what had changed in pages of which only that was sent.
    pub patch_bytes: u64,
    /// Its time.
    pub elapsed_us: u64,
    /// Bytes of pages that were written since, when it was through.
    pub left: Option<u64>,
    /// How fast the process writes to pages not written before in the round, in bytes a second.
    pub dirty_rate: Option<u64>,
    /// How long a stop would have taken then.
    pub estimated_stop_us: Option<u64>,
}

/// Where the time of the stop went. What ran beside something else is counted in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopFigures {
    /// Until all threads stood.
    pub freeze: u64,
    /// Mappings, and which pages were written.
    pub scan: u64,
    /// Registers and all else that only the process itself or a debugger can tell.
    pub registers: u64,
    /// Descriptors.
    pub descriptors: u64,
    /// Reading and sending pages.
    pub copy: u64,
    /// Sending the rest, until Commit was written.
    pub write: u64,
}

/// All of it; the names at the top are CRIU's.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Until all threads stood.
    pub freezing_time: u64,
    /// From the freeze until Commit was written, with a hand-over until it was heard that the copy runs.
    pub frozen_time: u64,
    /// Reading the memory and sending it.
    pub memdump_time: u64,
    /// Of this, writing.
    pub memwrite_time: u64,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages that were looked at and not sent, as they had not changed since they were.
    pub pages_skipped: u64,
    /// How long the process stood still for tracking to begin.
    pub first_pause: u64,
    /// How written pages were found; empty without rounds.
    pub tracked_by: &'static str,
    /// The table of nf_tables that was left to hold back the packets of its connections, in the network namespace of the
    /// original.
    pub left_held: Option<String>,
    /// The stop.
    pub stop: StopFigures,
    /// Each round.
    pub rounds: Vec<RoundFigures>,
    pub(crate) written_from: Option<Instant>,
}

impl Figures {
    /// Pages sent with their bytes, in all rounds.
    pub fn pages_written(&self) -> u64 {
        self.rounds.iter().map(|round| round.counts.pages).sum()
    }

    /// Pages of which only what had changed was sent, in all rounds.
    pub fn pages_patched(&self) -> u64 {
        self.rounds.iter().map(|round| round.counts.patched_pages).sum()
    }
}

pub(crate) fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}
