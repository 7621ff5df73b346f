//! Files by path: what must be there at the destination.

use bincode::{Decode, Encode};

use crate::FileId;

/// A file that must be the same, or at least suitable, at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct File {
    /// Its number.
    pub id: FileId,
    /// Absolute path as the process sees it. Bytes, for paths need not be UTF-8.
    pub path: Vec<u8>,
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    /// `st_size` in bytes at the time of the dump.
    pub size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    pub mtime: i64,
    /// `st_rdev` of device files.
    pub rdev: u64,
    /// The GNU build id of an ELF file that is mapped; stronger than size and time.
    pub build_id: Option<Vec<u8>>,
    /// What the destination has to check.
    pub need: FileNeed,
}

/// How alike the file at the destination has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum FileNeed {
    /// Mapped, executed or opened read-only: the same build id, else the same size and mtime.
    Same,
    /// Opened for writing: it exists, is of the same kind, and reaches at least to the descriptor's offset.
    Exists,
    /// A directory or device: it exists and is of the same kind (and the same device number).
    Kind,
}
