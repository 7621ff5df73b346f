//! Settings of an address space beside those of [`crate::MmState`].

use bincode::{Decode, Encode};

use crate::SpaceId;

/// What was set for an address space that few programs set. Said only where it says something: without it, nothing of it
/// was set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct MmSettings {
    /// The address space.
    pub space: SpaceId,
    /// Protection keys that the program has allocated (pkey_alloc(2)): bit N for key N. Key 0 is always there, and not
    /// among them. A mapping may have a key that is freed again.
    pub pkeys: u32,
    /// The key that the kernel itself has allocated for mappings that may only be executed (pkeys(7)).
    pub execute_only_pkey: Option<u8>,
    /// `PR_GET_MDWE`: memory that may be written is never executed. Bits `PR_MDWE_*`.
    pub mdwe: u32,
    /// Flags of `PR_SET_THP_DISABLE` (`PR_THP_DISABLE_EXCEPT_ADVISED`), where `thp_disable` of MmState is set.
    pub thp_flags: u32,
    /// `PR_GET_MEMORY_MERGE`: every mapping takes part in KSM.
    pub memory_merge: bool,
    /// modify_ldt(2): numbers of the entries in use, ascending, and their descriptors as the CPU has them.
    pub ldt: Vec<(u32, u64)>,
    /// Mappings that are sealed (mseal(2)): ranges `(start, end)`, ascending.
    pub sealed: Vec<(u64, u64)>,
    /// Memory policies of mappings (mbind(2)), ascending.
    pub policies: Vec<RangePolicy>,
    /// Memory policies of threads (set_mempolicy(2)), by ascending tid.
    pub thread_policies: Vec<ThreadPolicy>,
}

impl MmSettings {
    /// Whether any of it was set.
    pub fn says_something(&self) -> bool {
        *self != Self { space: self.space, ..Self::default() }
    }
}

/// A memory policy: see set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct MemPolicy {
    /// `MPOL_*` with its mode flags (`MPOL_F_*`).
    pub mode: u32,
    /// Memory nodes: bit N of byte N/8, without zero bytes at the end.
    pub nodes: Vec<u8>,
}

/// The policy of a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RangePolicy {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Its policy.
    pub policy: MemPolicy,
}

/// The policy of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ThreadPolicy {
    /// Its tid in its own pid namespace.
    pub tid: u32,
    /// Its policy.
    pub policy: MemPolicy,
}
