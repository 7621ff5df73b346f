//! timerfd_create(2).

use bincode::{Decode, Encode};

/// A timerfd.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TimerFd {
    /// Clock id.
    pub clock: i32,
    /// `TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET` as it was armed.
    pub settime_flags: u32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// Nanoseconds left; 0 = disarmed (or, with `ticks` > 0 and no interval, expired).
    pub value: u64,
    /// Interval in nanoseconds.
    pub interval: u64,
}
