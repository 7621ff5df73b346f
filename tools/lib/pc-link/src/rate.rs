//! No more than so many bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::CHUNK;

/// Shared by all connections of a transfer.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<u64>,
    /// When the next byte may go.
    free: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Pace { rate: rate.filter(|rate| *rate > 0), free: Mutex::new(Instant::now()) }
    }

    /// Most bytes of a chunk: the other side shall hear something four times a second.
    pub(crate) fn piece(&self) -> usize {
        self.rate.map_or(CHUNK, |rate| (rate / 4).clamp(512, CHUNK as u64) as usize)
    }

    /// Waits until `len` bytes may go.
    pub(crate) fn wait(&self, len: usize) {
        if let Some(delay) = self.reserve(len, Instant::now()) {
            std::thread::sleep(delay);
        }
    }

    fn reserve(&self, len: usize, now: Instant) -> Option<Duration> {
        let rate = self.rate?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used before is not saved up for a burst.
        let start = (*free).max(now);
        *free = start + Duration::from_secs_f64(len as f64 / rate as f64);
        Some(start - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them_and_nothing_is_saved_up() {
        let pace = Pace::new(Some(1000));
        let now = Instant::now() + Duration::from_secs(5);
        assert_eq!(pace.reserve(500, now), Some(Duration::ZERO));
        assert_eq!(pace.reserve(500, now), Some(Duration::from_millis(500)));
        assert_eq!(pace.reserve(1, now + Duration::from_secs(9)), Some(Duration::ZERO));
        assert_eq!(Pace::new(None).reserve(1 << 30, now), None);
        assert_eq!((pace.piece(), Pace::new(Some(1 << 40)).piece()), (512, 256 << 10));
    }
}
