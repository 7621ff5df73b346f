//! TCP and UDP sockets.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

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
    /// Options that differ from a new socket's, in the order in which they are to be set (before bind).
    pub options: Vec<SockOpt>,
}

/// What a TCP or UDP socket was doing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
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
    /// TCP connection that was not taken along (`--tcp-close`): the copy finds it reset.
    Closed {
        /// Own address, for people.
        local: Option<SocketAddr>,
        /// Peer, for people.
        peer: Option<SocketAddr>,
    },
}
