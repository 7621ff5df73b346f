//! timerfd_create(2).

use pc_image::{OpenFileKind, TimerFd};

use crate::error::Result;
use crate::openfile::{Descriptor, Fds};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    match &d.info.timer {
        Some(timer) => Ok(OpenFileKind::Timer(TimerFd {
            clock: timer.clock,
            settime_flags: timer.settime_flags,
            ticks: timer.ticks,
            value: timer.value,
            interval: timer.interval,
        })),
        None => fds.refuse(d, "a timerfd whose time this kernel does not tell".to_owned()),
    }
}
