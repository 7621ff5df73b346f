//! What can go wrong while a process is rebuilt.

use std::io;

use pc_image::ImageError;
use pc_trace::TraceError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// The stream could not be read, or is bad.
    #[error("reading the stream")]
    Image(#[from] ImageError),
    /// The stream ended before it was committed: nothing may run.
    #[error("the stream ended before it was committed")]
    NotCommitted,
    /// The source gave up.
    #[error("the source cancelled: {0}")]
    Cancelled(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Records contradict each other, or name what was never sent.
    #[error("the stream contradicts itself: {0}")]
    Contradiction(String),
    /// It cannot be rebuilt on this machine, or not by this version.
    #[error("{0}")]
    Unsupported(String),
    /// What the caller does when everything is built has failed.
    #[error("{0}")]
    NotReady(String),
    /// A process id that the copy needs is in use.
    #[error("pid {pid} is taken by {holder}")]
    PidTaken {
        /// The id.
        pid: u32,
        /// Who has it.
        holder: String,
    },
    /// Working on the copy in the making failed.
    #[error("{what}")]
    Trace {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: TraceError,
    },
    /// A kernel call failed.
    #[error("{what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl From<TraceError> for RebuildError {
    fn from(source: TraceError) -> Self {
        Self::Trace { what: "building the process", source }
    }
}

/// Gives a failure its context.
pub(crate) trait Context<T> {
    /// What was tried, fixed.
    fn what(self, what: &'static str) -> Result<T, RebuildError>;
    /// What was tried, put together.
    fn what_of(self, what: impl FnOnce() -> String) -> Result<T, RebuildError>;
}

impl<T> Context<T> for io::Result<T> {
    fn what(self, what: &'static str) -> Result<T, RebuildError> {
        self.map_err(|source| RebuildError::Kernel { what: what.to_owned(), source })
    }
    fn what_of(self, what: impl FnOnce() -> String) -> Result<T, RebuildError> {
        self.map_err(|source| RebuildError::Kernel { what: what(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn what(self, what: &'static str) -> Result<T, RebuildError> {
        self.map_err(io::Error::from).what(what)
    }
    fn what_of(self, what: impl FnOnce() -> String) -> Result<T, RebuildError> {
        self.map_err(io::Error::from).what_of(what)
    }
}

impl<T> Context<T> for Result<T, TraceError> {
    fn what(self, what: &'static str) -> Result<T, RebuildError> {
        self.map_err(|source| RebuildError::Trace { what, source })
    }
    fn what_of(self, what: impl FnOnce() -> String) -> Result<T, RebuildError> {
        self.map_err(|source| match source {
            TraceError::Remote { errno, .. } => {
                RebuildError::Kernel { what: what(), source: io::Error::from_raw_os_error(errno) }
            }
            source => RebuildError::Kernel { what: what(), source: io::Error::other(source) },
        })
    }
}

/// A raw result of a remote call that may not fail.
pub(crate) fn raw_ok(result: i64, what: impl FnOnce() -> String) -> Result<u64, RebuildError> {
    if (-4095..0).contains(&result) {
        let source = io::Error::from_raw_os_error(-result as i32);
        return Err(RebuildError::Kernel { what: what(), source });
    }
    Ok(result as u64)
}

/// The stream names something that it never sent.
pub(crate) fn missing(what: &str, id: u32) -> RebuildError {
    RebuildError::Contradiction(format!("{what} {id} was never sent"))
}
