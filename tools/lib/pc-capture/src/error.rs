//! Errors of capture, by what a caller can do about them.

use std::fmt;
use std::io;

use pc_image::ImageError;
use pc_trace::TraceError;

pub use crate::unsupported::Unsupported;
use crate::unsupported::lines;

/// Why a process was not captured. It runs on as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// There is no such process, or it has ended.
    #[error("pid {0}: no such process")]
    NoProcess(i32),
    /// It cannot be taken now: a zombie, traced by another, this tool's own ancestor …
    #[error("pid {pid}: {why}")]
    Refused {
        /// The process.
        pid: i32,
        /// Why.
        why: String,
    },
    /// The caller lacks the rights.
    #[error("pid {pid}: not permitted ({what})")]
    NotPermitted {
        /// The process.
        pid: i32,
        /// For what.
        what: String,
    },
    /// It has what cannot be rebuilt. Never empty; the text has a line for each reason.
    #[error("{}", lines(.0))]
    Unsupported(Vec<Unsupported>),
    /// A signal asked to stop.
    #[error("cancelled; pid {0} runs on")]
    Cancelled(i32),
    /// It writes memory faster than it can be sent, and may not be stopped for as long as that takes.
    #[error(
        "pid {pid} runs on: it would have to be stopped for about {} ms, above the limit of {} ms",
        .stop.as_millis(), .limit.as_millis()
    )]
    TooBusy {
        /// The process.
        pid: i32,
        /// How long the stop would be.
        stop: std::time::Duration,
        /// How long it may be.
        limit: std::time::Duration,
    },
    /// It died while it was being captured.
    #[error("pid {0} died meanwhile")]
    Died(i32),
    /// Holding it failed.
    #[error(transparent)]
    Trace(TraceError),
    /// The kernel refused something.
    #[error("pid {pid}: {what}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Writing the stream failed.
    #[error("writing the stream")]
    Write(#[source] ImageError),
}

impl CaptureError {
    /// The process is no longer the program that was looked at (execve(2)).
    pub(crate) fn another_program(pid: i32) -> Self {
        Self::Refused { pid, why: "has begun another program meanwhile".to_owned() }
    }
}

impl From<TraceError> for CaptureError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::NoProcess(pid) => Self::NoProcess(pid),
            TraceError::NotPermitted(pid) => Self::NotPermitted { pid, what: "tracing it".to_owned() },
            TraceError::Unsupported { pid, what } => {
                Self::Unsupported(vec![Unsupported::new(pid, None, what)])
            }
            TraceError::Dead { tid, .. } => Self::Died(tid),
            TraceError::Kernel { tid, ref source, .. } if source.raw_os_error() == Some(libc::ESRCH) => {
                Self::Died(tid)
            }
            other => Self::Trace(other),
        }
    }
}

impl From<ImageError> for CaptureError {
    fn from(error: ImageError) -> Self {
        Self::Write(error)
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, CaptureError>;

/// Says that something of a process cannot be moved.
pub(crate) fn unsupported<T>(pid: i32, fd: Option<i32>, what: impl Into<String>) -> Result<T> {
    Err(CaptureError::Unsupported(vec![Unsupported::new(pid, fd, what)]))
}

/// Whether a process or thread is there: what it has let go of answers ESRCH too (a thread that ends, say).
pub(crate) fn is_alive(pid: i32) -> bool {
    crate::procfs::Stat::read(pid).is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
}

/// Gives a failed kernel call its context; a process that is gone is reported as such.
pub(crate) trait Context<T> {
    fn of(self, pid: i32, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn of(self, pid: i32, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let source: io::Error = error.into();
            match source.raw_os_error() {
                Some(libc::ESRCH) if !is_alive(pid) => CaptureError::Died(pid),
                Some(libc::EPERM | libc::EACCES) => {
                    CaptureError::NotPermitted { pid, what: what.to_string() }
                }
                _ => CaptureError::Kernel { pid, what: what.to_string(), source },
            }
        })
    }
}
