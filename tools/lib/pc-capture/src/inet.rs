//! TCP and UDP sockets.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use pc_image::{Datagram, Inet, InetState, OpenFileKind, SockOpt, SocketState};
use pc_sys::nftables::Ends;
use pc_sys::sockopt::{events, sending};
use pc_sys::tcp_repair;

use crate::error::{Context, Result};
use crate::openfile::{Descriptor, Fds};
use crate::socket::{self, Waiting};
use crate::sockopts::{Class, Unusual};
use crate::tcp::{self, Connected, TCP_CLOSE, TCP_LISTEN};

pub(crate) fn capture(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    unusual: &Unusual,
) -> Result<OpenFileKind> {
    let pid = fds.pid;
    let Class { family, kind, protocol } = unusual.class;
    let tcp = match (kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP) => true,
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => false,
        _ => return fds.refuse(d, format!("{}, which cannot be moved yet", other_kind(kind, protocol))),
    };
    let events = events(socket).of(pid, "looking at a socket")?;
    let (state, ended) = match tcp {
        true => state_of_tcp(fds, d, socket, events)?,
        false => (udp(socket), None),
    };
    let connected = matches!(state, InetState::Connected(_) | InetState::Closed { .. });
    let what = if tcp { "a TCP socket" } else { "a UDP socket" };
    // The error of a connection that is given up is part of its end.
    let given_up = tcp && fds.connected == Connected::Closed && connected;
    if events & libc::POLLERR != 0 && !given_up {
        let what = format!("{what} with an error or a message in its error queue that waits to be fetched");
        return fds.refuse(d, what);
    }
    let (options, more) = socket::look(fds, d, socket, unusual, connected, what)?;
    let mut more = SocketState {
        ended,
        memberships: socket::memberships(fds, socket, family == libc::AF_INET6)?,
        ..more
    };
    if tcp {
        tcp::judge_options(fds, d, socket, family, (&options, &more))?;
    }
    if let InetState::Bound(local) | InetState::Listen { local, .. } | InetState::ConnectedUdp { local, .. } =
        state
    {
        more.binding = binding(fds, &options, local);
    }
    let inet = Inet { family: family as u16, kind, protocol, state, options };
    let datagrams = if tcp { Vec::new() } else { udp_beside(fds, d, socket, events, &inet, &mut more)? };
    fds.sockets.tell(more, datagrams);
    Ok(OpenFileKind::Inet(inet))
}

fn other_kind(kind: i32, protocol: i32) -> String {
    const IPPROTO_SMC: i32 = 256;
    const IPPROTO_MPTCP: i32 = 262;
    match (kind, protocol) {
        (_, IPPROTO_MPTCP) => "an MPTCP socket".to_owned(),
        (_, IPPROTO_SMC) => "an SMC socket".to_owned(),
        (libc::SOCK_RAW, _) => "a raw socket".to_owned(),
        (_, libc::IPPROTO_SCTP) => "an SCTP socket".to_owned(),
        (_, libc::IPPROTO_UDPLITE) => "a UDP-Lite socket".to_owned(),
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => "an ICMP socket".to_owned(),
        _ => format!("a socket of the protocol {protocol}"),
    }
}

/// Options by which a socket has its address, and which it may have cleared since.
fn binding(fds: &mut Fds<'_>, options: &[SockOpt], local: SocketAddr) -> Vec<SockOpt> {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    let lacks = |name| !socket::has(options, libc::IPPROTO_IP, name);
    let mut binding = Vec::new();
    if lacks(libc::IP_FREEBIND) && lacks(libc::IP_TRANSPARENT) && !fds.sockets.is_here(local.ip()) {
        binding.push(socket::flag(libc::IPPROTO_IP, libc::IP_FREEBIND));
    }
    if local.port() == 0 && lacks(IP_BIND_ADDRESS_NO_PORT) {
        binding.push(socket::flag(libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT));
    }
    binding
}

/// Gives a state, and the bytes before the end of a TCP connection that has ended in order.
fn state_of_tcp(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    events: i16,
) -> Result<(InetState, Option<Vec<u8>>)> {
    let info = tcp_repair::info(socket).of(fds.pid, "asking for TCP_INFO")?;
    let (local, peer) = (local(socket), peer(socket));
    let state = match (info.state, local) {
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
            InetState::Listen { local, backlog: info.backlog }
        }
        // A connection that has ended and not been closed; or a new socket that was shut down, which is the same.
        (TCP_CLOSE, local) if events & libc::POLLRDHUP != 0 => {
            if events & libc::POLLERR != 0 && fds.connected != Connected::Closed {
                let what = "a TCP connection that has failed with an error that waits to be fetched, which needs --tcp-close";
                return fds.refuse(d, what.to_owned());
            }
            return ended(fds, d, socket, events, (local, peer));
        }
        (TCP_CLOSE, Some(local)) if peer.is_none() && is_bound(local) => InetState::Bound(local),
        (TCP_CLOSE, _) if peer.is_none() => InetState::New,
        (state, local) if fds.connected == Connected::Closed => {
            // One that is being made is found reset: whoever waits for it would take an end for a connection.
            if tcp::is_beginning(state) {
                return Ok((InetState::Closed { local, peer }, None));
            }
            return ended(fds, d, socket, events, (local, peer));
        }
        // It is only looked at while the process runs, and read when it is stopped.
        (_, local) if fds.connected == Connected::Taken && !fds.stopped => InetState::Closed { local, peer },
        (state, Some(local)) if fds.connected == Connected::Taken && !tcp::is_beginning(state) => {
            let Some(peer) = peer else {
                return fds.refuse(d, format!("a TCP connection from {local} to nobody"));
            };
            let connection = tcp::read(fds, d, socket, info, Ends { local, peer })?;
            InetState::Connected(Box::new(connection))
        }
        (_, local) => {
            let show = |addr: Option<SocketAddr>| addr.map_or("?".to_owned(), |addr| addr.to_string());
            let needs = match fds.connected {
                Connected::Taken => "is still being made",
                _ => "needs --tcp-established or --tcp-close",
            };
            let what = format!("a TCP connection from {} to {}, which {needs}", show(local), show(peer));
            return fds.refuse(d, what);
        }
    };
    Ok((state, None))
}

