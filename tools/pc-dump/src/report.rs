//! Figures in the form in which people and scripts get them.

use std::time::Duration;

use pc_capture::{Figures, RoundFigures, StopFigures};
use pc_cli::Round;
use serde::Serialize;

use crate::handover::Times;

const PAGE: u64 = pc_image::PAGE_SIZE;

/// What `--stats` writes. Times are whole microseconds.
#[derive(Debug, Serialize)]
pub struct Stats {
    freezing_time: u64,
    frozen_time: u64,
    memdump_time: u64,
    memwrite_time: u64,
    pages_scanned: u64,
    pages_skipped_parent: u64,
    pages_written: u64,
    pages_patched: u64,
    first_pause: u64,
    hooks: u64,
    tracked_by: &'static str,
    stop: Stop,
    #[serde(skip_serializing_if = "Option::is_none")]
    handover: Option<Times>,
    rounds: Vec<Round>,
}

/// Where the time of the stop went. Copying goes on beside asking for registers and descriptors.
#[derive(Debug, Serialize)]
struct Stop {
    freeze: u64,
    scan: u64,
    registers: u64,
    descriptors: u64,
    copy: u64,
    write: u64,
}

impl Stats {
    /// Of a finished run; `hooks` is how long the commands of hooks took while the process stood still.
    pub fn new(figures: &Figures, hooks: Duration, handover: Option<Times>) -> Self {
        let StopFigures { freeze, scan, registers, descriptors, copy, write } = figures.stop;
        Self {
            freezing_time: figures.freezing_time,
            frozen_time: figures.frozen_time,
            memdump_time: figures.memdump_time,
            memwrite_time: figures.memwrite_time,
            pages_scanned: figures.pages_scanned,
            pages_skipped_parent: figures.pages_skipped,
            pages_written: figures.pages_written(),
            pages_patched: figures.pages_patched(),
            first_pause: figures.first_pause,
            hooks: hooks.as_micros() as u64,
            tracked_by: figures.tracked_by,
            stop: Stop { freeze, scan, registers, descriptors, copy, write },
            handover,
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
        patched_pages: round.counts.patched_pages,
        bytes: round.counts.pages * PAGE + round.patch_bytes,
        elapsed_us: round.elapsed_us,
        dirty_rate: round.dirty_rate,
        estimated_stop_us: round.estimated_stop_us,
    }
}
