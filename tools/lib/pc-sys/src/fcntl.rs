//! fcntl(2) and ioctl(2): the commands that nix lacks.

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

/// Makes all descriptors from this number on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with this flag closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// A close-on-exec duplicate of the descriptor with this number; `EBADF` where there is none.
pub fn duplicate(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer.
    let fd = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) }.into())?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Bytes written to a pipe or socket that have not left it for its reader or the network; 0 for anything else, and where
/// nobody is left to take them (a pipe without a reader keeps them for ever).
pub fn queued(fd: BorrowedFd<'_>) -> u64 {
    if is_deserted(fd) {
        return 0;
    }
    // SAFETY: all-zero bytes are a valid `stat`, which the kernel then fills.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable.
    let known = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } == 0;
    let request = match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO if known => libc::FIONREAD,
        libc::S_IFSOCK if known => libc::TIOCOUTQ, // the same as SIOCOUTQ: tcp(7), unix(7)
        _ => return 0,
    };
    let mut bytes = 0i32;
    // SAFETY: both requests write an int to their argument.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut bytes) } == 0;
    if asked { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Bytes that wait in a pipe or socket to be read (`FIONREAD`).
pub fn unread(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes = 0i32;
    // SAFETY: the request writes an int to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }.into())?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Whether the other side is gone. poll(2): POLLERR is set for the write end of a pipe when the read end has been closed.
fn is_deserted(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, which the kernel fills; it does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_waits_in_pipes_and_sockets_is_told_and_files_have_no_queue() {
        let (reader, mut pipe) = io::pipe().unwrap();
        pipe.write_all(&[0; 100]).unwrap();
        assert_eq!(queued(pipe.as_fd()), 100);
        drop(reader);
        assert_eq!(queued(pipe.as_fd()), 0, "nobody will take it");
        let (mut socket, _peer) = UnixStream::pair().unwrap();
        socket.write_all(&[0; 100]).unwrap();
        assert!(queued(socket.as_fd()) >= 100);
        assert_eq!(queued(std::fs::File::open("/proc/self/exe").unwrap().as_fd()), 0);
    }
}