/// A connection of which nothing goes on: what can still be read is read by the copy, and then its end.
fn ended(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    events: i16,
    (local, peer): (Option<SocketAddr>, Option<SocketAddr>),
) -> Result<(InetState, Option<Vec<u8>>)> {
    let state = InetState::Closed { local, peer };
    if events & libc::POLLERR != 0 {
        return Ok((state, None));
    }
    let unread = tcp_repair::received(socket).unwrap_or(0) as usize;
    if unread > tcp::MOST {
        return fds.refuse(d, "a TCP connection with too much in its queue to be moved".to_owned());
    }
    let bytes = match fds.stopped {
        true => tcp::peek(socket, unread).of(fds.pid, "reading what a TCP connection has received")?,
        false => Vec::new(),
    };
    Ok((state, Some(bytes)))
}

/// Whether a socket that is not connected has an address; its port may be chosen when it is (`IP_BIND_ADDRESS_NO_PORT`).
fn is_bound(local: SocketAddr) -> bool {
    local.port() != 0 || !local.ip().is_unspecified()
}

fn udp(socket: BorrowedFd<'_>) -> InetState {
    match (local(socket), peer(socket)) {
        (Some(local), Some(peer)) => InetState::ConnectedUdp { local, peer },
        (Some(local), None) if is_bound(local) => InetState::Bound(local),
        _ => InetState::New,
    }
}

/// What a UDP socket has beside: whether it was shut down, and what waits in it.
fn udp_beside(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    events: i16,
    inet: &Inet,
    more: &mut SocketState,
) -> Result<Vec<Datagram>> {
    if holds_back(socket) {
        let what = "a UDP socket that holds back a datagram (UDP_CORK, MSG_MORE), which cannot be moved yet";
        return fds.refuse(d, what.to_owned());
    }
    let local = match inet.state {
        InetState::Bound(local) | InetState::ConnectedUdp { local, .. } => Some(local),
        _ => None,
    };
    if !fds.stopped {
        return Ok(Vec::new());
    }
    more.shutdown = socket::shutdown(socket, events, local);
    // One that was shut down for reading can always be read.
    let waiting = match events & libc::POLLIN != 0 {
        true => socket::waiting(socket).of(fds.pid, "reading what waits in a socket")?,
        false => return Ok(Vec::new()),
    };
    let Some(local) = local.filter(|_| !waiting.datagrams.is_empty()) else { return Ok(waiting.datagrams) };
    match queued_again(inet, local, &waiting) {
        None => Ok(waiting.datagrams),
        Some(why) => fds.refuse(
            d,
            format!("a UDP socket {why} with datagrams that wait to be read, which cannot be moved yet"),
        ),
    }
}

/// Why datagrams cannot be queued again by sending them: they would go elsewhere.
fn queued_again(inet: &Inet, local: SocketAddr, waiting: &Waiting) -> Option<&'static str> {
    const UDP_GRO: i32 = 104;
    const UDP_ENCAP: i32 = 100;
    let has = |level, name| socket::has(&inet.options, level, name);
    let foreign = |peer: SocketAddr| waiting.datagrams.iter().any(|datagram| datagram.from != Some(peer));
    match inet.state {
        _ if waiting.special || waiting.datagrams.iter().any(|datagram| datagram.from.is_none()) => {
            Some("that is read in large pieces")
        }
        _ if local.ip().is_multicast() => Some("bound to a multicast group"),
        _ if has(libc::SOL_SOCKET, libc::SO_REUSEPORT) => Some("that shares its port (SO_REUSEPORT)"),
        _ if has(libc::SOL_SOCKET, libc::SO_REUSEADDR) => Some("that shares its port (SO_REUSEADDR)"),
        _ if has(libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => Some("bound to a device"),
        _ if has(libc::IPPROTO_UDP, UDP_GRO) => Some("with UDP_GRO"),
        _ if has(libc::IPPROTO_UDP, UDP_ENCAP) => Some("with UDP_ENCAP"),
        InetState::ConnectedUdp { peer, .. } if foreign(peer) => Some("connected to another sender"),
        _ => None,
    }
}

/// Whether a datagram waits for its end; others are on their way for a moment only.
fn holds_back(socket: BorrowedFd<'_>) -> bool {
    const TRIES: u32 = 10;
    (0..TRIES).all(|tried| {
        if tried > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        sending(socket).unwrap_or(0) > 0
    })
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
