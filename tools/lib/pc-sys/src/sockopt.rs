//! getsockopt(2) and setsockopt(2) with values as bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// The value of an option; `max` bytes of room are offered to the kernel.
pub fn getsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, max: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; max];
    let mut len = max as libc::socklen_t;
    let room = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes to `value` and tells how many.
    let ret = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, room, &mut len) };
    check(ret.into())?;
    value.truncate(len as usize);
    Ok(value)
}

/// The value of an option that is an integer.
pub fn getsockopt_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let value = getsockopt(fd, level, name, 4)?;
    let bytes = value.try_into().map_err(|_| io::Error::other("a socket option of another length"))?;
    Ok(i32::from_ne_bytes(bytes))
}

/// The network namespace of a socket (`SIOCGSKNS`).
pub fn network_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: the request takes no argument, and gives a new descriptor.
    let namespace = check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS) }.into())?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace as i32) })
}

/// Sets an option.
pub fn setsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) }.into())
        .map(drop)
}
