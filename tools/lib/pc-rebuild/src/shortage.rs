//! Memory that runs out while a process is built: the kernel ends the husk, and what fails then is whatever was being
//! done to it.

use std::error::Error;
use std::fs;
use std::io;

use pc_trace::TraceError;

use crate::error::RebuildError;

/// Notes what tells a shortage of memory from other failures.
#[derive(Debug)]
pub struct Watch {
    kills: u64,
}

impl Watch {
    /// From here on.
    pub fn begin() -> Self {
        Self { kills: kills() }
    }

    /// The same error, but for one that comes of a shortage of memory: that is then what it says.
    pub fn explain(&self, error: RebuildError) -> RebuildError {
        self.judge(error, kills())
    }

    fn judge(&self, error: RebuildError, kills: u64) -> RebuildError {
        if !matches!(error, RebuildError::Trace { .. } | RebuildError::Kernel { .. }) {
            return error;
        }
        if kills > self.kills && is_of_a_dead_process(&error) {
            let why = "memory ran out here, and the kernel has ended the process in the making";
            return RebuildError::Unsupported(why.into());
        }
        if errno(&error) == Some(libc::ENOMEM) {
            return RebuildError::Unsupported(format!("memory is short here: {}", text(&error)));
        }
        error
    }
}

/// How often the kernel has ended processes for want of memory, on this machine and in any control group.
fn kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}

/// Whether this is what one gets who works on a process that has been killed.
fn is_of_a_dead_process(error: &RebuildError) -> bool {
    const KILLED: i32 = libc::SIGKILL;
    match dead(error) {
        Some(status) => libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == KILLED,
        None => matches!(errno(error), Some(libc::ESRCH | libc::EFAULT | libc::EIO | libc::ECHILD)),
    }
}

fn chain<'a>(error: &'a RebuildError) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), below)
}

/// What an error is due to. One in the clothes of an I/O error would show only what itself is due to.
fn below<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let error = *error;
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

fn dead(error: &RebuildError) -> Option<i32> {
    chain(error).find_map(|cause| match cause.downcast_ref::<TraceError>() {
        Some(TraceError::Dead { status, .. }) => Some(*status),
        _ => None,
    })
}

fn errno(error: &RebuildError) -> Option<i32> {
    chain(error).find_map(|cause| match cause.downcast_ref::<TraceError>() {
        Some(TraceError::Remote { errno, .. }) => Some(*errno),
        _ => cause.downcast_ref::<io::Error>()?.raw_os_error(),
    })
}

fn text(error: &RebuildError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Context as _;

    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    fn killed(signal: i32) -> RebuildError {
        RebuildError::from(TraceError::Dead { tid: 7, status: signal })
    }

    #[test]
    fn only_what_comes_of_a_shortage_is_called_one() {
        let watch = Watch { kills: 3 };
        let is_short = |error, kills| match watch.judge(error, kills) {
            RebuildError::Unsupported(text) => text.starts_with("memory "),
            _ => false,
        };
        let failed = |errno| Err::<(), _>(os(errno)).what("writing").unwrap_err();
        let remote = |errno| {
            let call = pc_trace::Call::new(libc::SYS_munmap, []);
            Err::<(), _>(TraceError::Remote { call, errno }).what("unmapping").unwrap_err()
        };
        assert!(is_short(failed(libc::ENOMEM), 3) && is_short(remote(libc::ENOMEM), 3));
        for error in [
            || killed(libc::SIGKILL),
            || {
                Err::<(), _>(TraceError::Dead { tid: 7, status: libc::SIGKILL })
                    .what_of(String::new)
                    .unwrap_err()
            },
        ] {
            assert!(is_short(error(), 4) && !is_short(error(), 3));
        }
        assert!(is_short(failed(libc::ESRCH), 4) && !is_short(failed(libc::ESRCH), 3));
        assert!(!is_short(killed(libc::SIGSEGV), 4) && !is_short(failed(libc::EPERM), 4));
        assert!(!is_short(RebuildError::Interrupted, 4));
    }
}
