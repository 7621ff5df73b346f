//! timerfd_create(2).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use pc_image as image;
use pc_trace::Call;

use crate::error::{Context, RebuildError};
use crate::fdtable::words;
use crate::newborn::Newborn;

/// A timerfd that has as much time left as it had.
pub fn build(timer: &image::TimerFd) -> Result<OwnedFd, RebuildError> {
    let clock = match timer.clock {
        libc::CLOCK_REALTIME => ClockId::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC => ClockId::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME => ClockId::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM => ClockId::CLOCK_REALTIME_ALARM,
        libc::CLOCK_BOOTTIME_ALARM => ClockId::CLOCK_BOOTTIME_ALARM,
        other => return Err(RebuildError::Unsupported(format!("a timerfd of clock {other}"))),
    };
    let made = TimerFd::new(clock, TimerFlags::TFD_CLOEXEC).what("making a timerfd")?;
    if timer.value > 0 {
        let mut flags = TimerSetTimeFlags::from_bits_retain(timer.settime_flags as i32);
        let mut start = Duration::from_nanos(timer.value);
        let on_wall = matches!(timer.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        if on_wall && flags.contains(TimerSetTimeFlags::TFD_TIMER_ABSTIME) {
            // Only the wall clock can be set, so only there does it matter that the time is a date.
            let now = clock_gettime(nix::time::ClockId::CLOCK_REALTIME).what("reading the clock")?;
            start += Duration::from(now);
        } else {
            flags = TimerSetTimeFlags::empty();
        }
        let start = TimeSpec::from(start);
        let expiration = match timer.interval {
            0 => Expiration::OneShot(start),
            interval => Expiration::IntervalDelayed(start, TimeSpec::from(Duration::from_nanos(interval))),
        };
        made.set(expiration, flags).what("arming a timerfd")?;
    }
    made.as_fd().try_clone_to_owned().what("making a timerfd")
}

/// Expirations that were not read yet.
pub fn finish(newborn: &mut Newborn, fd: u64, timer: &image::TimerFd) -> Result<Option<Call>, RebuildError> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    if timer.ticks == 0 {
        return Ok(None);
    }
    let ticks = newborn.husk.put(&words(&[timer.ticks]))?;
    Ok(Some(Call::new(libc::SYS_ioctl, [fd, TFD_IOC_SET_TICKS, ticks])))
}
