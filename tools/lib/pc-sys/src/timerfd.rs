//! timerfd_create(2), on a timer that is somebody else's too.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Time left until the next expiration and the interval after it, in nanoseconds; 0 left if it is not armed. Asking
/// winds up an interval timer whose expiration nobody has read (`do_timerfd_gettime`, fs/timerfd.c).
pub fn timerfd_gettime(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut time = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the kernel writes one itimerspec.
    if unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let nanos = |t: libc::timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    Ok((nanos(time.it_value), nanos(time.it_interval)))
}
