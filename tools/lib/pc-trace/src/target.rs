//! What /proc shows of a process that is to be held.

use std::fs;
use std::io;

use crate::error::{KernelContext, TraceError};

/// The lines of /proc/PID/status that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub ns_pid: i32,
    pub seccomp: u32,
    pub caught: u64,
    pub ignored: u64,
    pub blocked: u64,
    pub pending: u64,
    /// Threads that have not ended.
    pub threads: usize,
}

impl Status {
    /// Of process or thread `pid`.
    pub fn read(pid: i32) -> io::Result<Self> {
        read(&format!("/proc/{pid}/status")).map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let hex = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
            match key {
                "Pid" if status.ns_pid == 0 => status.ns_pid = value.trim().parse().unwrap_or(0),
                "NSpid" => {
                    let innermost = value.split_whitespace().last().and_then(|v| v.parse().ok());
                    status.ns_pid = innermost.unwrap_or(status.ns_pid);
                }
                "Threads" => status.threads = value.trim().parse().unwrap_or(0),
                "Seccomp" => status.seccomp = value.trim().parse().unwrap_or(0),
                "SigPnd" | "ShdPnd" => status.pending |= hex(),
                "SigBlk" => status.blocked = hex(),
                "SigIgn" => status.ignored = hex(),
                "SigCgt" => status.caught = hex(),
                _ => {}
            }
        }
        status
    }

    /// Whether a signal waits that would be delivered at once: not blocked and not ignored.
    pub fn deliverable(&self) -> bool {
        const IGNORED_BY_DEFAULT: u64 =
            bit(libc::SIGCHLD) | bit(libc::SIGURG) | bit(libc::SIGWINCH) | bit(libc::SIGCONT);
        let discarded = self.ignored | (IGNORED_BY_DEFAULT & !self.caught);
        self.pending & !self.blocked & !discarded != 0
    }
}

/// A file of /proc. Names and paths in it need not be text, and do not matter here.
fn read(path: &str) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The bit of a signal in the kernel's masks.
pub(crate) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Where the vDSO and the main stack lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub vdso: (u64, u64),
    pub stack: (u64, u64),
}

impl Places {
    /// Reads them from /proc/PID/maps.
    pub fn read(pid: i32) -> Result<Self, TraceError> {
        let maps = read(&format!("/proc/{pid}/maps")).kernel("reading the mappings", pid)?;
        let find = |name: &str| {
            let line = maps.lines().rev().find(|line| line.ends_with(name))?;
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        };
        let missing = |name| TraceError::Unsupported { pid, what: format!("it has no {name}") };
        Ok(Self {
            vdso: find("[vdso]").ok_or_else(|| missing("[vdso]"))?,
            stack: find("[stack]").ok_or_else(|| missing("[stack]"))?,
        })
    }
}

/// The threads of a process that exist now.
pub(crate) fn list_threads(pid: i32) -> io::Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            tids.push(tid);
        }
    }
    Ok(tids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_takes_the_innermost_pid_and_both_pending_sets() {
        let status = Status::parse(
            "Name:\tx\nPid:\t700\nNSpid:\t700\t5\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000200\n\
             SigBlk:\t0000000000000001\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000200\nSeccomp:\t2\n",
        );
        assert_eq!((status.ns_pid, status.pending, status.seccomp), (5, 0x201, 2));
        assert!(status.deliverable());
    }

    #[test]
    fn a_pending_signal_that_will_be_ignored_is_not_deliverable() {
        let status = Status { pending: bit(libc::SIGWINCH), ..Status::default() };
        assert!(!status.deliverable());
    }
}
