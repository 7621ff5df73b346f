//! TCP and UDP sockets.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use pc_image::{Inet, InetState, OpenFileKind};
use pc_sys::sockopt::{getsockopt, getsockopt_int};

use crate::error::{Context, Result};
use crate::openfile::{Descriptor, Fds};
use crate::sockopts;

/// States of TCP (`include/net/tcp_states.h`).
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

pub(crate) fn capture(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    family: i32,
) -> Result<OpenFileKind> {
    let option =
        |name| getsockopt_int(socket, libc::SOL_SOCKET, name).of(fds.pid, "asking for a socket's kind");
    let (kind, protocol) = (option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    let state = match (kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => tcp(fds, d, socket)?,
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => udp(socket),
        (libc::SOCK_STREAM, 262) => {
            return fds.refuse(d, "an MPTCP socket, which cannot be moved yet".to_owned());
        }
        (libc::SOCK_RAW, _) => return fds.refuse(d, "a raw socket, which cannot be moved yet".to_owned()),
        _ => {
            let what = format!("a socket of the protocol {protocol}, which cannot be moved yet");
            return fds.refuse(d, what);
        }
    };
    let options = sockopts::inet(socket, family, protocol);
    Ok(OpenFileKind::Inet(Inet { family: family as u16, kind, protocol, state, options }))
}

fn tcp(fds: &Fds<'_>, d: &Descriptor, socket: BorrowedFd<'_>) -> Result<InetState> {
    let info =
        getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, 104).of(fds.pid, "asking for TCP_INFO")?;
    let (local, peer) = (local(socket), peer(socket));
    match (info.first().copied().unwrap_or(0), local) {
        (TCP_LISTEN, Some(local)) => {
            if !fds.tcp_close && readable(socket) {
                let what = format!(
                    "listening on {local} with connections that wait to be accepted, which needs --tcp-close"
                );
                return fds.refuse(d, what);
            }
            // tcpi_sacked of a listening socket is its backlog: struct tcp_info, net/ipv4/tcp.c.
            let backlog = info.get(28..32).and_then(|b| b.try_into().ok()).map_or(128, u32::from_ne_bytes);
            Ok(InetState::Listen { local, backlog })
        }
        (TCP_CLOSE, Some(local)) if peer.is_none() && local.port() != 0 => Ok(InetState::Bound(local)),
        (TCP_CLOSE, _) if peer.is_none() => Ok(InetState::New),
        (_, local) if fds.tcp_close => Ok(InetState::Closed { local, peer }),
        (_, local) => {
            let show = |addr: Option<SocketAddr>| addr.map_or("?".to_owned(), |addr| addr.to_string());
            let what =
                format!("a TCP connection from {} to {}, which needs --tcp-close", show(local), show(peer));
            fds.refuse(d, what)
        }
    }
}

fn udp(socket: BorrowedFd<'_>) -> InetState {
    match (local(socket), peer(socket)) {
        (Some(local), Some(peer)) => InetState::ConnectedUdp { local, peer },
        (Some(local), None) if local.port() != 0 => InetState::Bound(local),
        _ => InetState::New,
    }
}

/// Whether a connection waits to be accepted, or data to be read.
pub(crate) fn readable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn local(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    address(getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?)
}

fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    address(getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok()?)
}

fn address(found: SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = found.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    found.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}
