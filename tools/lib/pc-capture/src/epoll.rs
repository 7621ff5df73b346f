//! epoll(7).

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use pc_image::{EpollState, EpollTarget, OpenFileId, OpenFileKind, rules};
use pc_sys::kcmp;
use pc_sys::sockopt::getsockopt_int;

use crate::error::Result;
use crate::openfile::{Descriptor, Fds, descriptors};
use crate::procfs::{FdInfo, WatchInfo};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor, all: &[Descriptor]) -> Result<OpenFileKind> {
    let epoll = fds.take(d.fd)?;
    if pc_sys::epoll::has_params(epoll.as_fd()) {
        let what = "an epoll instance that polls busily (EPIOCSPARAMS), which cannot be moved yet";
        return fds.refuse(d, what.to_owned());
    }
    let mut targets = Vec::with_capacity(d.info.watches.len());
    // Files added under the same number, one after the other was closed, are told apart by their order.
    let mut seen: HashMap<u32, u32> = HashMap::new();
    for watch in &d.info.watches {
        let nth = seen.entry(watch.fd).or_default();
        let Some(file) = watched(fds.pid, d.fd, watch.fd, *nth, all) else {
            if !fds.stopped && came_or_went(fds.pid, d.fd, watch) {
                continue; // at the stop all of it is looked at anew
            }
            let what = format!(
                "an epoll instance that watches a file (added as {}) which no descriptor refers to any more, which cannot be moved yet",
                watch.fd
            );
            return fds.refuse(d, what);
        };
        *nth += 1;
        if rules::is_used_up(watch.events) && fds.stopped && !can_report(fds, file, all)? {
            let what = format!(
                "an epoll instance whose watch of descriptor {} is used up (EPOLLONESHOT), which cannot be moved yet \
                 where nothing is to be reported of it",
                watch.fd
            );
            return fds.refuse(d, what);
        }
        targets.push(EpollTarget { fd: watch.fd, file, events: watch.events, data: watch.data });
    }
    Ok(OpenFileKind::Epoll(EpollState { targets }))
}

/// Whether there is something to report of a file, once it is made anew: then a watch can be used up again. A listening
/// socket does not listen yet by then, which is reported, and an empty pipe is written to and read.
fn can_report(fds: &Fds<'_>, file: OpenFileId, all: &[Descriptor]) -> Result<bool> {
    let Some(target) = all.iter().find(|d| d.file == file) else { return Ok(false) };
    let open = fds.take(target.fd)?;
    let kind = target.meta.file_type();
    let ready = || {
        let mut poll =
            [PollFd::new(open.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    let listens =
        || getsockopt_int(open.as_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|on| on == 1);
    Ok(match target.link.as_slice() {
        b"anon_inode:[eventfd]" => true,
        _ if kind.is_socket() => listens() || ready(),
        _ if kind.is_fifo() => fds.pipes.is_inside(target, fds.outside) && (target.reads() || ready()),
        _ => false,
    })
}

/// Whether what a running process watches has just come or gone: the list of descriptors is older than that of the watches.
fn came_or_went(pid: i32, epfd: i32, watch: &WatchInfo) -> bool {
    const LOOKS: usize = 20;
    // Of the number alone, which takes a few microseconds: what comes and goes is not there for longer.
    const GLANCES: usize = 50;
    let is_there = || kcmp::kcmp_epoll_tfd(pid, watch.fd as i32, epfd, watch.fd, 0).unwrap_or(false);
    let is_watched = || FdInfo::read(pid, epfd).is_ok_and(|info| info.watches.contains(watch));
    (0..LOOKS).any(|_| {
        let now = descriptors(pid, false);
        (0..GLANCES).any(|_| is_there() || !is_watched())
            || now.is_ok_and(|now| watched(pid, epfd, watch.fd, 0, &now).is_some())
    })
}

/// The file that is watched: as a rule still open under the number by which it was added.
fn watched(pid: i32, epfd: i32, tfd: u32, nth: u32, all: &[Descriptor]) -> Option<OpenFileId> {
    let by_number = all.iter().filter(|d| d.fd == tfd as i32);
    let others = all.iter().filter(|d| d.fd != tfd as i32);
    by_number
        .chain(others)
        .find(|d| kcmp::kcmp_epoll_tfd(pid, d.fd, epfd, tfd, nth).unwrap_or(false))
        .map(|d| d.file)
}
