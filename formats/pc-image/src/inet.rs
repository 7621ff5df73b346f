//! TCP and UDP sockets.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::TcpConnection;
use crate::tcp::Connection;

/// A socket option as getsockopt(2) gave it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SockOpt {
    /// `SOL_SOCKET`, `IPPROTO_TCP`, …
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Value as bytes.
    pub value: Vec<u8>,
}

/// A TCP or UDP socket over IPv4 or IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Inet {
    /// `AF_INET` (2) or `AF_INET6` (10).
    pub family: u16,
    /// `SOCK_STREAM` (1) or `SOCK_DGRAM` (2).
    pub kind: i32,
    /// `IPPROTO_TCP` (6), `IPPROTO_UDP` (17), …
    pub protocol: i32,
    /// What it was doing.
    pub state: InetState,
    /// Options that differ from a new socket's, in the order in which they are to be set: before bind, but for those that
    /// are set when all else is done ([`crate::sockopt::is_last`]).
    pub options: Vec<SockOpt>,
}

/// What a TCP or UDP socket was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InetState {
    /// Neither bound nor connected.
    New,
    /// Bound to an address, not listening.
    Bound(SocketAddr),
    /// Listening.
    Listen {
        /// Address.
        local: SocketAddr,
        /// Backlog.
        backlog: u32,
    },
    /// UDP, connected to a peer.
    ConnectedUdp {
        /// Own address.
        local: SocketAddr,
        /// Peer.
        peer: SocketAddr,
    },
    /// TCP connection that has ended, or was not taken along (`--tcp-close`): the copy finds it reset, or at its end where
    /// its [`crate::SocketState`] says so.
    Closed {
        /// Own address, for people.
        local: Option<SocketAddr>,
        /// Peer, for people.
        peer: Option<SocketAddr>,
    },
    /// TCP connection that goes on (`--tcp-established`).
    Connected(Box<TcpConnection>),
}

/// An address as it stands in a stream. bincode's own form has neither the scope, without which a link-local address
/// cannot be bound, nor the flow.
#[derive(Encode, Decode)]
pub(crate) enum Addr {
    V4 { ip: [u8; 4], port: u16 },
    V6 { ip: [u8; 16], port: u16, flow: u32, scope: u32 },
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(v4) => Self::V4 { ip: v4.ip().octets(), port: v4.port() },
            SocketAddr::V6(v6) => {
                Self::V6 { ip: v6.ip().octets(), port: v6.port(), flow: v6.flowinfo(), scope: v6.scope_id() }
            }
        }
    }
}

impl From<Addr> for SocketAddr {
    fn from(addr: Addr) -> Self {
        match addr {
            Addr::V4 { ip, port } => SocketAddrV4::new(ip.into(), port).into(),
            Addr::V6 { ip, port, flow, scope } => SocketAddrV6::new(ip.into(), port, flow, scope).into(),
        }
    }
}

/// [`InetState`] as it stands in a stream.
#[derive(Encode, Decode)]
enum State {
    New,
    Bound(Addr),
    Listen { local: Addr, backlog: u32 },
    ConnectedUdp { local: Addr, peer: Addr },
    Closed { local: Option<Addr>, peer: Option<Addr> },
    Connected(Connection),
}

impl Encode for InetState {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let state = match self {
            Self::New => State::New,
            Self::Bound(local) => State::Bound((*local).into()),
            Self::Listen { local, backlog } => State::Listen { local: (*local).into(), backlog: *backlog },
            Self::ConnectedUdp { local, peer } => {
                State::ConnectedUdp { local: (*local).into(), peer: (*peer).into() }
            }
            Self::Closed { local, peer } => {
                State::Closed { local: local.map(Into::into), peer: peer.map(Into::into) }
            }
            Self::Connected(tcp) => State::Connected(tcp.as_ref().into()),
        };
        state.encode(encoder)
    }
}

impl<Context> Decode<Context> for InetState {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(match State::decode(decoder)? {
            State::New => Self::New,
            State::Bound(local) => Self::Bound(local.into()),
            State::Listen { local, backlog } => Self::Listen { local: local.into(), backlog },
            State::ConnectedUdp { local, peer } => {
                Self::ConnectedUdp { local: local.into(), peer: peer.into() }
            }
            State::Closed { local, peer } => {
                Self::Closed { local: local.map(Into::into), peer: peer.map(Into::into) }
            }
            State::Connected(tcp) => Self::Connected(Box::new(tcp.into())),
        })
    }
}

bincode::impl_borrow_decode!(InetState);
