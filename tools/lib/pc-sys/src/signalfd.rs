//! signalfd(2) with a mask that may hold real-time signals.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::check;

/// A descriptor that accepts the signals of `mask` (bit 0 = signal 1), close-on-exec.
pub fn signalfd(mask: u64) -> io::Result<OwnedFd> {
    let at = std::ptr::from_ref(&mask);
    // SAFETY: the kernel reads 8 bytes at `at`, which live across the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, at, 8, libc::SFD_CLOEXEC) })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
