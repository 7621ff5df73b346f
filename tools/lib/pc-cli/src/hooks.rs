//! Commands of the user's at certain moments of a move: `--on-frozen` and the like.
//!
//! A shell is started for each of them beforehand and waits for a line, as starting one takes milliseconds that a frozen
//! process should not wait for. A command has its output on our standard error, no input, a process group of its own, and
//! in its environment `PC_HOOK` (the name of the moment) and `PC_PID` (the process).

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::signals::Cancel;

/// Waits for the pid; without it there is nothing to do.
const ONCE_TOLD: &str = "read -r PC_PID || exit 0\nexport PC_PID\nexec </dev/null\n";
/// Waits for the pid, and then for the word that all went well; without that, the command runs.
const UNLESS_TOLD: &str =
    "read -r PC_PID || exit 0\nexport PC_PID\nread -r PC_DONE && exit 0\nexec </dev/null\n";

/// A command that waits to be run. Dropped, it never is.
#[derive(Debug)]
pub struct Hook(Waiting);

/// A command that is run when we go away without saying that all went well, however we end.
#[derive(Debug)]
pub struct Undo(Waiting);

#[derive(Debug)]
struct Waiting {
    name: &'static str,
    shell: Child,
    input: ChildStdin,
}

impl Waiting {
    fn start(name: &'static str, prologue: &str, command: &str) -> anyhow::Result<Self> {
        let output = io::stderr().as_fd().try_clone_to_owned().context("standard error")?;
        let started = Command::new("/bin/sh")
            .args(["-c", &format!("{prologue}{command}"), name])
            .env("PC_HOOK", name)
            .stdin(Stdio::piped())
            .stdout(output)
            .process_group(0)
            .spawn();
        let mut shell = started.with_context(|| format!("starting the shell for --{name}"))?;
        let input = shell.stdin.take().context("the shell's input")?;
        Ok(Self { name, shell, input })
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.input, "{line}").with_context(|| format!("--{}: the shell is gone", self.name))
    }

    fn running(self) -> Running {
        let Self { name, shell, input } = self;
        drop(input);
        Running { name, shell: Some(shell), began: Instant::now() }
    }
}

impl Hook {
    /// Starts the shell for the command of option `--NAME`.
    pub fn prepare(name: &'static str, command: &str) -> anyhow::Result<Self> {
        Waiting::start(name, ONCE_TOLD, command).map(Self)
    }

    /// Lets the command begin.
    pub fn begin(mut self, pid: i32) -> anyhow::Result<Running> {
        self.0.say(&pid.to_string())?;
        Ok(self.0.running())
    }

    /// Runs the command to its end; gives the time that it took.
    pub fn run(self, pid: i32, cancel: &Cancel) -> anyhow::Result<Duration> {
        self.begin(pid)?.wait(cancel)
    }
}

impl Undo {
    /// Starts the shell for the command of option `--NAME`.
    pub fn prepare(name: &'static str, command: &str) -> anyhow::Result<Self> {
        Waiting::start(name, UNLESS_TOLD, command).map(Self)
    }

    /// From now on the command is run unless [`Undo::not_needed`] is called.
    pub fn arm(&mut self, pid: i32) -> anyhow::Result<()> {
        self.0.say(&pid.to_string())
    }

    /// All went well.
    pub fn not_needed(mut self) -> anyhow::Result<()> {
        self.0.say("done")
    }

    /// Runs the command, if it was armed. Nothing cancels that.
    pub fn run(self) -> anyhow::Result<Duration> {
        let Running { name, shell, began } = &mut self.0.running();
        let mut shell = shell.take().context("the shell is gone")?;
        let ended = shell.wait().with_context(|| format!("--{name}"))?;
        judged(name, ended).map(|()| began.elapsed())
    }
}

/// A command under way. Dropped, it is killed with all of its process group.
#[derive(Debug)]
pub struct Running {
    name: &'static str,
    shell: Option<Child>,
    began: Instant,
}

impl Running {
    /// Waits for its end; gives the time since it began.
    ///
    /// # Errors
    /// It ended with another status than 0, or a signal asked us to stop.
    pub fn wait(mut self, cancel: &Cancel) -> anyhow::Result<Duration> {
        let Some(mut shell) = self.shell.take() else { bail!("--{}: the shell is gone", self.name) };
        let group = Pid::from_raw(shell.id() as i32);
        let (ours, theirs) = UnixStream::pair().context("a pair of sockets")?;
        let waiting = std::thread::spawn(move || {
            let ended = shell.wait();
            drop(theirs);
            ended
        });
        let cancelled = cancel.wait(ours.as_fd(), PollFlags::POLLIN);
        if cancelled.is_err() {
            // It may just have ended.
            let _ = killpg(group, Signal::SIGKILL);
        }
        let ended = waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        cancelled.with_context(|| format!("--{}", self.name))?;
        judged(self.name, ended.with_context(|| format!("--{}", self.name))?)?;
        Ok(self.began.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(shell) = &mut self.shell {
            // It may just have ended.
            let _ = killpg(Pid::from_raw(shell.id() as i32), Signal::SIGKILL);
            let _ = shell.wait();
        }
    }
}

fn judged(name: &str, ended: ExitStatus) -> anyhow::Result<()> {
    if ended.success() { Ok(()) } else { bail!("the command of --{name} failed: {ended}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_knows_its_process_and_its_failure_is_told() {
        let cancel = crate::signals::install().unwrap();
        let told = "test \"$PC_PID $PC_HOOK\" = '77 on-frozen'";
        Hook::prepare("on-frozen", told).unwrap().run(77, &cancel).unwrap();
        let error = Hook::prepare("on-frozen", "exit 3").unwrap().run(1, &cancel).unwrap_err();
        assert_eq!(error.to_string(), "the command of --on-frozen failed: exit status: 3");
        assert!(Hook::prepare("on-frozen", "if then").unwrap().run(1, &cancel).is_err());
        drop(Hook::prepare("on-frozen", "kill -9 $$").unwrap());
    }

    #[test]
    fn an_undo_runs_only_once_it_is_armed_and_not_called_off() {
        let path = std::env::temp_dir().join(format!("pc-cli-undo-{}", std::process::id()));
        let command = format!("echo $PC_PID >> {}", path.display());
        let undo = || Undo::prepare("on-resumed", &command).unwrap();
        undo().run().unwrap();
        let mut called_off = undo();
        called_off.arm(5).unwrap();
        called_off.not_needed().unwrap();
        assert!(!path.exists());
        let mut armed = undo();
        armed.arm(6).unwrap();
        armed.run().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "6\n");
        std::fs::remove_file(path).unwrap();
    }
}
