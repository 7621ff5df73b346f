//! Signals: actions and what is pending.

use bincode::{Decode, Encode};

use crate::SigTableId;

/// `struct sigaction` of the kernel (rt_sigaction(2)) for one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct SigAction {
    /// Handler address, 0 = `SIG_DFL`, 1 = `SIG_IGN`.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Restorer address.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// A table of signal actions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SigTable {
    /// Its number.
    pub id: SigTableId,
    /// Actions of signals 1..=64.
    pub actions: Vec<SigAction>,
}

/// A pending signal with all of its data: 128 bytes of `siginfo_t`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SigInfo(pub Vec<u8>);
