//! TCP and UDP sockets.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use pc_image::{Inet, InetState, OpenFileKind};
use pc_sys::nftables::Ends;
use pc_sys::sockopt::getsockopt_int;
use pc_sys::tcp_repair;

use crate::error::{Context, Result};
use crate::openfile::{Descriptor, Fds};
use crate::sockopts;
use crate::tcp::{self, Connected, TCP_CLOSE, TCP_LISTEN};

pub(crate) fn capture(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    family: i32,
) -> Result<OpenFileKind> {
    let pid = fds.pid;
    let option = |name| getsockopt_int(socket, libc::SOL_SOCKET, name).of(pid, "asking for a socket's kind");
    let (kind, protocol) = (option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    let state = match (kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => state_of_tcp(fds, d, socket)?,
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

fn state_of_tcp(fds: &mut Fds<'_>, d: &Descriptor, socket: BorrowedFd<'_>) -> Result<InetState> {
    let info = tcp_repair::info(socket).of(fds.pid, "asking for TCP_INFO")?;
    let (local, peer) = (local(socket), peer(socket));
    match (info.state, local) {
        (TCP_LISTEN, Some(local)) => {
            // Those that wait while the process runs are accepted before it is stopped.
            let may_wait =
                fds.connected == Connected::Closed || fds.connected == Connected::Taken && !fds.stopped;
            if !may_wait && readable(socket) {
                let what = format!(
                    "listening on {local} with connections that wait to be accepted, which needs --tcp-close"
                );
                return fds.refuse(d, what);
            }
            Ok(InetState::Listen { local, backlog: info.backlog })
        }
        // One that has ended and not been closed.
        (TCP_CLOSE, local)
            if fds.connected == Connected::Taken && tcp_repair::is_hung_up(socket).unwrap_or(false) =>
        {
            if tcp_repair::received(socket).unwrap_or(0) > 0 {
                let what = "a TCP connection that has ended with bytes that were not read, which cannot be moved yet";
                return fds.refuse(d, what.to_owned());
            }
            Ok(InetState::Closed { local, peer })
        }
        (TCP_CLOSE, Some(local)) if peer.is_none() && local.port() != 0 => Ok(InetState::Bound(local)),
        (TCP_CLOSE, _) if peer.is_none() => Ok(InetState::New),
        (_, local) if fds.connected == Connected::Closed => Ok(InetState::Closed { local, peer }),
        // It is only looked at while the process runs, and read when it is stopped.
        (_, local) if fds.connected == Connected::Taken && !fds.stopped => {
            Ok(InetState::Closed { local, peer })
        }
        (state, Some(local)) if fds.connected == Connected::Taken && !tcp::is_beginning(state) => {
            let Some(peer) = peer else {
                return fds.refuse(d, format!("a TCP connection from {local} to nobody"));
            };
            let connection = tcp::read(fds, d, socket, info, Ends { local, peer })?;
            Ok(InetState::Connected(Box::new(connection)))
        }
        (_, local) => {
            let show = |addr: Option<SocketAddr>| addr.map_or("?".to_owned(), |addr| addr.to_string());
            let needs = match fds.connected {
                Connected::Taken => "is still being made",
                _ => "needs --tcp-established or --tcp-close",
            };
            let what = format!("a TCP connection from {} to {}, which {needs}", show(local), show(peer));
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

pub(crate) fn local(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    address(getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?)
}

pub(crate) fn peer(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    address(getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok()?)
}

fn address(found: SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = found.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    found.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}
