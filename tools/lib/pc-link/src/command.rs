//! A command whose input and output are joined to the link.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::port::Stop;
use crate::{Ends, LinkError};

/// Starts a command; what it writes goes to the other side, what comes from there is its input. When `cancel` becomes readable
/// while the command is waited for, it is sent SIGTERM.
///
/// # Errors
/// The command cannot be started.
pub fn command(command: &mut Command, cancel: Option<Arc<OwnedFd>>) -> Result<Ends, LinkError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| LinkError::local(format!("cannot start {name}"), &error);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let (sink, source) = (child.stdin.take().map(OwnedFd::from), child.stdout.take().map(OwnedFd::from));
    Ok(Ends { source, sink, status: Box::new(move || wait(child, cancel)) })
}

fn wait(mut child: Child, cancel: Option<Arc<OwnedFd>>) -> io::Result<u8> {
    let Some(cancel) = cancel else { return Ok(code(child.wait()?)) };
    let ended = Arc::new(Stop::new()?);
    let (pid, seen) = (Pid::from_raw(child.id() as i32), ended.clone());
    let watcher = thread::spawn(move || {
        if let Ok(true) = seen.wait(cancel.as_fd(), PollFlags::POLLIN) {
            // It was not waited for yet, or that is happening just now.
            let _ = kill(pid, Signal::SIGTERM);
        }
    });
    let status = child.wait();
    ended.set();
    let _ = watcher.join();
    Ok(code(status?))
}

/// As a shell has it: 128 and the signal for a command that died of one.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}
