//! kcmp(2): whether two processes (or descriptors) share a kernel object.

use std::cmp::Ordering;
use std::io;

use crate::check;

const KCMP_FILE: i32 = 0;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// `struct kcmp_epoll_slot`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

fn ordering(ret: libc::c_long) -> io::Result<Ordering> {
    match check(ret)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(io::Error::other("kcmp could not order the two")),
    }
}

/// What tasks may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The table of descriptors (`CLONE_FILES`).
    Files,
    /// Working directory, root directory and umask (`CLONE_FS`).
    Fs,
    /// The list of System V semaphores to be undone (`CLONE_SYSVSEM`).
    SysVSem,
}

/// Compares what two tasks (processes or threads) have. Both have none: they are equal.
pub fn kcmp(a: i32, b: i32, resource: Resource) -> io::Result<Ordering> {
    let kind = match resource {
        Resource::Files => KCMP_FILES,
        Resource::Fs => KCMP_FS,
        Resource::SysVSem => KCMP_SYSVSEM,
    };
    // SAFETY: kcmp with these kinds takes three integers and touches no memory.
    ordering(unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, 0, 0) })
}

/// Compares the open file descriptions behind two descriptors: a total order, so that many can be sorted.
pub fn kcmp_file(a: (i32, i32), b: (i32, i32)) -> io::Result<Ordering> {
    // SAFETY: kcmp with KCMP_FILE takes five integers and touches no memory.
    ordering(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILE, a.1 as u64, b.1 as u64) })
}

/// Whether descriptor `fd` of `pid` is the file that the epoll instance `epfd` of the same process watches under the
/// number `tfd`; `nth` tells apart files that were added under the same number.
pub fn kcmp_epoll_tfd(pid: i32, fd: i32, epfd: i32, tfd: u32, nth: u32) -> io::Result<bool> {
    let slot = EpollSlot { efd: epfd as u32, tfd, toff: nth };
    let slot_at = std::ptr::from_ref(&slot) as u64;
    // SAFETY: the last argument points at a `kcmp_epoll_slot`, which is only read.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd as u64, slot_at) };
    ordering(ret).map(|o| o == Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_is_the_same_description_and_a_second_open_is_not() {
        let pid = std::process::id() as i32;
        let a = File::open("/dev/null").unwrap();
        let b = a.try_clone().unwrap();
        let c = File::open("/dev/null").unwrap();
        let cmp = |x: &File, y: &File| kcmp_file((pid, x.as_raw_fd()), (pid, y.as_raw_fd())).unwrap();
        assert_eq!(cmp(&a, &b), Ordering::Equal);
        assert_ne!(cmp(&a, &c), Ordering::Equal);
        assert_eq!(cmp(&a, &c), cmp(&c, &a).reverse());
    }
}
