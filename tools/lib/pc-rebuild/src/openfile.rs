//! Open files: each is made here by its kind, and finished in the husk.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pc_image::{FdTable, Inet, OpenFile, OpenFileId, OpenFileKind, SockOpt, SocketState};
use pc_sys::ids;
use pc_trace::Call;
use socket2::Socket;

use crate::creds;
use crate::early::Early;
use crate::error::{Context, RebuildError};
use crate::fdtable::{Built, words};
use crate::image::Image;
use crate::newborn::{self, Newborn};
use crate::settings::{Notices, OnReady, Settings};
use crate::socket::{Delivery, set_option};
use crate::tcp::{Connections, Rules};
use crate::{epoll, eventfd, external, inet, namespace, pipe, regular, shm, signalfd, timerfd, unix};

/// What is left to be done when the process is about to run, and taken back if it never does.
#[derive(Debug, Default)]
pub struct AtRelease {
    /// Bound sockets that are to listen.
    pub listen: Vec<Listening>,
    /// UDP sockets with datagrams that are to wait in them.
    pub deliveries: Vec<Delivery>,
    /// TCP connections that are to go on.
    pub connections: Connections,
    /// Socket files that binding made; removed on drop.
    pub socket_files: Vec<std::path::PathBuf>,
}

/// A bound socket that is to listen.
#[derive(Debug)]
pub struct Listening {
    pub socket: Socket,
    pub backlog: u32,
    /// Options that it has when it does.
    pub own: Vec<SockOpt>,
}

impl AtRelease {
    fn of(connections: Connections) -> Self {
        Self { listen: Vec::new(), deliveries: Vec::new(), connections, socket_files: Vec::new() }
    }

    /// Everything is built: the caller does what it wants to, and the addresses are to be there. Gives the time of the
    /// caller's part.
    pub fn ready(&self, settings: &Settings, pid: i32) -> Result<Duration, RebuildError> {
        let began = Instant::now();
        if let Some(OnReady(ready)) = &settings.on_ready {
            ready(pid).map_err(RebuildError::NotReady)?;
        }
        let time = began.elapsed();
        namespace::in_network(&settings.join, || self.connections.await_addresses())?;
        Ok(time)
    }

    /// Sockets begin to listen, with the ids of process `pid`: clients of Unix sockets see them (`SO_PEERCRED`).
    pub fn listen(&mut self, pid: i32) -> Result<(), RebuildError> {
        let all = || {
            let listen = |it: &Listening| it.socket.listen(i32::try_from(it.backlog).unwrap_or(i32::MAX));
            self.listen.iter().try_for_each(listen)
        };
        if !self.listen.is_empty() {
            let (own, ids) = (creds::effective(std::process::id() as i32)?, creds::effective(pid)?);
            if own == ids { all() } else { ids::with(&ids, all) }.what("listening")?;
        }
        // When all of them do, as some may share a port.
        for Listening { socket, own, .. } in self.listen.drain(..) {
            own.iter().try_for_each(|option| set_option(&socket, option))?;
        }
        self.deliveries.drain(..).try_for_each(|delivery| delivery.finish())
    }

    /// The process runs: what was made is its own.
    pub fn done(mut self) -> Rules {
        self.socket_files.clear();
        self.connections.done()
    }
}

