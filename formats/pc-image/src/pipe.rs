//! Pipes whose two ends are both in the image.

use bincode::{Decode, Encode};

/// One open end of a pipe. Ends with the same number belong together.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PipeEnd {
    /// The pipe's number in this stream.
    pub pipe: u32,
    /// `F_GETPIPE_SZ` in bytes.
    pub capacity: u32,
    /// What was in the pipe, in the record of the pipe's first end; empty in the others.
    /// A pipe in packet mode (`O_DIRECT`) carries a chunk a packet, any other pipe one chunk.
    pub content: Vec<Vec<u8>>,
}
