//! TCP and UDP sockets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pc_image::{Inet, InetState, SockOpt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::error::{Context, RebuildError};
use crate::openfile::AtRelease;
use crate::settings::Settings;
use crate::tcp;

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
pub fn build(inet: &Inet, settings: &Settings, later: &mut AtRelease) -> Result<OwnedFd, RebuildError> {
    let socket = match &inet.state {
        InetState::Connected(tcp) if settings.tcp_established => return later.connections.build(inet, tcp),
        InetState::Closed { .. } | InetState::Connected(_) => reset(inet)?,
        _ => new(inet)?,
    };
    set_options(&socket, &inet.options)?;
    match &inet.state {
        InetState::New | InetState::Closed { .. } | InetState::Connected(_) => {}
        InetState::Bound(local) => place(&socket, *local, settings, later, || bind(&socket, *local))?,
        InetState::Listen { local, backlog } => {
            let reuse = socket.reuse_address().what("asking for SO_REUSEADDR")?;
            // Its connections stand on its port already.
            socket.set_reuse_address(reuse || settings.tcp_established).what("setting SO_REUSEADDR")?;
            place(&socket, *local, settings, later, || bind(&socket, *local))?;
            let again = socket.try_clone().what("duplicating a socket")?;
            later.listen.push((again, *backlog, reuse));
        }
        InetState::ConnectedUdp { local, peer } => {
            let connect = || {
                bind(&socket, *local)?;
                socket.connect(&SockAddr::from(*peer)).what_of(|| format!("connecting to {peer}"))
            };
            place(&socket, *local, settings, later, connect)?;
        }
    }
    Ok(socket.into())
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

/// Sets options in their order.
pub fn set_options(socket: &impl AsFd, options: &[SockOpt]) -> Result<(), RebuildError> {
    for option in options {
        let value = asked_for(option);
        pc_sys::sockopt::setsockopt(socket.as_fd(), option.level, option.name, &value)
            .what_of(|| format!("setting socket option {} of level {}", option.name, option.level))?;
    }
    Ok(())
}

/// The kernel doubles a buffer's size that it is asked for, and tells the doubled one (socket(7)).
fn asked_for(option: &SockOpt) -> Vec<u8> {
    let buffer = option.level == libc::SOL_SOCKET && matches!(option.name, libc::SO_SNDBUF | libc::SO_RCVBUF);
    match option.value[..].try_into() {
        Ok(bytes) if buffer => (i32::from_ne_bytes(bytes) / 2).to_ne_bytes().to_vec(),
        _ => option.value.clone(),
    }
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
    const AF_INET6: u16 = libc::AF_INET6 as u16;
    let loopback: SocketAddr = match inet.family {
        AF_INET6 => (Ipv6Addr::LOCALHOST, 0).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let listener = new(inet)?;
    let what = "making a connection that is reset";
    listener.bind(&SockAddr::from(loopback)).what(what)?;
    listener.listen(1).what(what)?;
    let socket = new(inet)?;
    socket.connect(&listener.local_addr().what(what)?).what(what)?;
    let (peer, _) = listener.accept().what(what)?;
    peer.set_linger(Some(Duration::ZERO)).what(what)?;
    Ok(socket)
}
