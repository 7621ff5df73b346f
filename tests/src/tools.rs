//! Tools that run beside a test, and what they may leave behind.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::{
    Folder, Guest, Patience, adopt_orphans, keep_what_was_inherited, program, status, sweeper, traces,
    wait_for,
};

/// A tool that does not outlive a test that failed.
pub struct Tool(pub Child);

impl Tool {
    /// Starts a tool; what it says on stderr goes to a file of its name.
    pub fn start(name: &str, args: &[&str], folder: &Folder, pipe: impl FnOnce(&mut Command)) -> Tool {
        Tool::start_in(None, name, args, folder, pipe)
    }

    /// The same, started by a script of sh(1) that has the folder as `$0` and the tool as `$@`.
    pub fn start_in(
        script: Option<&str>,
        name: &str,
        args: &[&str],
        folder: &Folder,
        pipe: impl FnOnce(&mut Command),
    ) -> Tool {
        let said = File::create(folder.file(name)).expect("a file");
        let mut tool = Command::new(script.map_or_else(|| program(name), |_| "sh".into()));
        if let Some(script) = script {
            tool.args(["-c", script]).arg(folder.file("")).arg(program(name));
        }
        tool.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        pipe(&mut tool);
        keep_what_was_inherited();
        Tool(tool.spawn().expect("the tool runs"))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("not reaped yet");
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the tool's end", Duration::from_secs(20), || {
            status = self.0.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("a status")
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One system call of a tool's main thread that fails with EIO: strace(1) answers it in the kernel's place.
pub struct Failing {
    call: &'static str,
    log: PathBuf,
    options: Vec<String>,
}

impl Failing {
    /// The `number`th call of this name, from 1. With 0 none fails, and they are only counted.
    pub fn new(call: &'static str, number: usize, folder: &Folder) -> Failing {
        let mut options = format!("-qq -e signal=none -e trace={call}");
        if number > 0 {
            options += &format!(" -e inject={call}:error=EIO:when={number}");
        }
        let options = options.split(' ').map(str::to_owned).collect();
        Failing { call, log: folder.file("calls"), options }
    }

    /// A tool, so that it fails in this way.
    pub fn command(&self, tool: &Command) -> Command {
        let mut command = Command::new("strace");
        command.args(&self.options).arg("-o").arg(&self.log).arg(tool.get_program()).args(tool.get_args());
        command
    }

    /// The same as a script for [`Tool::start_in`].
    pub fn script(&self) -> String {
        format!("exec strace {} -o '{}' \"$@\"", self.options.join(" "), self.log.display())
    }

    /// How many calls of this name there were.
    pub fn calls(&self) -> usize {
        self.count(&format!("{}(", self.call))
    }

    /// Whether one has failed.
    pub fn has_failed(&self) -> bool {
        self.count("(INJECTED)") == 1
    }

    fn count(&self, part: &str) -> usize {
        let log = fs::read_to_string(&self.log).expect("strace's log");
        log.lines().filter(|line| line.contains(part)).count()
    }
}

/// Children of this process besides these and the sweeper. Those that have ended are reaped.
pub fn strays(known: &[i32]) -> Vec<i32> {
    let own = std::process::id().to_string();
    let pids = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        entry
            .ok()?
            .file_name()
            .to_str()?
            .parse::<i32>()
            .ok()
            .filter(|pid| !known.contains(pid) && *pid != sweeper::pid())
    });
    let is_ours = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == own))
    };
    let ours: Vec<i32> = pids.filter(is_ours).collect();
    let reap = |pid: &i32| {
        let flags = Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL);
        !waitpid(Pid::from_raw(*pid), flags).is_ok_and(|status| status.pid().is_some())
    };
    ours.into_iter().filter(reap).collect()
}

/// Kept while a test has the children of this process for itself; what is left of them then is killed.
pub struct Alone(#[allow(dead_code)] MutexGuard<'static, ()>); // held, not read

impl Alone {
    /// Waits for it. Orphans of any test become children of this process.
    pub fn new() -> Alone {
        static ONE: Mutex<()> = Mutex::new(());
        adopt_orphans();
        Alone(ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Default for Alone {
    fn default() -> Self {
        Alone::new()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut patience = Patience::new(Duration::from_secs(5));
        loop {
            let left = strays(&[]);
            if left.is_empty() || patience.is_over() {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The kinds of mounts that a new pid namespace has.
pub fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    text.lines().filter(|line| line.contains(" - proc ")).map(str::to_owned).collect()
}

/// A process's descriptors.
pub fn descriptors(pid: i32) -> Vec<String> {
    let is_fd = |line: &String| line.starts_with(&format!("/proc/{pid}/fd/"));
    traces(pid).into_iter().filter(is_fd).collect()
}

/// Whether a process is stopped.
pub fn is_stopped(pid: i32) -> bool {
    status(pid, "State").starts_with('T')
}

/// A process that sleeps.
pub fn sleeper() -> Guest {
    let guest = Guest::start(Command::new("sleep").arg("300"));
    let comm = format!("/proc/{}/comm", guest.pid());
    wait_for("sleep sleeps", Duration::from_secs(5), || {
        fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "sleep")
            && status(guest.pid(), "State").starts_with('S')
    });
    guest
}
