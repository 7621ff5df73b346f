//! Errors by blame.

use pc_frame::FrameError;

/// What can go wrong between records and bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The frame layer: the channel, a corrupt or cut stream, a limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A record's body cannot be decoded.
    #[error("at byte {offset}, frame {frame}: a malformed {record} record: {what}")]
    Body {
        /// Offset in bytes of the frame.
        offset: u64,
        /// Its number in the segment.
        frame: u64,
        /// The record's name.
        record: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A record stands where it may not, or contradicts what came before.
    #[error("at byte {offset}, frame {frame}: {what}")]
    Grammar {
        /// Offset in bytes of the frame.
        offset: u64,
        /// Its number in the segment.
        frame: u64,
        /// What is wrong.
        what: String,
    },
    /// The stream ends without a Commit.
    #[error("the stream ends at byte {offset} without a Commit")]
    Uncommitted {
        /// Bytes there were.
        offset: u64,
    },
    /// What this version or machine cannot read: a record type or version, an architecture, a page size.
    #[error("{0}")]
    Unsupported(String),
    /// The caller's mistake.
    #[error("{0}")]
    Caller(String),
}

impl From<std::io::Error> for ImageError {
    fn from(err: std::io::Error) -> Self {
        Self::Frame(FrameError::Io(err))
    }
}

/// Whom an error is to be blamed on, as the tools' exit codes tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Reading or writing failed.
    Channel,
    /// The stream is wrong.
    Stream,
    /// The stream ends early.
    Truncated,
    /// It is right, but not for us.
    Unsupported,
    /// A mistake of ours.
    Caller,
}

impl ImageError {
    /// Sorts the error.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Frame(FrameError::Io(_)) => Blame::Channel,
            Self::Frame(FrameError::Truncated { .. }) | Self::Uncommitted { .. } => Blame::Truncated,
            Self::Frame(FrameError::Unsupported(_)) | Self::Unsupported(_) => Blame::Unsupported,
            Self::Frame(FrameError::Caller(_)) | Self::Caller(_) => Blame::Caller,
            Self::Frame(_) | Self::Body { .. } | Self::Grammar { .. } => Blame::Stream,
        }
    }
}
