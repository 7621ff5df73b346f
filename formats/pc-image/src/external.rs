//! Descriptors that reach outside the image.

use bincode::{Decode, Encode};

/// Something whose other end is not in the image. `--attach ID=WHERE` says at the destination what it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ExternalFile {
    /// A readable id, unique in the stream: `pipe:1`, `tty:/dev/pts/3`.
    pub id: String,
    /// What it was.
    pub kind: ExternalKind,
}

/// What the outside thing was.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ExternalKind {
    /// A terminal.
    Terminal,
    /// The end of a pipe that the process reads from.
    PipeRead,
    /// The end of a pipe that the process writes to.
    PipeWrite,
}
