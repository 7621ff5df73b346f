//! Where a link goes to.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::stat::Mode;
use socket2::{Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::LinkError;
use crate::stale;

/// An address as people write it: `host:port`, `[::1]:port`, `:port`, `unix:PATH`, `vsock:CID:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addr {
    /// TCP over IPv4 or IPv6. Without a host: every address when listening, the loopback when connecting.
    Tcp {
        /// A name or an address, without brackets; empty where none was given.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket by its path.
    Unix(PathBuf),
    /// A socket between a virtual machine and its host (see vsock(7)).
    Vsock {
        /// The context id; `u32::MAX` for any when listening.
        cid: u32,
        /// The port.
        port: u32,
    },
}

const CID_ANY: u32 = u32::MAX;
const CID_LOCAL: u32 = 1;

impl FromStr for Addr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let max = 107; // sun_path with its closing zero
            return match path.len() {
                0 => Err("unix: needs a path".into()),
                len if len > max => Err(format!("the path of a Unix socket has {max} bytes at most")),
                _ => Ok(Addr::Unix(path.into())),
            };
        }
        if let Some(rest) = text.strip_prefix("vsock:") {
            let bad = || "expected vsock:CID:PORT with two numbers (or \"any\" for CID)".to_owned();
            let (cid, port) = rest.split_once(':').ok_or_else(bad)?;
            let cid = if cid == "any" { CID_ANY } else { cid.parse().map_err(|_| bad())? };
            return Ok(Addr::Vsock { cid, port: port.parse().map_err(|_| bad())? });
        }
        let bad = || "expected HOST:PORT, [IPV6]:PORT, unix:PATH or vsock:CID:PORT".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(bad()),
            None if host.contains(':') => {
                return Err("an IPv6 address stands in brackets: [::1]:7000".into());
            }
            None => host,
        };
        let port = port.parse().map_err(|_| format!("\"{port}\" is no port number"))?;
        Ok(Addr::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Addr::Tcp { host, port } => write!(f, "{host}:{port}"),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
            Addr::Vsock { cid: CID_ANY, port } => write!(f, "vsock:any:{port}"),
            Addr::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Addr {
    /// The addresses to try, in their order.
    fn resolve(&self, listen: bool) -> Result<Vec<SockAddr>, LinkError> {
        let failed = |why: io::Error| LinkError::connect(format!("cannot resolve {self}"), why);
        Ok(match self {
            Addr::Tcp { host, port } if host.is_empty() && listen => {
                let v6: SocketAddr = (Ipv6Addr::UNSPECIFIED, *port).into();
                let v4: SocketAddr = (Ipv4Addr::UNSPECIFIED, *port).into();
                vec![v6.into(), v4.into()]
            }
            Addr::Tcp { host, port } => {
                let host = if host.is_empty() { "localhost" } else { host.as_str() };
                (host, *port).to_socket_addrs().map_err(failed)?.map(SockAddr::from).collect()
            }
            Addr::Unix(path) => vec![SockAddr::unix(path).map_err(failed)?],
            Addr::Vsock { cid, port } => vec![SockAddr::vsock(*cid, *port)],
        })
    }

    /// Without a key nothing but this machine may be spoken to, unless that was asked for.
    pub(crate) fn judge(&self, listen: bool, key: bool, plaintext: bool) -> Result<(), LinkError> {
        if key || plaintext {
            return Ok(());
        }
        let local = match self {
            Addr::Unix(_) => true,
            Addr::Vsock { cid, .. } => *cid == CID_LOCAL,
            Addr::Tcp { .. } => self
                .resolve(listen)?
                .iter()
                .all(|addr| addr.as_socket().is_some_and(|addr| addr.ip().to_canonical().is_loopback())),
        };
        if local {
            return Ok(());
        }
        let what = if listen { "listening on" } else { "sending to" };
        Err(LinkError::Usage(format!(
            "{what} {self} without a key: nobody would be authenticated and everybody could read along; \
             give both ends --key-file, or say --plaintext"
        )))
    }

    /// Connects, with a time limit for each address tried.
    pub(crate) fn connect(&self, limit: Duration) -> Result<Socket, LinkError> {
        let failed = |why: io::Error| LinkError::connect(format!("cannot connect to {self}"), why);
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for addr in self.resolve(false)? {
            let socket = Socket::new(addr.domain(), Type::STREAM, None).map_err(failed)?;
            // Unix sockets connect at once or not at all.
            let tried =
                if addr.is_unix() { socket.connect(&addr) } else { socket.connect_timeout(&addr, limit) };
            match tried {
                Ok(()) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Listens.
    pub(crate) fn listen(&self) -> Result<Socket, LinkError> {
        let failed = |why: io::Error| LinkError::connect(format!("cannot listen on {self}"), why);
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for addr in self.resolve(true)? {
            match self.bind(&addr) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    fn bind(&self, addr: &SockAddr) -> io::Result<Socket> {
        let socket = Socket::new(addr.domain(), Type::STREAM, None)?;
        match self {
            Addr::Tcp { host, .. } => {
                socket.set_reuse_address(true)?;
                if addr.is_ipv6() && host.is_empty() {
                    socket.set_only_v6(false)?;
                }
                socket.bind(addr)?;
            }
            Addr::Unix(path) => {
                stale::clear(path)?;
                // Who may connect is who may open the file: its owner.
                let before = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
                let bound = socket.bind(addr);
                nix::sys::stat::umask(before);
                bound?;
            }
            Addr::Vsock { .. } => socket.bind(addr)?,
        }
        socket.listen(64)?;
        Ok(socket)
    }
}

/// The address that a socket really listens on, or its peer's, for people.
pub(crate) fn show(addr: &SockAddr) -> String {
    if let Some(addr) = addr.as_socket() {
        return SocketAddr::new(addr.ip().to_canonical(), addr.port()).to_string();
    }
    if let Some(path) = addr.as_pathname() {
        return format!("unix:{}", path.display());
    }
    match addr.as_vsock_address() {
        Some((cid, port)) => format!("vsock:{cid}:{port}"),
        None => "a local process".into(),
    }
}

/// Time-outs and options for a connection. Silence of `limit` ends every read and write on it.
pub(crate) fn prepare(socket: &Socket, limit: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    let tcp = socket.local_addr()?.as_socket().is_some();
    if tcp && socket.protocol()?.is_none_or(|protocol| protocol == Protocol::TCP) {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(limit))?;
        let step = (limit / 4).max(Duration::from_secs(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(step).with_interval(step).with_retries(3))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Addr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_and_shown_as_people_write_them() {
        for text in ["127.0.0.1:7000", "[::1]:7000", "host.example:1", ":7000", "unix:/run/x", "vsock:3:9"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse("vsock:any:9"), Addr::Vsock { cid: CID_ANY, port: 9 });
        for bad in ["", "7000", "::1:7000", "[x]:1", "h:", "h:65536", "h:-1", "unix:", "vsock:1", "vsock:x:1"]
        {
            assert!(bad.parse::<Addr>().is_err(), "{bad}");
        }
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<Addr>().is_err());
    }

    #[test]
    fn without_a_key_only_this_machine_is_spoken_to() {
        for local in ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x", "vsock:1:1", "127.9.9.9:1"] {
            assert!(parse(local).judge(true, false, false).is_ok(), "{local}");
        }
        for far in [":1", "0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1", "vsock:2:1", "vsock:any:1"]
        {
            assert!(matches!(parse(far).judge(true, false, false), Err(LinkError::Usage(_))), "{far}");
            assert!(
                parse(far).judge(true, true, false).is_ok() && parse(far).judge(true, false, true).is_ok()
            );
        }
        assert!(parse(":1").judge(false, false, false).is_ok(), "to connect it means the loopback");
    }
}
