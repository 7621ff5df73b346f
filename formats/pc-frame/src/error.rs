//! Errors by blame: the channel, the stream, a limit of ours, or the caller.

use std::io;

/// What is wrong with the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The input does not begin with the magic.
    #[error("not a pc-tools stream")]
    Magic,
    /// The preamble's checksum is wrong.
    #[error("the preamble is corrupt (checksum)")]
    PreambleChecksum,
    /// A field of the preamble that must be zero is not.
    #[error("the preamble is malformed")]
    Preamble,
    /// A frame header's checksum is wrong.
    #[error("a frame header is corrupt (checksum)")]
    HeaderChecksum,
    /// A payload's checksum is wrong.
    #[error("a frame's payload is corrupt (checksum)")]
    PayloadChecksum,
    /// Frames are missing, repeated or out of order.
    #[error("frame number {found} where {expected} was due")]
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A flag that nobody defined.
    #[error("undefined frame flags {0:#x}")]
    Flags(u32),
    /// An End frame with a payload.
    #[error("an End frame that is not empty")]
    End,
}

/// Errors of reading and writing frames.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The channel failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The stream is wrong.
    #[error("at byte {offset}, frame {frame}: {what}")]
    Format {
        /// Offset in bytes of the preamble or frame concerned.
        offset: u64,
        /// Its number in the segment.
        frame: u64,
        /// What is wrong.
        what: FormatError,
    },
    /// The stream ends before its End frame.
    #[error("the stream ends early, at byte {offset}, in frame {frame}")]
    Truncated {
        /// Bytes there were.
        offset: u64,
        /// The frame that is missing or cut.
        frame: u64,
    },
    /// A payload is longer than we take.
    #[error("at byte {offset}, frame {frame}: a payload of {len} bytes, above the limit of {limit}")]
    Limit {
        /// Offset in bytes of the frame.
        offset: u64,
        /// Its number.
        frame: u64,
        /// The length it claims.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// A format or feature from the future.
    #[error("the stream needs {0}, which this version does not know")]
    Unsupported(String),
    /// The caller asked for what cannot be.
    #[error("{0}")]
    Caller(&'static str),
}
