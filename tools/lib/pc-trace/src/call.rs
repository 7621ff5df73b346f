//! A system call to be made by another process.

use std::fmt;

/// A system call with its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number (`libc::SYS_*`).
    pub nr: i64,
    /// Its arguments as the target sees them.
    pub args: [u64; 6],
}

impl Call {
    /// A call with up to six arguments; the rest are 0.
    pub fn new<const N: usize>(nr: i64, args: [u64; N]) -> Self {
        const { assert!(N <= 6, "a system call has at most six arguments") };
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        Self { nr, args: all }
    }

    /// An entry of the batch: number, arguments, and a place for the result.
    pub(crate) fn to_entry(self) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        let words = [self.nr as u64].into_iter().chain(self.args);
        for (chunk, word) in entry.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        entry
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.nr)?;
        for (i, arg) in self.args.iter().enumerate() {
            write!(f, "{}{arg:#x}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, ")")
    }
}

/// Bytes of a batch entry.
pub(crate) const ENTRY: usize = 64;
/// Where in an entry the result is put.
pub(crate) const RESULT: usize = 56;

/// Whether a raw result is an error, as libc decides it.
pub(crate) fn errno_of(result: i64) -> Option<i32> {
    (-4095..0).contains(&result).then_some(-result as i32)
}
