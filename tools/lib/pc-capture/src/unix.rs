//! Unix sockets.

use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt as _};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixAddr, getpeername, getsockname, getsockopt};
use pc_image::{Datagram, OpenFileKind, SocketFile, SocketState, UnixSocket, UnixState};
use pc_sys::sockopt::{events, getsockopt_int, unix_file};

use crate::error::{Context, Result};
use crate::inet::readable;
use crate::openfile::{Descriptor, Fds};
use crate::procfs::Status;
use crate::socket;
use crate::sockopts::Unusual;

/// The kernel cuts a larger backlog to the limit of the machine.
const BACKLOG: u32 = 4096;

pub(crate) fn capture(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    unusual: &Unusual,
) -> Result<OpenFileKind> {
    let option =
        |name| getsockopt_int(socket, libc::SOL_SOCKET, name).of(fds.pid, "asking for a socket's kind");
    let (kind, listening) = (unusual.class.kind, option(libc::SO_ACCEPTCONN)? != 0);
    let address = getsockname::<UnixAddr>(socket.as_raw_fd()).of(fds.pid, "asking for a socket's name")?;
    let name = name(&address);
    let state = if listening {
        if readable(socket) {
            let what = format!(
                "a Unix socket{} with connections that wait to be accepted, which cannot be moved yet",
                shown(&name)
            );
            return fds.refuse(d, what);
        }
        if !fds.stopped {
            let notice = listens_as_another(fds.pid, d.fd, socket, &name)?;
            fds.sockets.notices.extend(notice);
        }
        UnixState::Listen { backlog: BACKLOG }
    } else if getpeername::<UnixAddr>(socket.as_raw_fd()).is_ok() {
        return fds.refuse(d, format!("a connected Unix socket{}, which cannot be moved yet", shown(&name)));
    } else {
        UnixState::Unconnected
    };
    let what = format!("a Unix socket{}", shown(&name));
    let events = events(socket).of(fds.pid, "looking at a socket")?;
    if events & libc::POLLERR != 0 {
        return fds.refuse(d, format!("{what} with an error that waits to be fetched"));
    }
    let (options, mut more) = socket::look(fds, d, socket, unusual, false, &what)?;
    let file = socket_file(fds, d, socket, &name, &mut more)?;
    let own = UnixSocket { kind, name, file, state, options };
    let datagrams = if fds.stopped { waiting(fds, d, socket, events, &own)? } else { Vec::new() };
    fds.sockets.tell(more, datagrams);
    Ok(OpenFileKind::Unix(own))
}

/// A notice, if the ids that clients see (`SO_PEERCRED`), those of whoever has called listen(2), are not those that the
/// process has now and the copy listens with.
fn listens_as_another(pid: i32, fd: i32, socket: BorrowedFd<'_>, name: &[u8]) -> Result<Option<String>> {
    let seen = getsockopt(&socket, PeerCredentials).of(pid, "asking for a socket's credentials")?;
    let status = Status::read(pid).of(pid, "reading its status")?;
    let (seen, now) = ((seen.uid(), seen.gid()), (status.uids[1], status.gids[1]));
    Ok((seen != now).then(|| {
        format!(
            "descriptor {fd}, a Unix socket{} that listens, shows clients user {} and group {} (SO_PEERCRED): the copy's shows \
             its own, {} and {}",
            shown(name),
            seen.0,
            seen.1,
            now.0,
            now.1
        )
    }))
}

/// Datagrams that wait in a socket that is not connected: those of senders without a name can be sent again.
fn waiting(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    events: i16,
    own: &UnixSocket,
) -> Result<Vec<Datagram>> {
    const SO_PASSPIDFD: i32 = 76;
    if own.kind != libc::SOCK_DGRAM || events & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    let waiting = socket::waiting(socket).of(fds.pid, "reading what waits in a socket")?;
    let passes = [libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD];
    let passes = passes.iter().any(|name| socket::has(&own.options, libc::SOL_SOCKET, *name));
    if !waiting.datagrams.is_empty() && (waiting.special || passes) {
        let what = format!(
            "a Unix socket{} with datagrams that wait to be read and have a sender's name, credentials or descriptors, which \
             cannot be moved yet",
            shown(&own.name)
        );
        return fds.refuse(d, what);
    }
    Ok(waiting.datagrams)
}

/// A path, or an abstract name after a zero byte.
fn name(address: &UnixAddr) -> Vec<u8> {
    if let Some(path) = address.path() {
        return path.as_os_str().as_bytes().to_vec();
    }
    address.as_abstract().map(|name| [&[0], name].concat()).unwrap_or_default()
}

fn shown(name: &[u8]) -> String {
    match name {
        [] => String::new(),
        [0, name @ ..] => format!(" @{}", String::from_utf8_lossy(name)),
        path => format!(" {}", String::from_utf8_lossy(path)),
    }
}

/// Permissions and owner of the file by which a socket is reached, wherever that is by now.
fn socket_file(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    name: &[u8],
    more: &mut SocketState,
) -> Result<Option<(u32, u32, u32)>> {
    match name.first() {
        None | Some(0) => return Ok(None),
        Some(b'/') => {}
        Some(_) => {
            let what =
                format!("a Unix socket with the relative path{}, which cannot be moved yet", shown(name));
            return fds.refuse(d, what);
        }
    }
    let at_name = std::fs::symlink_metadata(fds.files.reach(name)).ok();
    let own = match unix_file(socket) {
        Ok(file) => File::from(file),
        // Without CAP_NET_ADMIN nobody tells: what is at its name is taken for its file.
        Err(_) => return Ok(at_name.map(|meta| (meta.mode(), meta.uid(), meta.gid()))),
    };
    let meta = own.metadata().of(fds.pid, "looking at a socket's file")?;
    let same = |other: &Metadata| (other.dev(), other.ino()) == (meta.dev(), meta.ino());
    if !at_name.as_ref().is_some_and(same) {
        more.socket_file = Some(moved_file(fds, d, &own, &meta, name, at_name.is_some())?);
    }
    Ok(Some((meta.mode(), meta.uid(), meta.gid())))
}

/// What became of a socket's file that is not at its name.
fn moved_file(
    fds: &Fds<'_>,
    d: &Descriptor,
    own: &File,
    meta: &Metadata,
    name: &[u8],
    name_is_taken: bool,
) -> Result<SocketFile> {
    if meta.nlink() == 0 {
        return Ok(SocketFile::Removed);
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", own.as_raw_fd()));
    let path = path.of(fds.pid, "looking for a socket's file")?.into_os_string().into_vec();
    let there = std::fs::symlink_metadata(fds.files.reach(&path));
    if !there.is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino())) {
        let what = format!("a Unix socket{} whose file cannot be reached by a path", shown(name));
        return fds.refuse(d, what);
    }
    if name_is_taken {
        let what = format!(
            "a Unix socket whose file was renamed from{} to{}, while there is another at its name",
            shown(name),
            shown(&path)
        );
        return fds.refuse(d, what);
    }
    Ok(SocketFile::At(path))
}
