//! epoll(7).

use std::collections::HashMap;

use pc_image::{EpollState, EpollTarget, OpenFileId, OpenFileKind};
use pc_sys::kcmp;

use crate::error::Result;
use crate::openfile::{Descriptor, Fds, descriptors};
use crate::procfs::{FdInfo, WatchInfo};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor, all: &[Descriptor]) -> Result<OpenFileKind> {
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
        targets.push(EpollTarget { fd: watch.fd, file, events: watch.events, data: watch.data });
    }
    Ok(OpenFileKind::Epoll(EpollState { targets }))
}

/// Whether what a running process watches has just come or gone: the list of descriptors is older than that of the watches.
fn came_or_went(pid: i32, epfd: i32, watch: &WatchInfo) -> bool {
    const LOOKS: usize = 20;
    (0..LOOKS).any(|_| {
        let (now, info) = (descriptors(pid, false), FdInfo::read(pid, epfd));
        let open = |d: &Descriptor| d.fd == watch.fd as i32;
        let known =
            now.is_ok_and(|now| now.iter().any(open) || watched(pid, epfd, watch.fd, 0, &now).is_some());
        known || !info.is_ok_and(|info| info.watches.contains(watch))
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
