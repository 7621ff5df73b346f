//! Helpers of the end-to-end tests: where the programs are, guests that end with their guard, what /proc says of them.
//!
//! One test: `./tests/run -p pc-tests --test dumps -- a_name_or_a_part_of_it` (as root).

#![forbid(unsafe_code)]

pub mod apart;
pub mod asking;
pub mod census;
pub mod guest;
pub mod handing;
pub mod link;
mod moving;
pub mod net;
mod patience;
pub mod python;
pub mod streams;
mod sweeper;
pub mod told;
mod tools;

pub use moving::{Way, adopt_orphans, dump_halted, dump_to_file, end_original, moved, restored};
pub use patience::{Patience, patient, patient_option, slowness};
pub use tools::{Alone, Failing, Tool, descriptors, is_stopped, mounts, sleeper, strays};

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// A built program of the workspace: it stands beside the folder of the tests.
pub fn program(name: &str) -> PathBuf {
    keep_what_was_inherited();
    let own = std::env::current_exe().expect("a program");
    let path = own.parent().and_then(Path::parent).expect("a target folder").join(name);
    assert!(path.exists(), "{name} is not built: cargo build --workspace --bins");
    keep_what_was_inherited();
    path
}

/// Runs a tool to its end, its output kept.
pub fn run(tool: &str, args: &[&str]) -> Output {
    let tool = program(tool);
    Command::new(tool).args(args).stdin(Stdio::null()).output().expect("the tool runs")
}

/// What a tool said on stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Descriptors that whoever runs the tests has left open (job runners do) are no guest's: they would reach outside.
pub fn keep_what_was_inherited() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| pc_sys::fcntl::close_on_exec_from(3).expect("close_range"));
}

/// A folder that goes with its guard.
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder that only its owner may read.
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        keep_what_was_inherited();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mark = std::env::temp_dir().join(format!("pc-tests-{}-", std::process::id()));
        let mark = mark.to_str().expect("a name");
        sweeper::start(mark);
        let path = PathBuf::from(format!("{mark}{n}"));
        fs::create_dir(&path).expect("a new folder");
        Folder(path)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Default for Folder {
    fn default() -> Self {
        Folder::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What each thread of a process is at, for messages.
fn threads(pid: i32) -> String {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: PathBuf| {
        let stat = read(task.join("stat"));
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1]).to_owned();
        format!(
            "{} {state} {} [{}]\n",
            read(task.join("comm")),
            read(task.join("wchan")),
            read(task.join("syscall"))
        )
    };
    tasks.map(|task| line(task.path())).collect()
}

/// A process that is killed and reaped with its guard: a child of ours, or the copy of one.
pub struct Guest {
    pid: i32,
    /// What is ours to reap: the process itself, or the init of its pid namespace.
    child: i32,
}

/// How long another test may keep a program open.
const BUSY: Duration = Duration::from_secs(5);

