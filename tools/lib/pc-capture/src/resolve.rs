//! A stopped original in doubt: it is ended, or goes on.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use pc_sys::pidfd::{pidfd_open, pidfd_send_signal};
use pc_trace::{SeizeOptions, Tracees};

use crate::check::tids;
use crate::error::{CaptureError, Context, Result};
use crate::frozen::see_it_stand;
use crate::guardian::wait;
use crate::procfs::{Stat, Status};
use crate::tcp;

/// How long the end of a process, or that it goes on, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_millis(1);

/// What becomes of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on: no copy runs.
    Running,
    /// It is ended: the copy runs.
    Gone,
}

/// Ends or resumes an original that a hand-over in doubt, a one-way dump or a killed pc-dump has left stopped.
///
/// Touches only what looks like one: a process whose threads are all stopped, by SIGSTOP, and that nobody traces.
/// [`CaptureError::Refused`] says what does not hold. (One that a person has stopped by SIGSTOP cannot be told apart.)
pub fn resolve(pid: i32, fate: Fate) -> Result<()> {
    let pidfd = pidfd_open(pid).map_err(|_| CaptureError::NoProcess(pid))?;
    stands(pid)?;
    // The kernel reports by which signal a process was stopped only to its tracer.
    let tracees = Tracees::seize(pid, &SeizeOptions::default())?;
    let by = tracees.job_stop();
    tracees.detach()?;
    see_it_stand(pid);
    if by != Some(libc::SIGSTOP) {
        return refused(pid, "was not stopped by SIGSTOP, as pc-dump does it");
    }
    tcp::settle(pid, pidfd.as_fd(), fate)?;
    let signal = match fate {
        Fate::Running => libc::SIGCONT,
        Fate::Gone => libc::SIGKILL,
    };
    pidfd_send_signal(pidfd.as_fd(), signal).of(pid, "sending it a signal")?;
    see(pid, fate, &pidfd)
}

fn refused<T>(pid: i32, why: impl Into<String>) -> Result<T> {
    Err(CaptureError::Refused { pid, why: why.into() })
}

/// Fails unless all threads are stopped and nobody traces it. Where some are, the others are waited for: one that has a
/// stop to come takes it when it is given a CPU, or is back from an uninterruptible wait.
fn stands(pid: i32) -> Result<()> {
    let status = Status::read(pid).map_err(|_| CaptureError::NoProcess(pid))?;
    if status.tgid != pid {
        return refused(pid, format!("is a thread of process {}; give that", status.tgid));
    }
    if status.tracer != 0 {
        return refused(
            pid,
            format!("is held by process {}, which decides what becomes of it", status.tracer),
        );
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let (mut stopped, mut others) = (0, 0);
        for tid in tids(pid)? {
            match Stat::read(tid).map(|stat| stat.state) {
                Ok(b'T') => stopped += 1,
                Ok(b'Z' | b'X') if tid == pid => return refused(pid, "has ended"),
                Ok(b'Z' | b'X') | Err(_) => {}
                Ok(_) => others += 1,
            }
        }
        match (stopped, others) {
            (_, 0) => return Ok(()),
            (0, _) => return refused(pid, "is not stopped: there is nothing to resolve"),
            _ if Instant::now() > until => {
                return refused(
                    pid,
                    format!("is being stopped, but {others} of its threads do not stand yet"),
                );
            }
            _ => std::thread::sleep(BETWEEN),
        }
    }
}

/// Waits until it has ended, or is no longer stopped.
fn see(pid: i32, fate: Fate, pidfd: &OwnedFd) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    if fate == Fate::Gone {
        return match wait(pidfd.as_fd(), Some(until)).of(pid, "waiting for its end")? {
            true => Ok(()),
            false => refused(pid, "was killed, but has not ended yet"),
        };
    }
    while Stat::read(pid).is_ok_and(|stat| stat.state == b'T') {
        if Instant::now() > until {
            return refused(pid, "was sent SIGCONT, but has not gone on yet");
        }
        std::thread::sleep(BETWEEN);
    }
    Ok(())
}
