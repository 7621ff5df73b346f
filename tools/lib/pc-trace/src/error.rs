//! What can go wrong while another process is held.

use std::io;

use crate::{Call, Tid};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// There is no such process.
    #[error("pid {0}: no such process")]
    NoProcess(i32),
    /// We may not trace it.
    #[error("pid {0}: not permitted to trace it")]
    NotPermitted(i32),
    /// It died, or was killed, while held: the raw wait status.
    #[error("thread {tid} has died ({})", status_text(*.status))]
    Dead {
        /// The thread.
        tid: Tid,
        /// Its wait status.
        status: i32,
    },
    /// A remote system call failed.
    #[error("remote system call {call}: {}", io::Error::from_raw_os_error(*.errno))]
    Remote {
        /// The call.
        call: Call,
        /// `errno`.
        errno: i32,
    },
    /// A ptrace request or an access to the target's memory failed.
    #[error("{what} of thread {tid}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// On which thread.
        tid: Tid,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The target is of a kind that cannot be held.
    #[error("pid {pid}: {what}")]
    Unsupported {
        /// The process.
        pid: i32,
        /// What is not supported.
        what: String,
    },
    /// A thread that is not held was named.
    #[error("thread {0} is not held")]
    NotHeld(Tid),
}

fn status_text(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        format!("killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!("exit status {}", libc::WEXITSTATUS(status))
    }
}

/// Gives a failed kernel call its context. `ESRCH` of a held thread means that it has died.
pub(crate) trait KernelContext<T> {
    fn kernel(self, what: &'static str, tid: Tid) -> Result<T, TraceError>;
}

impl<T> KernelContext<T> for io::Result<T> {
    fn kernel(self, what: &'static str, tid: Tid) -> Result<T, TraceError> {
        self.map_err(|source| TraceError::Kernel { what, tid, source })
    }
}
