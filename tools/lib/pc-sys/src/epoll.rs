//! epoll(7): what nix lacks.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct epoll_params` (include/uapi/linux/eventpoll.h).
#[repr(C)]
#[derive(Debug, Default)]
struct EpollParams {
    busy_poll_usecs: u32,
    busy_poll_budget: u16,
    prefer_busy_poll: u8,
    pad: u8,
}

const _: () = assert!(size_of::<EpollParams>() == 8);
/// `_IOR(0x8A, 0x02, struct epoll_params)`.
const EPIOCGPARAMS: libc::c_ulong = 0x8008_8a02;

/// Whether an instance was set to poll busily; no before Linux 6.9, which has no such parameters.
pub fn has_params(epoll: BorrowedFd<'_>) -> bool {
    let mut params = EpollParams::default();
    // SAFETY: EPIOCGPARAMS writes an `epoll_params` to its argument.
    let asked = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCGPARAMS, &raw mut params) } == 0;
    asked && (params.busy_poll_usecs != 0 || params.busy_poll_budget != 0 || params.prefer_busy_poll != 0)
}
