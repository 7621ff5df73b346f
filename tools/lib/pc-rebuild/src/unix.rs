//! Unix sockets.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pc_image::{Datagram, OpenFile, OpenFileKind, SocketFile, UnixSocket, UnixState};
use pc_sys::sockopt::setsockopt;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{Context, RebuildError};
use crate::fdtable::Built;
use crate::image::Image;
use crate::inet::Beside;
use crate::openfile::{AtRelease, Listening};
use crate::socket::{self, set_options};

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
            set_options(&sockets[i], &socket.options, false)?;
            set_options(&sockets[i], &socket.options, true)?;
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
    socket::shut(own, shutdown)
}

/// A socket that is no half of a pair.
pub fn build(
    image: &Image,
    socket: &UnixSocket,
    beside: Beside<'_>,
    later: &mut AtRelease,
) -> Result<Option<OwnedFd>, RebuildError> {
    let backlog = match socket.state {
        UnixState::Pair { .. } => return Ok(None),
        UnixState::Listen { backlog } => Some(backlog),
        UnixState::Unconnected => None,
    };
    let made = Socket::new(Domain::UNIX, Type::from(socket.kind), None).what("making a socket")?;
    set_options(&made, &socket.options, false)?;
    match socket.name.first() {
        None => {}
        Some(0) => {
            bind(&made, OsStr::from_bytes(&socket.name))?;
            send_again(&made, socket, beside.queue)?;
        }
        Some(_) => bind_path(image, &made, socket, beside, later)?,
    }
    socket::finish(&made, beside.more, &socket.options)?;
    if let Some(backlog) = backlog {
        let again = made.try_clone().what("duplicating a socket")?;
        later.listen.push(Listening { socket: again, backlog, own: Vec::new() });
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
    beside: Beside<'_>,
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
    let now = match &beside.more.socket_file {
        Some(SocketFile::Removed) => return bind_removed(made, name, socket, beside.queue),
        Some(SocketFile::At(now)) => dir.join(OsStr::from_bytes(now)),
        None => path.clone(),
    };
    remove_stale(&now, socket.kind)?;
    if now != path {
        if path.symlink_metadata().is_ok() {
            let what = format!(
                "{} is there, which a socket was bound to before its file was renamed",
                path.display()
            );
            return Err(RebuildError::Unsupported(what));
        }
        later.socket_files.push(now.clone());
    }
    let _there = if name.is_absolute() { None } else { Some(Elsewhere::go(&dir)?) };
    bind(made, name.as_os_str())?;
    later.socket_files.push(path.clone());
    own(&path, socket)?;
    send_again(made, socket, beside.queue)?;
    if now != path {
        fs::rename(&path, &now).what_of(|| format!("renaming {} to {}", path.display(), now.display()))?;
    }
    Ok(())
}

/// Owner and permissions of a socket's file.
fn own(path: &Path, socket: &UnixSocket) -> Result<(), RebuildError> {
    let Some((mode, uid, gid)) = socket.file else { return Ok(()) };
    let what = || format!("setting the owner of {}", path.display());
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).what_of(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)).what_of(what)
}

/// Binds a socket to a path of which there is no file any more: in a file system of its own, so that nothing of this one
/// is touched, whoever has the path by now.
fn bind_removed(
    made: &Socket,
    name: &Path,
    socket: &UnixSocket,
    queue: &[Datagram],
) -> Result<(), RebuildError> {
    if !name.is_absolute() {
        let what = format!("a socket of the relative path {}, whose file was removed", name.display());
        return Err(RebuildError::Unsupported(what));
    }
    let there = || {
        let what = || format!("binding to {}, whose file was removed", name.display());
        empty_root().what_of(what)?;
        fs::create_dir_all(name.parent().unwrap_or(Path::new("/"))).what_of(what)?;
        bind(made, name.as_os_str())?;
        own(name, socket)?;
        send_again(made, socket, queue)?;
        fs::remove_file(name).what_of(what)
    };
    // A thread has a root of its own once it has left the others' mounts.
    std::thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives this thread an empty file system as its root.
fn empty_root() -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    const NOTHING: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    // It lies over what nobody needs there.
    mount(Some("none"), "/proc", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, NOTHING)?;
    nix::unistd::chroot("/proc")?;
    nix::unistd::chdir("/")
}

/// Sends what waited in a datagram socket, from one without a name.
fn send_again(made: &Socket, socket: &UnixSocket, queue: &[Datagram]) -> Result<(), RebuildError> {
    if queue.is_empty() {
        return Ok(());
    }
    let what = "filling a socket's queue";
    let sender = Socket::new(Domain::UNIX, Type::from(socket.kind), None).what(what)?;
    let longest = queue.iter().map(|datagram| datagram.bytes.len()).max().unwrap_or(0);
    let room = i32::try_from(longest.saturating_add(4096))
        .unwrap_or(i32::MAX / 2)
        .saturating_mul(queue.len() as i32);
    setsockopt(sender.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room.to_ne_bytes()).what(what)?;
    sender.set_nonblocking(true).what(what)?;
    let to = made.local_addr().what(what)?;
    for datagram in queue {
        sender.send_to(&datagram.bytes, &to).what(what)?;
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
