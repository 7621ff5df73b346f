//! The table of descriptors: everything is opened here, sent over, and put under its number.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pc_image::{FdTable, OpenFileId};
use pc_sys::birth::HUSK_SOCKET;
use pc_sys::pidfd;
use pc_trace::Call;

use crate::error::{Context, RebuildError, missing};
use crate::newborn::Newborn;

/// Descriptors that fit in one message (`SCM_MAX_FD`).
const PER_MESSAGE: usize = 253;
const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
const CMSG_HEADER: usize = 16;

/// Descriptors by the open file that they stand for.
pub type Built = BTreeMap<OpenFileId, OwnedFd>;

/// Sends descriptors into the husk and gives their numbers there. They are closed on exec.
pub fn send<'a>(
    newborn: &mut Newborn,
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<Vec<i32>, RebuildError> {
    let raw: Vec<i32> = fds.map(|fd| fd.as_raw_fd()).collect();
    let mut numbers = Vec::with_capacity(raw.len());
    for group in raw.chunks(PER_MESSAGE) {
        let rights = [ControlMessage::ScmRights(group)];
        let sent = sendmsg::<()>(
            newborn.socket.as_raw_fd(),
            &[IoSlice::new(b"f")],
            &rights,
            MsgFlags::empty(),
            None,
        );
        sent.what("sending descriptors")?;
        numbers.extend(receive(newborn, group.len())?);
    }
    Ok(numbers)
}

/// Makes the husk receive one message with `count` descriptors.
fn receive(newborn: &mut Newborn, count: usize) -> Result<Vec<i32>, RebuildError> {
    let (pid, socket) = (newborn.husk.pid(), newborn.husk_socket as u64);
    let husk = &mut newborn.husk;
    let control_len = CMSG_HEADER + (count * 4).next_multiple_of(8);
    let byte = husk.space(8)?;
    let control = husk.space(control_len)?;
    let iov = husk.put(&words(&[byte, 1]))?;
    let header = husk.put(&words(&[0, 0, iov, 1, control, control_len as u64, 0]))?;
    husk.call(pid, Call::new(libc::SYS_recvmsg, [socket, header, MSG_CMSG_CLOEXEC]))
        .what("receiving descriptors")?;
    let mut bytes = vec![0u8; CMSG_HEADER + count * 4];
    husk.read(control, &mut bytes)?;
    husk.reset();
    let got = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default()) as usize;
    if got != bytes.len() {
        return Err(RebuildError::Unsupported(
            "the limit of open files (RLIMIT_NOFILE) is too low here".into(),
        ));
    }
    let number = |b: &[u8]| i32::from_le_bytes(b.try_into().unwrap_or_default());
    Ok(bytes[CMSG_HEADER..].chunks_exact(4).map(number).collect())
}

/// A channel into a husk that has its descriptors: until its end is closed, that has the lowest free number.
pub fn another_channel(newborn: &mut Newborn) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
    let pair = newborn.husk.space(8)?;
    let call = Call::new(libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, pair]);
    newborn.husk.call(pid, call).what("making a socket pair in the process")?;
    let mut ends = [0u8; 8];
    newborn.husk.read(pair, &mut ends)?;
    newborn.husk.reset();
    let end = |at: usize| i32::from_le_bytes([ends[at], ends[at + 1], ends[at + 2], ends[at + 3]]);
    let process = pidfd::pidfd_open(pid).what("taking a socket out of the process")?;
    newborn.socket =
        pidfd::pidfd_getfd(process.as_fd(), end(4)).what("taking a socket out of the process")?;
    newborn.husk_socket = end(0);
    newborn.husk.call(pid, Call::new(libc::SYS_close, [end(4) as u64]))?;
    Ok(())
}

/// Words as they lie in memory.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Puts every descriptor of a table under its number. The socket is closed: it was the last to come.
pub fn install(newborn: &mut Newborn, table: &FdTable, built: &Built) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    raise_limit(newborn, table)?;
    clear_the_way(newborn, table.fds.len())?;
    let mut files = Vec::with_capacity(table.fds.len());
    for fd in &table.fds {
        files.push(built.get(&fd.file).ok_or_else(|| missing("open file", fd.file.0))?.as_fd());
    }
    let received = send(newborn, files.into_iter())?;
    let mut calls = vec![Call::new(libc::SYS_close_range, [received.len() as u64, u64::from(u32::MAX), 0])];
    // Received in ascending order from 0 on, wanted in ascending order: from the last on, none is overwritten early.
    for (fd, from) in table.fds.iter().zip(&received).rev() {
        let to = u64::from(fd.fd);
        if *from as u64 == to {
            let flag = if fd.cloexec { libc::FD_CLOEXEC as u64 } else { 0 };
            calls.push(Call::new(libc::SYS_fcntl, [to, libc::F_SETFD as u64, flag]));
        } else {
            let flag = if fd.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            calls.push(Call::new(libc::SYS_dup3, [*from as u64, to, flag]));
        }
    }
    let wanted: std::collections::BTreeSet<i32> = table.fds.iter().map(|fd| fd.fd as i32).collect();
    let left = received.iter().filter(|from| !wanted.contains(from));
    calls.extend(left.map(|from| Call::new(libc::SYS_close, [*from as u64])));
    if received.iter().enumerate().any(|(i, fd)| i != *fd as usize) {
        return Err(RebuildError::Contradiction("descriptors came under other numbers than expected".into()));
    }
    newborn.husk.batch_ok(pid, &calls).what("putting descriptors in place")?;
    Ok(())
}

/// The limit of open files holds for dup3(2) too; the final limit is set at the end.
fn raise_limit(newborn: &mut Newborn, table: &FdTable) -> Result<(), RebuildError> {
    let highest = table.fds.iter().map(|fd| u64::from(fd.fd)).max().unwrap_or(0);
    let needed = (highest + 1).max(HUSK_SOCKET as u64 + table.fds.len() as u64 + 2);
    if needed <= newborn.open_files {
        return Ok(());
    }
    let limit = newborn.husk.put(&words(&[needed, needed]))?;
    let call = Call::new(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as u64, limit, 0]);
    newborn
        .husk
        .call(newborn.husk.pid(), call)
        .what_of(|| format!("raising the limit of open files to {needed}"))?;
    newborn.husk.reset();
    Ok(())
}

/// Moves the husk's socket after the numbers under which `count` descriptors will come.
fn clear_the_way(newborn: &mut Newborn, count: usize) -> Result<(), RebuildError> {
    if count <= newborn.husk_socket as usize {
        return Ok(());
    }
    let args = [newborn.husk_socket as u64, libc::F_DUPFD_CLOEXEC as u64, count as u64];
    let moved = newborn.husk.call(newborn.husk.pid(), Call::new(libc::SYS_fcntl, args));
    let old = newborn.husk_socket;
    newborn.husk_socket = moved.what("moving the socket aside")? as i32;
    newborn.husk.call(newborn.husk.pid(), Call::new(libc::SYS_close, [old as u64]))?;
    Ok(())
}
