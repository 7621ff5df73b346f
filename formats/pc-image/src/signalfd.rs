//! signalfd(2).

use bincode::{Decode, Encode};

/// A signalfd.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignalFd {
    /// The signals it accepts.
    pub mask: u64,
}
