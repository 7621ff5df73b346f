//! fcntl(2): the commands that nix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerEx {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: i32,
    /// The id, as this process's pid namespace sees it; 0 = none.
    pub pid: i32,
}

/// Who gets the signals of signal-driven I/O.
pub fn getown_ex(fd: BorrowedFd<'_>) -> io::Result<OwnerEx> {
    let mut owner = OwnerEx::default();
    // SAFETY: F_GETOWN_EX writes a `f_owner_ex` to its argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &mut owner) }.into())?;
    Ok(owner)
}

/// The signal of signal-driven I/O, 0 = SIGIO.
pub fn getsig(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GETSIG takes no argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) }.into()).map(|s| s as i32)
}

/// A close-on-exec duplicate of the descriptor with this number; `EBADF` where there is none.
pub fn duplicate(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer.
    let fd = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) }.into())?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
