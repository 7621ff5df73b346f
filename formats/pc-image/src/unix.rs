//! Unix sockets.

use bincode::{Decode, Encode};

use crate::SockOpt;

/// A Unix socket that listens, is bound, is new, or is half of a pair inside the image.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct UnixSocket {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: i32,
    /// Name: a path, or an abstract name with a leading zero byte; empty = unnamed.
    pub name: Vec<u8>,
    /// Permissions and owner of the socket's file where it has one: mode, uid, gid.
    pub file: Option<(u32, u32, u32)>,
    /// What it was doing.
    pub state: UnixState,
    /// Options to set.
    pub options: Vec<SockOpt>,
}

/// What a Unix socket was doing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum UnixState {
    /// Neither connected nor listening (bound if it has a name).
    Unconnected,
    /// Listening with this backlog.
    Listen {
        /// Backlog.
        backlog: u32,
    },
    /// Connected to another socket of the image (a socketpair(2), say).
    Pair {
        /// The pair's number in this stream: two sockets share it.
        pair: u32,
        /// Messages that wait to be read from this socket, in order (one chunk for a stream socket).
        queue: Vec<Vec<u8>>,
        /// Shut down for reading (bit 0) and writing (bit 1).
        shutdown: u8,
    },
}
