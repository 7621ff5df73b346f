//! The restored process.

use std::time::Duration;

/// How long it took. Of the parts, those before the last byte overlap with the receiving.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From the last byte to running.
    pub restore: Duration,
    /// From the first byte to the last.
    pub receive: Duration,
    /// Mappings and pages, as far as they kept the caller waiting.
    pub apply: Duration,
    /// Descriptors.
    pub descriptors: Duration,
    /// Threads, signals, timers, credentials.
    pub threads: Duration,
    /// From the last remote call to running.
    pub release: Duration,
}

/// A process that runs (or is stopped, if that was asked for).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its pid as the caller sees it.
    pub pid: i32,
    /// The pid of the init of its pid namespace, which is the caller's child instead of it.
    pub init: Option<i32>,
    /// How many threads it has.
    pub threads: usize,
    /// Pages that came with their bytes.
    pub pages: u64,
    /// How long it took.
    pub times: Times,
}
