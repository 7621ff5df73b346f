//! How fast the stream leaves. Pure, but for the readings of the clock that it is given.
//!
//! What a pipe or socket has taken is not yet at the destination: megabytes may wait in buffers, and a stop behind them
//! would have to wait too. Over a long round those buffers stay full, so the rate at which bytes are *taken* in its later
//! part is the rate at which they arrive; from it follows when what was sent will be through. That is a small difference of
//! large figures, so as much as buffers usually hold is waited for in any case. After it a small round follows, and the
//! stop after that.

use std::time::{Duration, Instant};

/// Bytes between two readings.
const STEP: u64 = 1 << 20;
/// Buffers on the way hold about as much: what is taken until they are full says nothing.
const HIDDEN: u64 = 16 << 20;
/// What a sender's buffers usually hold (`tcp_wmem`, a queue, a program or two between).
const BUFFERS: u64 = 8 << 20;
/// How far a receiver that is slower than the line is usually behind.
const BEHIND: Duration = Duration::from_millis(30);
/// No wait is longer, whatever the figures say.
const MOST_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Pace {
    /// Of this round: when it began, and readings of time and bytes.
    began: Instant,
    bytes: u64,
    marks: Vec<(Instant, u64)>,
    /// Bytes a second.
    rate: Option<f64>,
    /// Measured over a long enough round.
    sure: bool,
    /// When all that was sent will have left.
    clear_at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { began: now, bytes: 0, marks: Vec::new(), rate: None, sure: false, clear_at: now }
    }

    pub fn begin_round(&mut self, now: Instant) {
        self.began = now;
        self.bytes = 0;
        self.marks.clear();
    }

    /// `bytes` more were taken.
    pub fn taken(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.marks.last().is_none_or(|(_, at)| self.bytes - at >= STEP) {
            self.marks.push((now, self.bytes));
        }
    }

    pub fn end_round(&mut self, now: Instant) {
        match self.slope() {
            Some(rate) => (self.rate, self.sure) = (Some(rate), true),
            None if !self.sure && self.bytes > 0 => {
                let seconds = (now - self.began).as_secs_f64().max(1e-6);
                let rate = self.bytes as f64 / seconds;
                self.rate = Some(self.rate.map_or(rate, |known| known.max(rate)));
            }
            None => {}
        }
        if let (Some(all), Some(full)) = (self.time_for(self.bytes), self.time_for(BUFFERS)) {
            let clear_at = self.clear_at.max(self.began) + all;
            self.clear_at = clear_at.max(now + all.min(full + BEHIND)).min(now + MOST_WAIT);
        }
    }

    /// The destination has said that it has applied the round, which tells the rate for certain. A small round tells
    /// more of the time that any round takes.
    pub fn applied(&mut self, now: Instant) {
        let rate = self.bytes as f64 / (now - self.began).as_secs_f64().max(1e-6);
        if self.bytes >= STEP || self.rate.is_none_or(|known| known < rate) {
            self.rate = Some(rate);
        }
        (self.sure, self.clear_at) = (true, now);
    }

    /// Bytes a second over the later part of a long round.
    fn slope(&self) -> Option<f64> {
        let from = HIDDEN.max(self.bytes / 3);
        let (t0, b0) = self.marks.iter().find(|(_, bytes)| *bytes >= from)?;
        let (t1, b1) = self.marks.last()?;
        let seconds = (*t1 - *t0).as_secs_f64();
        (b1 - b0 >= HIDDEN && seconds > 0.0).then(|| (b1 - b0) as f64 / seconds)
    }

    /// How long sending so many bytes takes.
    pub fn time_for(&self, bytes: u64) -> Option<Duration> {
        let seconds = bytes as f64 / self.rate.filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// How long until all that was sent has left.
    pub fn wait(&self, now: Instant) -> Duration {
        if self.sure { self.clear_at.saturating_duration_since(now) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A line of `rate` MiB a second behind a buffer of 8 MiB that takes bytes at once.
    fn send(pace: &mut Pace, start: Instant, mib: u64, rate: f64) -> Instant {
        pace.begin_round(start);
        let mut now = start;
        for sent in 1..=mib {
            let waiting = sent.saturating_sub(8) as f64 / rate;
            now = start + Duration::from_secs_f64(waiting.max(sent as f64 * 1e-4));
            pace.taken(MIB, now);
        }
        pace.end_round(now);
        now
    }

    #[test]
    fn what_waits_in_buffers_is_waited_for_at_the_rate_of_the_line() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let now = send(&mut pace, start, 500, 100.0);
        let rate = pace.rate.unwrap() as u64 / MIB;
        assert!((98..=102).contains(&rate), "{rate}");
        let wait = pace.wait(now).as_millis();
        assert!((80..=120).contains(&wait), "8 MiB at 100 MiB/s: {wait}");
        // A small round disappears in the buffer, and is known to take its time all the same.
        let start = now + pace.wait(now);
        let now = send(&mut pace, start, 5, 100.0);
        let wait = pace.wait(now).as_millis();
        assert!((45..=52).contains(&wait), "{wait}");
    }

    #[test]
    fn a_round_that_was_applied_tells_the_rate_whatever_the_buffers_have_taken() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let now = send(&mut pace, start, 64, 1e9) + Duration::from_secs(2);
        pace.applied(now);
        let rate = pace.rate.unwrap() as u64 / MIB;
        assert!((31..=32).contains(&rate), "{rate}");
        assert_eq!(pace.wait(now), Duration::ZERO);
        // A few pages take the time of a round trip.
        pace.begin_round(now);
        pace.taken(4096, now);
        pace.applied(now + Duration::from_millis(50));
        assert_eq!(pace.rate.unwrap() as u64 / MIB, rate);
    }

    #[test]
    fn a_fast_pipe_makes_nobody_wait_for_long() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let now = send(&mut pace, start, 200, 1e9);
        assert!(pace.wait(now) < Duration::from_millis(32), "{:?}", pace.wait(now));
    }

    #[test]
    fn a_short_round_tells_a_rate_but_nothing_to_wait_for() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let now = send(&mut pace, start, 4, 100.0);
        assert!(pace.rate.is_some());
        assert_eq!(pace.wait(now), Duration::ZERO);
    }
}