impl Drop for AtRelease {
    fn drop(&mut self) {
        for path in &self.socket_files {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Status flags that fcntl(2) `F_SETFL` can set.
const SETTABLE: i32 = libc::O_APPEND | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

/// Makes every open file of the image.
pub fn build_all(
    image: &Image,
    early: &mut Early,
    settings: &Settings,
    connections: Connections,
    notices: Notices<'_>,
) -> Result<(Built, AtRelease), RebuildError> {
    let mut built = Built::new();
    let mut later = AtRelease::of(connections);
    let none = SocketState::none(OpenFileId(0));
    let sockets = inet_sockets(image);
    newborn::make_room_for_descriptors(descriptors_needed(image))?;
    sockets.iter().try_for_each(|inet| inet::judge(inet, settings))?;
    later.connections.hold(&sockets)?;
    pipe::build(image, &mut built)?;
    unix::build_pairs(image, &mut built)?;
    for open in image.open_files.values() {
        let fd = match &open.kind {
            OpenFileKind::Pipe(_) | OpenFileKind::Proc(_) => continue,
            OpenFileKind::Regular(regular) => regular::build(image, open, regular, early.take(open))?,
            OpenFileKind::Event(event) => eventfd::build(event)?,
            OpenFileKind::Epoll(_) => epoll::build()?,
            OpenFileKind::Timer(timer) => timerfd::build(timer)?,
            OpenFileKind::Signal(signal) => signalfd::build(signal)?,
            OpenFileKind::Inet(socket) => {
                inet::build(socket, image.beside(open.id, &none), settings, &mut later)?
            }
            OpenFileKind::Unix(socket) => {
                match unix::build(image, socket, image.beside(open.id, &none), &mut later)? {
                    Some(fd) => fd,
                    None => continue,
                }
            }
            OpenFileKind::Shm(shm) => shm::build(image, open, shm)?,
            OpenFileKind::External(external) => {
                external::build(open, external, &image.place, settings, notices)?
            }
        };
        built.insert(open.id, fd);
    }
    for open in image.open_files.values() {
        if let Some(fd) = built.get(&open.id) {
            set_flags(open, fd)?;
        }
    }
    external::judge_ids(image.open_files.values(), settings, notices);
    image.objects.finish()?;
    Ok((built, later))
}

/// How many descriptors we have at most while all of these are built: one of each, and of a socket to a network one more.
fn descriptors_needed(image: &Image) -> u64 {
    const OTHERS: u64 = 100;
    let each = image.open_files.values().map(|open| match &open.kind {
        OpenFileKind::Inet(_) => 2,
        _ => 1,
    });
    each.sum::<u64>() + OTHERS
}

fn inet_sockets(image: &Image) -> Vec<&Inet> {
    let inet = image.open_files.values().filter_map(|open| match &open.kind {
        OpenFileKind::Inet(inet) => Some(inet),
        _ => None,
    });
    inet.collect()
}

fn set_flags(open: &OpenFile, fd: &OwnedFd) -> Result<(), RebuildError> {
    let by_open =
        matches!(open.kind, OpenFileKind::Regular(_) | OpenFileKind::Shm(_) | OpenFileKind::External(_));
    if by_open || open.flags as i32 & SETTABLE == 0 {
        return Ok(());
    }
    let flags = OFlag::from_bits_retain(open.flags as i32 & SETTABLE);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags)).what("setting the flags of a descriptor")?;
    Ok(())
}

/// What can only be done under the final numbers, in the husk: owners, expirations, epoll.
pub fn finish(
    newborn: &mut Newborn,
    image: &Image,
    table: &FdTable,
    notices: Notices<'_>,
) -> Result<(), RebuildError> {
    let mut calls = Vec::new();
    let fds: BTreeMap<OpenFileId, u32> = table.fds.iter().rev().map(|fd| (fd.file, fd.fd)).collect();
    for open in image.open_files.values() {
        let Some(fd) = fds.get(&open.id).copied().map(u64::from) else { continue };
        if let Some(owner) = open.owner {
            calls.extend(owner_calls(newborn, fd, open.flags, owner)?);
        }
        match &open.kind {
            OpenFileKind::Timer(timer) => calls.extend(timerfd::finish(newborn, fd, timer)?),
            OpenFileKind::Epoll(state) => {
                epoll::finish(newborn, image, table, fd, state)?;
                epoll::see_it_keep_awake(newborn.husk.pid(), fd, state, notices)?;
            }
            _ => {}
        }
    }
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("finishing descriptors")?;
    newborn.husk.reset();
    Ok(())
}

fn owner_calls(
    newborn: &mut Newborn,
    fd: u64,
    flags: u32,
    owner: pc_image::Owner,
) -> Result<Vec<Call>, RebuildError> {
    const F_SETSIG: u64 = 10;
    const F_SETOWN_EX: u64 = 15;
    let who = newborn.husk.put(&words(&[owner.kind as u32 as u64 | u64::from(owner.pid) << 32]))?;
    let mut calls = vec![Call::new(libc::SYS_fcntl, [fd, F_SETOWN_EX, who])];
    if owner.signal != 0 {
        calls.push(Call::new(libc::SYS_fcntl, [fd, F_SETSIG, owner.signal as u64]));
    }
    if flags as i32 & libc::O_ASYNC != 0 {
        let flags = flags as i32 & (SETTABLE | libc::O_ASYNC);
        calls.push(Call::new(libc::SYS_fcntl, [fd, libc::F_SETFL as u64, flags as u64]));
    }
    Ok(calls)
}

/// Opens what a descriptor of ours refers to anew, so that flags and offset are its own.
pub fn reopen(fd: &impl AsFd, flags: i32) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let access = flags & libc::O_ACCMODE;
    let file = std::fs::OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & SETTABLE | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    Ok(file.into())
}