impl Guest {
    /// Starts a program apart from the terminal and the descriptors of the test.
    pub fn start(command: &mut Command) -> Guest {
        Guest::start_as_is(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Starts a program with the standard descriptors that it was given.
    pub fn start_as_is(command: &mut Command) -> Guest {
        keep_what_was_inherited();
        let mut patience = Patience::new(BUSY);
        let child = loop {
            match command.spawn() {
                // A program that was just copied: a child that another test begins still has it open for writing.
                Err(err) if err.kind() == ErrorKind::ExecutableFileBusy && !patience.is_over() => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                started => break started.expect("the guest starts"),
            }
        };
        let pid = child.id() as i32;
        Guest { pid, child: pid }
    }

    /// Takes a copy over that a detached pc-restore made: it has become a child of ours ([`adopt_orphans`]), or that of
    /// an init that has.
    pub fn adopt(pid: i32) -> Guest {
        let own = std::process::id().to_string();
        let parent = status(pid, "PPid");
        let child = if parent == own { pid } else { parent.parse().expect("a number") };
        assert!(parent == own || status(child, "PPid") == own, "pid {pid} is not ours, but of {parent}");
        Guest { pid, child }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What is ours to reap for it: itself, or the init of its pid namespace.
    pub fn child(&self) -> i32 {
        self.child
    }

    /// Its process as an argument.
    pub fn arg(&self) -> String {
        self.pid().to_string()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the guest is there");
    }

    /// Waits until it ends.
    pub fn ended(&mut self, limit: Duration) -> Option<i32> {
        let mut code = None;
        wait_for("the guest's end", limit, || match self.reaped() {
            None => false,
            Some(WaitStatus::Exited(_, status)) => {
                code = Some(status);
                true
            }
            Some(_) => true,
        });
        self.child = 0;
        code
    }

    /// How it ended, if it has; it stays to be reaped.
    fn end_so_far(&self) -> Option<WaitStatus> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
        let found = waitid(Id::Pid(Pid::from_raw(self.child)), flags).expect("wait");
        (found != WaitStatus::StillAlive).then_some(found)
    }

    /// How it ended, once it has.
    fn reaped(&self) -> Option<WaitStatus> {
        let flags = Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL);
        match waitpid(Pid::from_raw(self.child), flags).expect("wait") {
            WaitStatus::StillAlive => None,
            status => Some(status),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.child > 0 {
            let child = Pid::from_raw(self.child);
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, Some(WaitPidFlag::__WALL));
        }
    }
}

/// Waits until something holds; fails with its name when it does not in time. The limit is that of an idle machine.
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let mut patience = Patience::new(limit);
    while !holds() {
        assert!(!patience.is_over(), "{what}: not within {limit:?} of an idle machine");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A field of /proc/PID/status.
pub fn status(pid: i32, field: &str) -> String {
    let text = fs::read(format!("/proc/{pid}/status")).expect("the process is there");
    let text = String::from_utf8_lossy(&text); // names need not be text
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("a field of status").trim().to_owned()
}

/// What an injection could leave behind in a process: its mappings, tracer, mask, handlers and descriptors.
pub fn traces(pid: i32) -> Vec<String> {
    let mut all: Vec<_> = ["TracerPid", "Threads", "SigBlk", "SigIgn", "SigCgt", "Seccomp"]
        .iter()
        .map(|field| format!("{field} {}", status(pid, field)))
        .collect();
    all.push(fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps"));
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds").map(|fd| {
        let fd = fd.expect("a descriptor").path();
        format!("{} {:?}", fd.display(), fs::read_link(&fd).ok())
    });
    let mut fds: Vec<_> = fds.collect();
    fds.sort();
    all.extend(fds);
    all
}

/// The writing guest, with its heartbeat.
pub struct Writer {
    /// The process.
    pub guest: Guest,
    folder: Folder,
}

impl Writer {
    /// Starts it and waits for its first beats.
    pub fn start() -> Writer {
        Writer::start_with(&[])
    }

    /// Starts it with further arguments.
    pub fn start_with(args: &[&str]) -> Writer {
        let folder = Folder::new();
        let mut command = Command::new(program("guest-writer"));
        let guest = Guest::start(command.arg(folder.file("report")).args(args));
        let writer = Writer { guest, folder };
        writer.goes_on();
        writer
    }

    /// The same, moved.
    pub fn moved(self, way: Way) -> Writer {
        let Writer { guest, folder } = self;
        Writer { guest: moved(guest, way), folder }
    }

    /// The same, moved in some other way.
    pub fn moved_by(self, way: impl FnOnce(Guest) -> Guest) -> Writer {
        let Writer { guest, folder } = self;
        Writer { guest: way(guest), folder }
    }

    /// How often every thread of it has gone round.
    pub fn beats(&self) -> u64 {
        self.beat().split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// The counter, and which threads have not yet gone round once more.
    fn beat(&self) -> String {
        fs::read_to_string(self.folder.file("report.beat")).unwrap_or_default()
    }

    /// What it complained of.
    pub fn report(&self) -> String {
        fs::read_to_string(self.folder.file("report")).unwrap_or_default()
    }

    /// Fails unless every thread goes round several times more.
    pub fn goes_on(&self) {
        let before = self.beats();
        let mut patience = Patience::new(Duration::from_secs(20));
        while self.beats() <= before + 3 {
            let report = self.report();
            assert!(report.is_empty(), "{report}");
            let end = self.guest.end_so_far();
            assert!(end.is_none(), "the guest has ended: {end:?}, {before} beats, then {}", self.beat());
            let threads = || threads(self.guest.pid());
            assert!(
                !patience.is_over(),
                "the guest does not go on: {before} beats, then {}\n{}",
                self.beat(),
                threads()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it with its last check.
    pub fn end(self) {
        let Writer { mut guest, folder } = self;
        guest.signal(Signal::SIGTERM);
        let code = guest.ended(Duration::from_secs(20));
        let report = fs::read_to_string(folder.file("report")).unwrap_or_default();
        assert!(code == Some(0) && report.starts_with("OK"), "exit {code:?}: {report}");
    }
}
