//! TCP and UDP sockets.

use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pc_image::{Datagram, Inet, InetState, SockOpt, SocketState};
use pc_sys::sockopt::setsockopt;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::error::{Context, RebuildError};
use crate::openfile::{AtRelease, Listening};
use crate::settings::Settings;
use crate::socket::{self, Delivery};
use crate::tcp;

/// How long the kernel may take to deliver what is sent to this very machine.
const DELIVERY: Duration = Duration::from_secs(1);
const TCP_CLOSE: u8 = 7;

/// What is said of a socket beside its record.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    pub more: &'a SocketState,
    pub queue: &'a [Datagram],
}

/// Refuses a connection that nobody has said anything about.
pub fn judge(inet: &Inet, settings: &Settings) -> Result<(), RebuildError> {
    match &inet.state {
        InetState::Connected(tcp) if !settings.tcp_established && !settings.tcp_close => {
            let (local, peer) = (tcp.local, tcp.peer);
            Err(RebuildError::Unsupported(format!(
                "the TCP connection from {local} to {peer} needs --tcp-established or --tcp-close"
            )))
        }
        _ => Ok(()),
    }
}

/// A socket in the state it was in; a listening one is bound, and listens at release.
pub fn build(
    inet: &Inet,
    beside: Beside<'_>,
    settings: &Settings,
    later: &mut AtRelease,
) -> Result<OwnedFd, RebuildError> {
    let more = beside.more;
    match &inet.state {
        InetState::Connected(tcp) if settings.tcp_established => {
            let socket = later.connections.build(inet, tcp)?;
            socket::join(&socket, more)?;
            socket::filter(&socket, more)?;
            return Ok(socket);
        }
        InetState::Connected(tcp) => return ended(inet, &tcp.receive.bytes, more),
        InetState::Closed { .. } => {
            return match &more.ended {
                Some(bytes) => ended(inet, bytes, more),
                None => finished(reset(inet)?, inet, more),
            };
        }
        _ => {}
    }
    let socket = new(inet)?;
    socket::set_options(&socket, &inet.options, false)?;
    let mut binding = more.binding.clone();
    if inet.protocol == libc::IPPROTO_TCP {
        // Connections of an original that is gone, or of its copy, may stand on its port.
        binding.push(SockOpt {
            level: libc::SOL_SOCKET,
            name: libc::SO_REUSEADDR,
            value: 1i32.to_ne_bytes().to_vec(),
        });
    }
    let own = socket::unbinding(&socket, &binding, &inet.options)?;
    binding.iter().try_for_each(|option| socket::set_option(&socket, option))?;
    let mut local = None;
    match &inet.state {
        InetState::Bound(address) => {
            place(&socket, *address, settings, later, || bind(&socket, *address))?;
            local = Some(*address);
        }
        InetState::Listen { local, backlog } => {
            place(&socket, *local, settings, later, || bind(&socket, *local))?;
            let again = socket.try_clone().what("duplicating a socket")?;
            later.listen.push(Listening { socket: again, backlog: *backlog, own: own.clone() });
        }
        InetState::ConnectedUdp { local: address, peer } => {
            let connect = || {
                bind(&socket, *address)?;
                socket.connect(&SockAddr::from(*peer)).what_of(|| format!("connecting to {peer}"))
            };
            place(&socket, *address, settings, later, connect)?;
            local = Some(*address);
        }
        _ => {}
    }
    if !matches!(inet.state, InetState::Listen { .. }) {
        own.iter().try_for_each(|option| socket::set_option(&socket, option))?;
    }
    socket::join(&socket, more)?;
    match local {
        Some(local) if !beside.queue.is_empty() => {
            let again = socket.try_clone().what("duplicating a socket")?;
            let (datagrams, more, options) = (beside.queue.to_vec(), more.clone(), inet.options.clone());
            later.deliveries.push(Delivery { socket: again, local, datagrams, more, options });
        }
        _ => socket::finish(&socket, more, &inet.options)?,
    }
    Ok(socket.into())
}

/// Sets the options of a connection that is no more.
fn finished(socket: Socket, inet: &Inet, more: &SocketState) -> Result<OwnedFd, RebuildError> {
    socket::set_options(&socket, &inet.options, false)?;
    socket::join(&socket, more)?;
    socket::finish(&socket, more, &inet.options)?;
    Ok(socket.into())
}

