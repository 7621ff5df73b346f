//! Unix sockets.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{UnixAddr, getpeername, getsockname};
use pc_image::{OpenFileKind, UnixSocket, UnixState};
use pc_sys::sockopt::getsockopt_int;

use crate::error::{Context, Result};
use crate::inet::readable;
use crate::openfile::{Descriptor, Fds};
use crate::sockopts;

/// The kernel cuts a larger backlog to the limit of the machine.
const BACKLOG: u32 = 4096;

pub(crate) fn capture(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    _all: &[Descriptor],
) -> Result<OpenFileKind> {
    let option =
        |name| getsockopt_int(socket, libc::SOL_SOCKET, name).of(fds.pid, "asking for a socket's kind");
    let (kind, listening) = (option(libc::SO_TYPE)?, option(libc::SO_ACCEPTCONN)? != 0);
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
        UnixState::Listen { backlog: BACKLOG }
    } else if getpeername::<UnixAddr>(socket.as_raw_fd()).is_ok() {
        return fds.refuse(d, format!("a connected Unix socket{}, which cannot be moved yet", shown(&name)));
    } else {
        UnixState::Unconnected
    };
    let file = socket_file(fds, d, &name)?;
    Ok(OpenFileKind::Unix(UnixSocket { kind, name, file, state, options: sockopts::unix(socket, kind) }))
}

/// A path, or an abstract name behind a zero byte.
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

/// Permissions and owner of the file by which a socket is reached.
fn socket_file(fds: &Fds<'_>, d: &Descriptor, name: &[u8]) -> Result<Option<(u32, u32, u32)>> {
    match name.first() {
        None | Some(0) => Ok(None),
        Some(b'/') => {
            // A socket whose file was removed lives on without it.
            let found = std::fs::symlink_metadata(fds.files.reach(name));
            Ok(found.ok().map(|meta| (meta.mode(), meta.uid(), meta.gid())))
        }
        Some(_) => fds.refuse(
            d,
            format!("a Unix socket with the relative path{}, which cannot be moved yet", shown(name)),
        ),
    }
}
