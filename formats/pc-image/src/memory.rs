//! Address spaces, their mappings, and what is in them.

use bincode::{Decode, Encode};

use crate::{FileId, SpaceId};

/// Bytes in a page on every architecture that a stream can come from today.
pub const PAGE_SIZE: u64 = 4096;

/// A space is born.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Space {
    /// Its number.
    pub id: SpaceId,
    /// What it is.
    pub kind: SpaceKind,
}

/// What a space is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum SpaceKind {
    /// An address space (`mm_struct`).
    Mm,
    /// A shared memory object: shared anonymous memory, a memfd or SysV segment. Addresses in it are offsets.
    Shm {
        /// Length in bytes when it was found.
        size: u64,
        /// Its name, as /proc/PID/maps shows it.
        name: String,
    },
}

/// Bits of [`Vma::prot`]: those of mmap(2).
pub mod prot {
    /// `PROT_READ`
    pub const READ: u8 = 1;
    /// `PROT_WRITE`
    pub const WRITE: u8 = 2;
    /// `PROT_EXEC`
    pub const EXEC: u8 = 4;
}

/// Bits of [`Vma::flags`].
pub mod vma_flag {
    /// `MAP_SHARED`
    pub const SHARED: u32 = 1 << 0;
    /// `MAP_GROWSDOWN`: a stack of the kernel's making.
    pub const GROWSDOWN: u32 = 1 << 1;
    /// `MAP_NORESERVE`
    pub const NORESERVE: u32 = 1 << 2;
    /// mlock(2)
    pub const LOCKED: u32 = 1 << 3;
    /// mlock2(2) with `MLOCK_ONFAULT`
    pub const LOCKED_ONFAULT: u32 = 1 << 4;
    /// The mapping could be made writable (`VM_MAYWRITE`); not so for a shared mapping of a file opened read-only.
    pub const MAYWRITE: u32 = 1 << 5;
    /// `MADV_DONTFORK`
    pub const DONTFORK: u32 = 1 << 8;
    /// `MADV_DONTDUMP`
    pub const DONTDUMP: u32 = 1 << 9;
    /// `MADV_WIPEONFORK`
    pub const WIPEONFORK: u32 = 1 << 10;
    /// `MADV_MERGEABLE`
    pub const MERGEABLE: u32 = 1 << 11;
    /// `MADV_HUGEPAGE`
    pub const HUGEPAGE: u32 = 1 << 12;
    /// `MADV_NOHUGEPAGE`
    pub const NOHUGEPAGE: u32 = 1 << 13;
    /// `MADV_SEQUENTIAL`
    pub const SEQUENTIAL: u32 = 1 << 14;
    /// `MADV_RANDOM`
    pub const RANDOM: u32 = 1 << 15;
    /// `MAP_DROPPABLE`: memory that the kernel may drop under pressure.
    pub const DROPPABLE: u32 = 1 << 16;
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Vma {
    /// First address; a multiple of the page size.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Bits of [`prot`].
    pub prot: u8,
    /// Bits of [`vma_flag`].
    pub flags: u32,
    /// Memory protection key, 0 by default.
    pub pkey: u8,
    /// What it shows.
    pub backing: Backing,
    /// The name given by `PR_SET_VMA_ANON_NAME`.
    pub name: Option<String>,
}

/// What a mapping shows where the process has not written.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Backing {
    /// Zeroes.
    Anonymous,
    /// A file from this offset in bytes. Private mappings carry pages that differ; shared ones read-only carry none.
    File {
        /// The file.
        file: FileId,
        /// Offset in bytes.
        offset: u64,
    },
    /// A shared memory space from this offset in bytes. Private mappings carry pages that differ.
    Shm {
        /// The space.
        space: SpaceId,
        /// Offset in bytes.
        offset: u64,
    },
    /// Huge pages (`MAP_HUGETLB`) of `1 << shift` bytes, private and anonymous.
    Hugetlb {
        /// Logarithm of the huge page's size in bytes.
        shift: u8,
    },
    /// The vDSO's code.
    Vdso,
    /// The vDSO's data.
    Vvar,
    /// The vDSO's clock pages of hypervisors (`[vvar_vclock]`).
    VvarVclock,
    /// `[vsyscall]`, which every process has and nobody maps.
    Vsyscall,
}

/// How the mappings of an address space have changed. Applied in order: all of `unmap`, then all of `map`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MapChange {
    /// The address space.
    pub space: SpaceId,
    /// Ranges `(start, end)` that are mapped no more. Their pages are gone with them.
    pub unmap: Vec<(u64, u64)>,
    /// New mappings, ascending and not overlapping each other nor what is still mapped.
    pub map: Vec<Vma>,
    /// Mappings that remain, with their pages, but have another protection, flags or name.
    pub modify: Vec<Vma>,
}

/// Pages that read as zero (or as the file below) from here on, whatever was sent before: dropped by
/// `MADV_DONTNEED` and the like. The destination drops them too.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Zap {
    /// The space.
    pub space: SpaceId,
    /// Ranges `(start, end)` in bytes, whole pages, ascending.
    pub ranges: Vec<(u64, u64)>,
}

/// Pages that are present and hold only zeroes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ZeroPages {
    /// The space.
    pub space: SpaceId,
    /// Ranges `(start, end)` in bytes, whole pages, ascending.
    pub ranges: Vec<(u64, u64)>,
}

/// The address space's own figures: what `PR_SET_MM_MAP` takes (struct prctl_mm_map), and the executable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct MmState {
    /// The address space.
    pub space: SpaceId,
    /// Code, data, heap and stack borders (see proc_pid_stat(5)).
    pub start_code: u64,
    /// End of code.
    pub end_code: u64,
    /// Start of data.
    pub start_data: u64,
    /// End of data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Current break.
    pub brk: u64,
    /// Bottom of the main stack.
    pub start_stack: u64,
    /// Command line.
    pub arg_start: u64,
    /// End of the command line.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// The auxiliary vector as /proc/PID/auxv gives it.
    pub auxv: Vec<u8>,
    /// The executable: what /proc/PID/exe points to.
    pub exe: FileId,
    /// `PR_GET_DUMPABLE`: 0, 1 or 2.
    pub dumpable: u8,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// `mlockall(MCL_FUTURE)` style default flags, as bits of [`vma_flag`] (`LOCKED`, `LOCKED_ONFAULT`).
    pub lock_future: u32,
    /// Guard pages of `MADV_GUARD_INSTALL`: ranges `(start, end)`, ascending. Nothing is in them.
    pub guards: Vec<(u64, u64)>,
}
