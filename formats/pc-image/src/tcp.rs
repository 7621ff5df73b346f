//! TCP connections that are taken along.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::inet::Addr;

/// A connection, so that the copy can go on with it in front of the same peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConnection {
    /// Own address.
    pub local: SocketAddr,
    /// Peer.
    pub peer: SocketAddr,
    /// How far it is.
    pub state: TcpState,
    /// What the process has not read yet.
    pub receive: TcpQueue,
    /// What the process has written and the peer has not acknowledged.
    pub send: TcpQueue,
    /// How many sequence numbers at its end were never sent: bytes, and the end where that was written.
    pub unsent: u32,
    /// Windows.
    pub window: TcpWindow,
    /// What both ends agreed on.
    pub options: TcpOptions,
    /// The process has shut down reading without the peer having ended (shutdown(2)).
    pub shut_read: bool,
}

/// States of a connection, as RFC 9293 names them. Where the end was written or received, its number is that after the
/// last byte of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum TcpState {
    /// Both directions are open.
    Established,
    /// The end was sent, and not acknowledged.
    FinWait1,
    /// The end was sent and acknowledged.
    FinWait2,
    /// The end was sent, not acknowledged, and that of the peer received.
    Closing,
    /// The peer's end was received.
    CloseWait,
    /// The peer's end was received; ours was sent, and not acknowledged.
    LastAck,
}

impl TcpState {
    /// Whether our end was sent.
    pub fn end_sent(self) -> bool {
        matches!(self, Self::FinWait1 | Self::FinWait2 | Self::Closing | Self::LastAck)
    }

    /// Whether the peer's end was received.
    pub fn end_received(self) -> bool {
        matches!(self, Self::Closing | Self::CloseWait | Self::LastAck)
    }
}

/// Bytes of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TcpQueue {
    /// Sequence number of the first byte, or of the next where there is none.
    pub sequence: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Windows, in bytes: `struct tcp_repair_window` of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct TcpWindow {
    /// Sequence number of the segment that announced the peer's window.
    pub snd_wl1: u32,
    /// The peer's window.
    pub snd_wnd: u32,
    /// The largest that it ever announced.
    pub max_window: u32,
    /// Own window.
    pub rcv_wnd: u32,
    /// What was to be received next when it was last announced.
    pub rcv_wup: u32,
}

/// What both ends agreed on when the connection began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct TcpOptions {
    /// The largest segment that the peer takes.
    pub mss: u32,
    /// Shifts of the windows: the peer's and our own.
    pub scale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Timestamps: the clock of our own (`TCP_TIMESTAMP` of tcp(7)).
    pub timestamp: Option<u32>,
}

/// [`TcpConnection`] as it stands in a stream.
#[derive(Encode, Decode)]
pub(crate) struct Connection {
    local: Addr,
    peer: Addr,
    state: TcpState,
    receive: TcpQueue,
    send: TcpQueue,
    unsent: u32,
    window: TcpWindow,
    options: TcpOptions,
    shut_read: bool,
}

impl From<&TcpConnection> for Connection {
    fn from(tcp: &TcpConnection) -> Self {
        Self {
            local: tcp.local.into(),
            peer: tcp.peer.into(),
            state: tcp.state,
            receive: tcp.receive.clone(),
            send: tcp.send.clone(),
            unsent: tcp.unsent,
            window: tcp.window,
            options: tcp.options,
            shut_read: tcp.shut_read,
        }
    }
}

impl From<Connection> for TcpConnection {
    fn from(tcp: Connection) -> Self {
        Self {
            local: tcp.local.into(),
            peer: tcp.peer.into(),
            state: tcp.state,
            receive: tcp.receive,
            send: tcp.send,
            unsent: tcp.unsent,
            window: tcp.window,
            options: tcp.options,
            shut_read: tcp.shut_read,
        }
    }
}
