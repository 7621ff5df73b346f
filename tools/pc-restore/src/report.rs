//! Figures in the form in which people and scripts get them.

use std::time::Duration;

use pc_rebuild::Restored;
use serde::Serialize;

/// What `--stats` writes. Times are whole microseconds.
#[derive(Debug, Serialize)]
pub struct Stats {
    pid: i32,
    threads: usize,
    pages_restored: u64,
    pages_patched: u64,
    restore_time: u64,
    receive_time: u64,
    apply_time: u64,
    hooks: u64,
    stop: Stop,
}

/// Where the time went from the beginning of the last round to running. Receiving and applying overlap.
#[derive(Debug, Serialize)]
struct Stop {
    receive: u64,
    apply: u64,
    descriptors: u64,
    threads: u64,
    release: u64,
}

impl Stats {
    /// Of a process that runs.
    pub fn new(restored: &Restored) -> Self {
        let micros = |time: Duration| time.as_micros() as u64;
        let times = &restored.times;
        Self {
            pid: restored.pid,
            threads: restored.threads,
            pages_restored: restored.pages,
            pages_patched: restored.patched,
            restore_time: micros(times.restore),
            receive_time: micros(times.receive),
            apply_time: micros(times.apply),
            hooks: micros(times.hooks),
            stop: Stop {
                receive: micros(times.last_receive),
                apply: micros(times.last_apply),
                descriptors: micros(times.descriptors),
                threads: micros(times.threads),
                release: micros(times.release),
            },
        }
    }
}

/// A line for people.
pub fn line(restored: &Restored) -> String {
    format!(
        "pid {} runs: {} threads, {} pages, {} from the last byte",
        restored.pid,
        restored.threads,
        restored.pages,
        pc_cli::show_duration(restored.times.restore),
    )
}
