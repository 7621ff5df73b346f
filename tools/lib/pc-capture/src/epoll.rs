//! epoll(7).

use std::collections::HashMap;

use pc_image::{EpollState, EpollTarget, OpenFileId, OpenFileKind};
use pc_sys::kcmp;

use crate::error::Result;
use crate::openfile::{Descriptor, Fds};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor, all: &[Descriptor]) -> Result<OpenFileKind> {
    let mut targets = Vec::with_capacity(d.info.watches.len());
    // Files added under the same number, one after the other was closed, are told apart by their order.
    let mut seen: HashMap<u32, u32> = HashMap::new();
    for watch in &d.info.watches {
        let nth = seen.entry(watch.fd).or_default();
        let Some(file) = watched(fds.pid, d.fd, watch.fd, *nth, all) else {
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

/// The file that is watched: as a rule still open under the number by which it was added.
fn watched(pid: i32, epfd: i32, tfd: u32, nth: u32, all: &[Descriptor]) -> Option<OpenFileId> {
    let by_number = all.iter().filter(|d| d.fd == tfd as i32);
    let others = all.iter().filter(|d| d.fd != tfd as i32);
    by_number
        .chain(others)
        .find(|d| kcmp::kcmp_epoll_tfd(pid, d.fd, epfd, tfd, nth).unwrap_or(false))
        .map(|d| d.file)
}
