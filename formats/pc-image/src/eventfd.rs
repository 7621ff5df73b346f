//! eventfd(2).

use bincode::{Decode, Encode};

/// An eventfd.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EventFd {
    /// Its counter.
    pub count: u64,
    /// `EFD_SEMAPHORE`.
    pub semaphore: bool,
}
