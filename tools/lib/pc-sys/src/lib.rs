//! Typed wrappers for Linux kernel calls that nix and procfs lack: ptrace register sets, process memory,
//! userfaultfd, PAGEMAP_SCAN, clone3, pidfd_getfd.
//!
//! One module for each area of the kernel, functions named as in the man pages. With `pc-trace` this is the only crate
//! that may use `unsafe`; each block argues why it is sound.

pub mod birth;
pub mod clone;
pub mod cpu;
pub mod datagram;
pub mod epoll;
pub mod fcntl;
pub mod ids;
pub mod inet_diag;
pub mod kcmp;
pub mod mem;
pub mod multicast;
pub mod netlink;
pub mod nftables;
mod packet;
pub mod pagemap;
pub mod pidfd;
pub mod prctl;
pub mod ptrace;
pub mod sched;
pub mod sem;
pub mod shm;
pub mod signalfd;
pub mod sockopt;
pub mod startup;
pub mod tcp_repair;
pub mod tcp_segment;
pub mod timerfd;
pub mod udp_datagram;
pub mod uffd;
pub mod witness;

use std::io;

/// Decodes the return value of a libc call that gives -1 and sets `errno`.
pub(crate) fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret == -1 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}
