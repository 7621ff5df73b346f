//! Unix sockets.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pc_image::{OpenFile, OpenFileKind, UnixSocket, UnixState};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{Context, RebuildError};
use crate::fdtable::Built;
use crate::image::Image;
use crate::inet::set_options;
use crate::openfile::AtRelease;

/// Makes all pairs, with the messages that wait in them.
pub fn build_pairs(image: &Image, built: &mut Built) -> Result<(), RebuildError> {
    let mut pairs: BTreeMap<u32, Vec<(&OpenFile, &UnixSocket)>> = BTreeMap::new();
    for open in image.open_files.values() {
        if let OpenFileKind::Unix(socket) = &open.kind
            && let UnixState::Pair { pair, .. } = socket.state
        {
            pairs.entry(pair).or_default().push((open, socket));
        }
    }
    for (pair, ends) in &pairs {
        if ends.len() > 2 {
            return Err(RebuildError::Contradiction(format!("socket pair {pair} has {} ends", ends.len())));
        }
        let made = Socket::pair(Domain::UNIX, Type::from(ends[0].1.kind), None);
        let (a, b) = made.what("making a socket pair")?;
        let sockets = [a, b];
        for (i, (_, socket)) in ends.iter().enumerate() {
            fill(&sockets[1 - i], socket)?;
            set_options(&sockets[i], &socket.options)?;
        }
        for (i, (_, socket)) in ends.iter().enumerate() {
            shut(&sockets[i], socket)?;
        }
        for ((open, _), socket) in ends.iter().zip(sockets) {
            built.insert(open.id, socket.into());
        }
    }
    Ok(())
}

/// Sends what waits in a socket's queue from its peer.
fn fill(peer: &Socket, socket: &UnixSocket) -> Result<(), RebuildError> {
    let UnixState::Pair { queue, .. } = &socket.state else { return Ok(()) };
    if queue.is_empty() {
        return Ok(());
    }
    let room = queue.iter().map(Vec::len).sum::<usize>().saturating_mul(2);
    let before = peer.send_buffer_size().what("reading the size of a socket's queue")?;
    if room > before / 2 {
        peer.set_send_buffer_size(room).what("making room in a socket's queue")?;
    }
    for message in queue {
        let sent = peer.send_with_flags(message, libc::MSG_DONTWAIT).what("filling a socket's queue")?;
        if sent != message.len() {
            return Err(RebuildError::Unsupported("a socket's queue does not take what was in it".into()));
        }
    }
    if room > before / 2 {
        peer.set_send_buffer_size(before / 2).what("setting the size of a socket's queue")?;
    }
    Ok(())
}

fn shut(own: &Socket, socket: &UnixSocket) -> Result<(), RebuildError> {
    let UnixState::Pair { shutdown, .. } = socket.state else { return Ok(()) };
    let how = match shutdown & 3 {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    own.shutdown(how).what("shutting a socket down")
}

/// A socket that is no half of a pair.
pub fn build(
    image: &Image,
    socket: &UnixSocket,
    later: &mut AtRelease,
) -> Result<Option<OwnedFd>, RebuildError> {
    let backlog = match socket.state {
        UnixState::Pair { .. } => return Ok(None),
        UnixState::Listen { backlog } => Some(backlog),
        UnixState::Unconnected => None,
    };
    let made = Socket::new(Domain::UNIX, Type::from(socket.kind), None).what("making a socket")?;
    set_options(&made, &socket.options)?;
    match socket.name.first() {
        None => {}
        Some(0) => bind(&made, OsStr::from_bytes(&socket.name))?,
        Some(_) => bind_path(image, &made, socket, later)?,
    }
    if let Some(backlog) = backlog {
        let again = made.try_clone().what("duplicating a socket")?;
        later.listen.push((again, backlog, true));
    }
    Ok(Some(made.into()))
}

fn shown(name: &OsStr) -> String {
    name.to_string_lossy().replace('\0', "@")
}

fn bind(socket: &Socket, name: &OsStr) -> Result<(), RebuildError> {
    let addr = SockAddr::unix(name).what_of(|| format!("the socket name {}", shown(name)))?;
    match socket.bind(&addr) {
        Err(err) if err.kind() == ErrorKind::AddrInUse => {
            Err(RebuildError::Unsupported(format!("the socket {} is in use here", shown(name))))
        }
        bound => bound.what_of(|| format!("binding to {}", shown(name))),
    }
}

fn bind_path(
    image: &Image,
    made: &Socket,
    socket: &UnixSocket,
    later: &mut AtRelease,
) -> Result<(), RebuildError> {
    let name = Path::new(OsStr::from_bytes(&socket.name));
    let elsewhere = image.task_state.as_ref().is_some_and(|state| state.root.is_some());
    if image.place.is_joined() || name.is_absolute() && elsewhere {
        let why =
            "cannot be made yet below a root directory of its own or in a mount namespace that is joined";
        return Err(RebuildError::Unsupported(format!("the socket {}: it {why}", name.display())));
    }
    let dir = working_directory(image)?;
    let path = dir.join(name);
    remove_stale(&path, socket.kind)?;
    let _there = if name.is_absolute() { None } else { Some(Elsewhere::go(&dir)?) };
    bind(made, name.as_os_str())?;
    later.socket_files.push(path.clone());
    if let Some((mode, uid, gid)) = socket.file {
        let what = || format!("setting the owner of {}", path.display());
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).what_of(what)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777)).what_of(what)?;
    }
    Ok(())
}

fn working_directory(image: &Image) -> Result<PathBuf, RebuildError> {
    match &image.task_state {
        Some(state) => Ok(crate::file::path_of(image.file(state.cwd)?).to_owned()),
        None => Ok(PathBuf::from("/")),
    }
}

/// Removes a socket's file that nobody listens on any more.
fn remove_stale(path: &Path, kind: i32) -> Result<(), RebuildError> {
    let meta = match fs::symlink_metadata(path) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        meta => meta.what_of(|| format!("looking at {}", path.display()))?,
    };
    let refuse = |why: &str| Err(RebuildError::Unsupported(format!("{}: {why}", path.display())));
    if !meta.file_type().is_socket() {
        return refuse("there is a file where the process has a socket");
    }
    let probe = Socket::new(Domain::UNIX, Type::from(kind), None).what("making a socket")?;
    probe.set_nonblocking(true).what("making a socket")?;
    match probe.connect(&SockAddr::unix(path).what("the socket's name")?) {
        Err(err) if err.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).what_of(|| format!("removing {}, which nobody listens on", path.display()))
        }
        Ok(()) => refuse("somebody listens on this socket (the original?)"),
        Err(err) if err.kind() == ErrorKind::WouldBlock => {
            refuse("somebody listens on this socket (the original?)")
        }
        Err(err) => Err(err).what_of(|| format!("asking who listens on {}", path.display())),
    }
}

/// In another directory for a while.
struct Elsewhere(OwnedFd);

impl Elsewhere {
    fn go(dir: &Path) -> Result<Self, RebuildError> {
        let here: io::Result<fs::File> = fs::File::open(".");
        let here = Self(here.what("opening the working directory")?.into());
        std::env::set_current_dir(dir).what_of(|| format!("going to {}", dir.display()))?;
        Ok(here)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The directory is open: this fails only if we may no longer search it, and nothing of ours depends on it.
        let _ = nix::unistd::fchdir(self.0.as_fd());
    }
}
