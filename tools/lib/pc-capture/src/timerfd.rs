//! timerfd_create(2).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pc_image::{OpenFileKind, TimerFd};
use pc_sys::timerfd::timerfd_gettime;

use crate::error::{Context, Result};
use crate::openfile::{Descriptor, Fds};
use crate::procfs::FdInfo;

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    let Some(timer) = &d.info.timer else {
        return fds.refuse(d, "a timerfd whose time this kernel does not tell".to_owned());
    };
    let mut found = TimerFd {
        clock: timer.clock,
        settime_flags: timer.settime_flags,
        ticks: timer.ticks,
        value: timer.value,
        interval: timer.interval,
    };
    if fds.stopped && timer.value == 0 {
        wind(fds, d, &mut found)?;
    }
    Ok(OpenFileKind::Timer(found))
}

/// How long an expiration that is due may take to come.
const DUE: Duration = Duration::from_micros(200);
/// The same where there is an interval, which a timer that was disarmed hardly ever has: it may well take longer on a busy machine.
const DUE_AGAIN: Duration = Duration::from_millis(20);

/// A timer with no time left is disarmed, or has expired, or is to expire this very moment, which only a while tells.
/// An interval timer whose expiration nobody has read stands still until somebody asks for it: timerfd_gettime(2) counts
/// what has expired since and winds it up again, as reading it would.
fn wind(fds: &Fds<'_>, d: &Descriptor, found: &mut TimerFd) -> Result<()> {
    let what = "asking for a timerfd's time";
    let timer = fds.take(d.fd)?;
    let patience = if found.interval == 0 { DUE } else { DUE_AGAIN };
    let began = Instant::now();
    loop {
        // Before the time is read: we may be kept waiting right after that.
        let late = began.elapsed() > patience;
        (found.value, _) = timerfd_gettime(timer.as_fd()).of(fds.pid, what)?;
        let now = FdInfo::read(fds.pid, d.fd).of(fds.pid, what)?;
        found.ticks = now.timer.map_or(found.ticks, |timer| timer.ticks);
        let told = found.value != 0 || (found.ticks != 0 && found.interval == 0);
        if told || late {
            return Ok(());
        }
        std::thread::yield_now();
    }
}
