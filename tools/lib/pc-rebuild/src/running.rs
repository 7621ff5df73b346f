//! The restored process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use pc_sys::pidfd::{pidfd_open, pidfd_send_signal};
use pc_sys::ptrace::{self, Stop};

/// How long it took. Of the parts, those before the last byte overlap with the receiving.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From the last byte to running.
    pub restore: Duration,
    /// From the first byte to the last.
    pub receive: Duration,
    /// Mappings and pages of all rounds, as far as they kept the caller waiting.
    pub apply: Duration,
    /// Of the receiving, what is behind the beginning of the last round.
    pub last_receive: Duration,
    /// Of the applying, what is behind the beginning of the last round.
    pub last_apply: Duration,
    /// Descriptors.
    pub descriptors: Duration,
    /// Threads, signals, timers, credentials.
    pub threads: Duration,
    /// What the caller did when everything was built ([`crate::Settings::on_ready`]).
    pub hooks: Duration,
    /// From the last remote call to running.
    pub release: Duration,
}

/// A process that runs (or is stopped, if that was asked for).
#[derive(Debug)]
pub struct Restored {
    /// Its pid as the caller sees it.
    pub pid: i32,
    /// How many threads it has.
    pub threads: usize,
    /// Pages that came with their bytes.
    pub pages: u64,
    /// Pages of which changed bytes came, counted each time.
    pub patched: u64,
    /// How long it took.
    pub times: Times,
    child: i32,
    pidfd: io::Result<OwnedFd>,
}

impl Restored {
    /// `init` is the init of its pid namespace, which is the caller's child instead of it; `pages` came with their bytes or
    /// patched.
    pub(crate) fn new(
        pid: i32,
        init: Option<i32>,
        threads: usize,
        (pages, patched): (u64, u64),
        times: Times,
    ) -> Self {
        let child = init.unwrap_or(pid);
        Self { pid, threads, pages, patched, times, child, pidfd: pidfd_open(child) }
    }

    /// Readable once the process (or, in a pid namespace of its own, all of it) has ended.
    pub fn end(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.pidfd {
            Ok(fd) => Ok(fd.as_fd()),
            Err(err) => Err(io::Error::new(err.kind(), err.to_string())),
        }
    }

    /// Sends it a signal, through the init where there is one. That it has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match pidfd_send_signal(self.end()?, signal) {
            Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Waits for its end; the status as a shell gives it: 128 + the signal that ended it, if one did.
    pub fn reap(&self) -> io::Result<u8> {
        loop {
            if let Stop::Dead(status) = ptrace::wait(self.child)? {
                return Ok(pc_sys::birth::exit_code(status) as u8);
            }
        }
    }
}
