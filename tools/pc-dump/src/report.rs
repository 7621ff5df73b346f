//! Figures in the form in which people and scripts get them.

use pc_capture::{Figures, RoundFigures};
use pc_cli::Round;
use serde::Serialize;

const PAGE: u64 = pc_image::PAGE_SIZE;

/// What `--stats` writes.
#[derive(Debug, Serialize)]
pub struct Stats {
    freezing_time: u64,
    frozen_time: u64,
    memdump_time: u64,
    memwrite_time: u64,
    pages_scanned: u64,
    pages_skipped_parent: u64,
    pages_written: u64,
    rounds: Vec<Round>,
}

impl Stats {
    /// Of a finished run.
    pub fn new(figures: &Figures) -> Self {
        Self {
            freezing_time: figures.freezing_time,
            frozen_time: figures.frozen_time,
            memdump_time: figures.memdump_time,
            memwrite_time: figures.memwrite_time,
            pages_scanned: figures.pages_scanned,
            pages_skipped_parent: 0,
            pages_written: figures.pages_written(),
            rounds: figures.rounds.iter().map(round).collect(),
        }
    }
}

/// A round as it is shown.
pub fn round(round: &RoundFigures) -> Round {
    Round {
        round: round.round,
        last: round.last,
        pages: round.counts.pages,
        bytes: round.counts.pages * PAGE,
        elapsed_us: round.elapsed_us,
        dirty_rate: None,
        estimated_stop_us: None,
    }
}
