//! Files of /proc that mean a process.

use bincode::{Decode, Encode};

use crate::TaskId;

/// A file or directory of procfs (proc(5)) that means a process of the tree or one of its threads, not whoever has its number.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProcFile {
    /// Whose.
    pub task: TaskId,
    /// The thread (by its own id) whose file it is in /proc/PID/task; none for a file of /proc/PID itself.
    pub thread: Option<u32>,
    /// Its path in that directory: `mem`, `net/tcp`; empty for the directory itself.
    pub path: Vec<u8>,
    /// Offset in bytes.
    pub offset: u64,
}
