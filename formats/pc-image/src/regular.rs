//! Files, directories and devices opened by path.

use bincode::{Decode, Encode};

use crate::FileId;

/// A file, directory or simple device (`/dev/null`, `zero`, `full`, `random`, `urandom`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RegularFile {
    /// Which.
    pub file: FileId,
    /// Offset in bytes.
    pub offset: u64,
}
