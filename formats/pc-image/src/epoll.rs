//! epoll(7).

use bincode::{Decode, Encode};

use crate::OpenFileId;

/// A file watched by an epoll instance.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EpollTarget {
    /// The descriptor number under which it was added.
    pub fd: u32,
    /// What that descriptor referred to when it was added.
    pub file: OpenFileId,
    /// `EPOLL*` event bits.
    pub events: u32,
    /// User data.
    pub data: u64,
}

/// An epoll instance.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EpollState {
    /// What it watches.
    pub targets: Vec<EpollTarget>,
}
