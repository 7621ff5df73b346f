//! What it takes to look at a process: it took that while it ran, and about as much is a part of the stop.
//!
//! Times are those for which this thread had a CPU: while the process runs, it takes its share of them, and at the stop
//! it does not.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long the last looks at a running process took.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Costs {
    /// At all of its descriptors.
    pub descriptors: Duration,
    /// At all of its mappings.
    pub mappings: Duration,
    /// At one of its threads, from outside.
    pub thread: Duration,
}

/// At the stop a thread is stopped, looked at from outside, and asked: that takes three times as long as the look.
const ASKED: u32 = 3;

impl Costs {
    /// How long the stop of a process with this many threads takes for everything but memory.
    pub fn stop(&self, threads: usize) -> Duration {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        self.descriptors + self.mappings + self.thread.saturating_mul(ASKED).saturating_mul(threads)
    }
}

/// What some work gives, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = now();
    let done = work();
    (done, now().saturating_sub(began))
}

/// What this thread has had of the CPUs. (A kernel that does not tell makes nothing of the costs.)
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_counts_as_often_as_it_is_asked() {
        let ms = Duration::from_millis;
        let costs = Costs { descriptors: ms(7), mappings: ms(2), thread: ms(1) };
        assert_eq!(costs.stop(10), ms(7 + 2 + 30));
        assert!(costs.stop(usize::MAX) > ms(39));
    }
}