/// A TCP connection that both ends have ended: `unread` can be read, then its end; writing gives `EPIPE`.
fn ended(inet: &Inet, unread: &[u8], more: &SocketState) -> Result<OwnedFd, RebuildError> {
    if unread.is_empty() {
        // Without an address; nothing else is there to be told apart.
        let socket = new(inet)?;
        socket::shut(&socket, 3)?;
        return finished(socket, inet, more);
    }
    let what = "making a connection that has ended";
    let (socket, peer) = pair(inet, what, |socket| tcp::make_room(socket.as_fd(), unread.len()))?;
    peer.set_nonblocking(true).what(what)?;
    let (mut rest, began) = (unread, Instant::now());
    let in_time = || {
        if began.elapsed() > DELIVERY {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).what(what);
        }
        std::thread::sleep(Duration::from_micros(100));
        Ok(())
    };
    while !rest.is_empty() {
        match peer.send(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => in_time()?,
            Err(err) => return Err(err).what(what),
        }
    }
    drop(peer);
    while !pc_sys::tcp_repair::is_hung_up(socket.as_fd()).what(what)? {
        in_time()?;
    }
    socket.shutdown(Shutdown::Write).what(what)?;
    while pc_sys::tcp_repair::info(socket.as_fd()).what(what)?.state != TCP_CLOSE {
        in_time()?;
    }
    setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BUF_LOCK, &0i32.to_ne_bytes()).what(what)?;
    finished(socket, inet, more)
}

/// Binds a socket, to an address that may come later if there is something that brings it.
fn place(
    socket: &Socket,
    local: SocketAddr,
    settings: &Settings,
    later: &mut AtRelease,
    bind: impl FnOnce() -> Result<(), RebuildError>,
) -> Result<(), RebuildError> {
    if !settings.late_addresses || local.ip().is_unspecified() {
        return bind();
    }
    later.connections.expect(local);
    tcp::early(socket, bind)
}

pub fn new(inet: &Inet) -> Result<Socket, RebuildError> {
    let made = Socket::new(
        Domain::from(i32::from(inet.family)),
        Type::from(inet.kind),
        Some(Protocol::from(inet.protocol)),
    );
    made.what("making a socket")
}

fn bind(socket: &Socket, local: SocketAddr) -> Result<(), RebuildError> {
    // An original that was killed a moment ago lets go of its addresses when it has died.
    const PATIENCE: Duration = Duration::from_millis(500);
    let began = Instant::now();
    let mut bound = socket.bind(&SockAddr::from(local));
    while bound.as_ref().is_err_and(|err| err.kind() == std::io::ErrorKind::AddrInUse)
        && began.elapsed() < PATIENCE
    {
        std::thread::sleep(Duration::from_millis(2));
        bound = socket.bind(&SockAddr::from(local));
    }
    match bound {
        Err(err) if err.kind() == std::io::ErrorKind::AddrInUse => {
            Err(RebuildError::Unsupported(format!("the address {local} is in use here")))
        }
        Err(err) if err.kind() == std::io::ErrorKind::AddrNotAvailable => {
            Err(RebuildError::Unsupported(format!("the address {local} is not one of this machine")))
        }
        bound => bound.what_of(|| format!("binding to {local}")),
    }
}

/// A TCP connection that its peer has reset.
fn reset(inet: &Inet) -> Result<Socket, RebuildError> {
    let what = "making a connection that is reset";
    let (socket, peer) = pair(inet, what, |_| Ok(()))?;
    peer.set_linger(Some(Duration::ZERO)).what(what)?;
    Ok(socket)
}

/// The two ends of a new connection over the loopback device; the first is prepared before it is connected.
fn pair(
    inet: &Inet,
    what: &'static str,
    prepare: impl FnOnce(&Socket) -> std::io::Result<()>,
) -> Result<(Socket, Socket), RebuildError> {
    const AF_INET6: u16 = libc::AF_INET6 as u16;
    let loopback: SocketAddr = match inet.family {
        AF_INET6 => (Ipv6Addr::LOCALHOST, 0).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let listener = new(inet)?;
    listener.bind(&SockAddr::from(loopback)).what(what)?;
    listener.listen(1).what(what)?;
    let socket = new(inet)?;
    prepare(&socket).what(what)?;
    socket.connect(&listener.local_addr().what(what)?).what(what)?;
    let (peer, _) = listener.accept().what(what)?;
    Ok((socket, peer))
}
