//! epoll(7).

use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use pc_image::{EpollState, EpollTarget, FdTable};
use pc_trace::Call;

use crate::error::{Context, RebuildError, missing};
use crate::newborn::Newborn;

/// An epoll instance that watches nothing yet.
pub fn build() -> Result<OwnedFd, RebuildError> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).what("making an epoll instance")?.0)
}

/// Adds what it watches, in the husk, where it is known by its numbers there.
pub fn finish(
    newborn: &mut Newborn,
    table: &FdTable,
    fd: u64,
    state: &EpollState,
) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    for group in state.targets.chunks(1000) {
        let mut calls = Vec::new();
        for target in group {
            calls.extend(add(newborn, table, fd, target)?);
        }
        newborn.husk.batch_ok(pid, &calls).what("adding to an epoll instance")?;
        newborn.husk.reset();
    }
    Ok(())
}

/// A file that was added under a number that is free or another's today is put there for as long as it takes.
fn add(
    newborn: &mut Newborn,
    table: &FdTable,
    epoll: u64,
    target: &EpollTarget,
) -> Result<Vec<Call>, RebuildError> {
    let mut event = [0u8; 12];
    event[..4].copy_from_slice(&target.events.to_le_bytes());
    event[4..].copy_from_slice(&target.data.to_le_bytes());
    let event = newborn.husk.put(&event)?;
    let number = u64::from(target.fd);
    let add = Call::new(libc::SYS_epoll_ctl, [epoll, libc::EPOLL_CTL_ADD as u64, number, event]);
    let now = table.fds.iter().find(|fd| fd.fd == target.fd);
    if now.is_some_and(|fd| fd.file == target.file) {
        return Ok(vec![add]);
    }
    let elsewhere = table.fds.iter().find(|fd| fd.file == target.file);
    let from = u64::from(elsewhere.ok_or_else(|| missing("the watched open file", target.file.0))?.fd);
    let there = Call::new(libc::SYS_dup3, [from, number, libc::O_CLOEXEC as u64]);
    match now {
        None => Ok(vec![there, add, Call::new(libc::SYS_close, [number])]),
        Some(fd) => {
            let call = Call::new(libc::SYS_fcntl, [number, libc::F_DUPFD_CLOEXEC as u64, 0]);
            let aside = newborn.husk.call(newborn.husk.pid(), call).what("adding to an epoll instance")?;
            let flag = if fd.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            let back = Call::new(libc::SYS_dup3, [aside, number, flag]);
            Ok(vec![there, add, back, Call::new(libc::SYS_close, [aside])])
        }
    }
}
