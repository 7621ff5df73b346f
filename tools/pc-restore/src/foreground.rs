//! Beside the process: signals are passed on, and its end becomes ours.

use std::process::ExitCode;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pc_cli::signals::{self, Watch};
use pc_rebuild::Restored;

/// The signals that a foreground pc-restore passes on.
pub const PASSED_ON: &[i32] = &[
    signals::SIGHUP,
    signals::SIGINT,
    signals::SIGQUIT,
    signals::SIGTERM,
    signals::SIGUSR1,
    signals::SIGUSR2,
    signals::SIGALRM,
    signals::SIGWINCH,
];

/// Passes signals on until the process ends; gives its status as a shell would (128 + the signal that ended it).
pub fn follow(restored: &Restored, passed_on: &mut Watch) -> anyhow::Result<ExitCode> {
    let end = restored.end().with_context(|| format!("following pid {}", restored.pid))?;
    loop {
        for signal in passed_on.take() {
            restored.signal(signal).with_context(|| format!("passing signal {signal} on"))?;
        }
        let mut fds =
            [PollFd::new(end, PollFlags::POLLIN), PollFd::new(passed_on.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[0].any() == Some(true) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the process"),
        }
    }
    let code = restored.reap().with_context(|| format!("reaping pid {}", restored.pid))?;
    Ok(ExitCode::from(code))
}
