//! epoll(7).

use std::fs;
use std::os::fd::OwnedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use pc_image::{EpollState, EpollTarget, FdTable, OpenFileKind, rules};
use pc_trace::Call;

use crate::error::{Context, RebuildError, missing};
use crate::image::Image;
use crate::newborn::Newborn;
use crate::settings::Notices;

/// An epoll instance that watches nothing yet.
pub fn build() -> Result<OwnedFd, RebuildError> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).what("making an epoll instance")?.0)
}

/// Adds what it watches, in the husk, where it is known by its numbers there.
pub fn finish(
    newborn: &mut Newborn,
    image: &Image,
    table: &FdTable,
    fd: u64,
    state: &EpollState,
) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    // Those first, as nothing else is to be reported yet.
    let used_up = |target: &&EpollTarget| rules::is_used_up(target.events);
    for target in state.targets.iter().filter(used_up) {
        add_used_up(newborn, image, table, fd, target)?;
    }
    let others: Vec<_> = state.targets.iter().filter(|target| !used_up(target)).collect();
    for group in others.chunks(1000) {
        let mut calls = Vec::new();
        for target in group {
            calls.extend(add(newborn, table, fd, target)?);
        }
        newborn.husk.batch_ok(pid, &calls).what("adding to an epoll instance")?;
        newborn.husk.reset();
    }
    Ok(())
}

/// Says so if watches do not keep this machine from suspending as they did: the kernel drops `EPOLLWAKEUP` without a word where
/// we lack CAP_BLOCK_SUSPEND (in the first user namespace), or where it cannot suspend (epoll_ctl(2)).
pub fn see_it_keep_awake(
    pid: i32,
    fd: u64,
    state: &EpollState,
    notices: Notices<'_>,
) -> Result<(), RebuildError> {
    const EPOLLWAKEUP: u32 = 1 << 29;
    let due = state.targets.iter().filter(|target| target.events & EPOLLWAKEUP != 0).count();
    if due == 0 {
        return Ok(());
    }
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).what("looking at an epoll instance")?;
    let kept = text.lines().filter_map(events).filter(|events| events & EPOLLWAKEUP != 0).count();
    if kept < due {
        notices(&format!(
            "descriptor {fd} (epoll) does not keep this machine from suspending, as EPOLLWAKEUP of what it watches \
             is dropped: that needs CAP_BLOCK_SUSPEND and a kernel that suspends"
        ));
    }
    Ok(())
}

/// The events of a line `tfd:        5 events: 20000001 data:                5  pos:0 ino:1 sdev:1`.
fn events(line: &str) -> Option<u32> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace().skip_while(|word| *word != "events:");
    u32::from_str_radix(words.nth(1)?, 16).ok()
}

/// Adds a file that was watched once and has been reported: the kernel takes the events out of a mask only when it reports
/// one, so there has to be one. Of the reading end of an empty pipe that is a byte, which is read again.
fn add_used_up(
    newborn: &mut Newborn,
    image: &Image,
    table: &FdTable,
    epoll: u64,
    target: &EpollTarget,
) -> Result<(), RebuildError> {
    const EPOLLIN_PRI_OUT: u32 = 0x7;
    let pid = newborn.husk.pid();
    let armed = EpollTarget { events: target.events | EPOLLIN_PRI_OUT, ..target.clone() };
    let room = newborn.husk.space(16)?;
    let mut calls = Vec::new();
    let pipe = empty_pipe(image, table, target);
    calls.extend(pipe.map(|(_, to)| Call::new(libc::SYS_write, [to, room, 1])));
    calls.extend(add(newborn, table, epoll, &armed)?);
    calls.push(Call::new(libc::SYS_epoll_wait, [epoll, room, 1, 0]));
    let waited = calls.len() - 1;
    calls.extend(pipe.map(|(from, _)| Call::new(libc::SYS_read, [from, room, 1])));
    let results = newborn.husk.batch_ok(pid, &calls).what("adding to an epoll instance")?;
    newborn.husk.reset();
    if results.get(waited) == Some(&1) {
        return Ok(());
    }
    Err(RebuildError::Unsupported(format!(
        "an epoll instance whose watch of descriptor {} is used up (EPOLLONESHOT), and of which nothing is to be reported",
        target.fd
    )))
}

/// Descriptors of both ends, if this is the reading end of a pipe with nothing in it.
fn empty_pipe(image: &Image, table: &FdTable, target: &EpollTarget) -> Option<(u64, u64)> {
    let end = |file| match &image.open_files.get(&file)?.kind {
        OpenFileKind::Pipe(end) => Some(end),
        _ => None,
    };
    let own = end(target.file)?;
    let reads = |file| image.open_files.get(&file).is_some_and(|open| open.flags & 3 == 0);
    let ends = || table.fds.iter().filter(|fd| end(fd.file).is_some_and(|end| end.pipe == own.pipe));
    if !reads(target.file) || ends().any(|fd| end(fd.file).is_some_and(|end| !end.content.is_empty())) {
        return None;
    }
    let from = ends().find(|fd| reads(fd.file))?;
    let to = ends().find(|fd| !reads(fd.file))?;
    Some((from.fd.into(), to.fd.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_read_with_its_events() {
        let line = "tfd:        5 events: 20000001 data:                5  pos:0 ino:2a sdev:1";
        assert_eq!(events(line), Some(0x2000_0001));
        assert_eq!(events("flags:\t02"), None);
    }
}
