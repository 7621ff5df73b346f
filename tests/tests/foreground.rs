//! pc-restore beside the process: signals, statuses, pid files, namespaces, clocks.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_tests::{
    Folder, Guest, Patience, adopt_orphans, dump_to_file, patient, program, restored, status, wait_for,
};

/// The image of a shell that says what signals it gets, and ends with 7 at SIGTERM.
fn image_of_shell(folder: &Folder) -> PathBuf {
    let script = "trap 'echo one >> $0' USR1; trap 'echo term >> $0; exit 7' TERM; echo up >> $0; \
                  while :; do read -r line < $0.fifo || :; done";
    let out = folder.file("out");
    let fifo = folder.file("out.fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let closed = "for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -le 2 ] || eval \"exec $n>&-\"; done; exec bash -c \"$0\" \"$1\"";
    let mut shell = Command::new("bash");
    let mut guest = Guest::start(shell.args(["-c", closed, script]).arg(&out));
    wait_for("the shell is up", Duration::from_secs(5), || text(&out) == "up\n");
    std::thread::sleep(patient(Duration::from_millis(100)));
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(5));
    image
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Starts a foreground pc-restore and waits for its pid file.
fn beside(folder: &Folder, image: &Path, args: &[&str]) -> (Child, i32) {
    beside_by(Command::new(program("pc-restore")), folder, image, args)
}

/// The same with a command that runs pc-restore.
fn beside_by(mut tool: Command, folder: &Folder, image: &Path, args: &[&str]) -> (Child, i32) {
    let pidfile = folder.file("pid");
    let said = File::create(folder.file("said")).expect("a file");
    let tool = tool.arg("--pidfile").arg(&pidfile).args(args).stdin(File::open(image).expect("an image"));
    let tool = tool.stdout(Stdio::null()).stderr(said).spawn().expect("it runs");
    wait_for("a pid file", Duration::from_secs(10), || text(&pidfile).ends_with('\n'));
    let pid = text(&pidfile).trim().parse().expect("a pid");
    (tool, pid)
}

fn signals_and_status_are_passed_on(args: &[&str]) {
    adopt_orphans();
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let (mut tool, pid) = beside(&folder, &image, args);
    let out = folder.file("out");
    let own = Pid::from_raw(tool.id() as i32);
    kill(own, Signal::SIGUSR1).expect("it is there");
    wait_for("SIGUSR1 arrives", Duration::from_secs(5), || text(&out) == "up\none\n");
    kill(own, Signal::SIGTERM).expect("it is there");
    wait_for("pc-restore ends", Duration::from_secs(5), || tool.try_wait().expect("wait").is_some());
    assert_eq!(tool.wait().expect("wait").code(), Some(7), "{}", text(&folder.file("said")));
    assert_eq!(text(&out), "up\none\nterm\n");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it still runs");
}

#[test]
fn the_foreground_passes_signals_on_and_ends_as_the_program_does() {
    signals_and_status_are_passed_on(&[]);
}

#[test]
fn the_init_of_a_new_pid_namespace_passes_signals_on_and_ends_as_the_program_does() {
    signals_and_status_are_passed_on(&["--new-pid-ns"]);
}

/// pc-restore with few open files.
fn limited(limit: &str) -> Command {
    let mut tool = Command::new("setpriv");
    let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    tool.args(["--bounding-set", "-sys_resource", "sh", "-c", &script]).arg(program("pc-restore"));
    tool
}

#[test]
fn a_low_limit_of_open_files_is_raised_or_named() {
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let (mut tool, pid) = beside_by(limited("-Sn 200"), &folder, &image, &[]);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
    assert_eq!(tool.wait().expect("wait").code(), Some(137));
    let own = fs::read_to_string("/proc/self/limits").expect("our limits");
    let open_files =
        |text: &str| text.lines().find(|line| line.starts_with("Max open files")).map(str::to_owned);
    assert_eq!(open_files(&limits), open_files(&own), "the process has its own limit");
    let image = File::open(&image).expect("an image");
    let output = limited("-n 200").arg("--detach").stdin(image).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("limit of open files is 200, and to build a process takes 901"), "{said}");
}

#[test]
fn a_program_that_a_signal_ends_gives_128_and_the_signal() {
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let (mut tool, pid) = beside(&folder, &image, &[]);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
    assert_eq!(tool.wait().expect("wait").code(), Some(137));
}

#[test]
fn a_pid_file_that_cannot_be_written_is_told_before_anything_runs() {
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let mut tool = Command::new(program("pc-restore"));
    let tool = tool.args(["--detach", "--pidfile", "/nonexistent/pid"]);
    let output = tool.stdin(File::open(&image).expect("an image")).output().expect("it runs");
    let said = pc_tests::said(&output);
    assert!(output.status.code() == Some(1) && said.contains("/nonexistent"), "{:?}: {said}", output.status);
}

#[test]
fn a_copy_left_stopped_goes_on_at_sigcont() {
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let mut copy = restored(&image, &["--leave-stopped"]);
    let stopped = || status(copy.pid(), "State").starts_with('T');
    wait_for("the copy is stopped", Duration::from_secs(2), stopped);
    copy.signal(Signal::SIGTERM);
    std::thread::sleep(patient(Duration::from_millis(100)));
    assert_eq!(text(&folder.file("out")), "up\n", "it ran");
    copy.signal(Signal::SIGCONT);
    assert_eq!(copy.ended(Duration::from_secs(5)), Some(7));
}

#[test]
fn a_new_pid_namespace_ends_with_its_tree_and_not_before() {
    adopt_orphans();
    let folder = Folder::new();
    let image = image_of_shell(&folder);
    let mut copy = restored(&image, &["--new-pid-ns"]);
    let init: i32 = status(copy.pid(), "PPid").parse().expect("a number");
    assert_eq!(text(&PathBuf::from(format!("/proc/{init}/comm"))).trim(), "pc-init");
    let mounts = text(&PathBuf::from(format!("/proc/{init}/mounts")));
    assert!(mounts.lines().filter(|line| line.starts_with("proc /proc ")).count() >= 1, "{mounts}");
    assert!(status(copy.pid(), "NSpid").split_whitespace().count() == 2);
    copy.signal(Signal::SIGTERM);
    assert_eq!(copy.ended(Duration::from_secs(5)), Some(7), "the init ends as the program did");
}

/// A guest from a clock that is far ahead, or behind.
fn clocks_go_on(monotonic: i64) {
    adopt_orphans();
    let folder = Folder::new();
    let report = folder.file("report");
    let mut command = Command::new("unshare");
    let command = command.args(["-T", "--monotonic", &monotonic.to_string(), "--boottime", "9000"]);
    let mut guest = Guest::start(command.arg(program("guest-writer")).arg(&report));
    let beat = folder.file("report.beat");
    let beats =
        |path: &Path| text(path).split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    wait_for("the guest goes on", Duration::from_secs(20), || beats(&beat) > 3);
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(5));
    let mut copy = restored(&image, &[]);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).expect("a time namespace");
    assert_ne!(namespace(&copy.pid().to_string()), namespace("self"), "it reads our clocks");
    let (before, mut patience) = (beats(&beat), Patience::new(Duration::from_secs(20)));
    while beats(&beat) <= before + 3 {
        assert_eq!(text(&report), "");
        assert!(!patience.is_over(), "the guest does not go on: {}", text(&beat));
        std::thread::sleep(Duration::from_millis(5));
    }
    copy.signal(Signal::SIGTERM);
    let code = copy.ended(Duration::from_secs(20));
    assert!(code == Some(0) && text(&report).starts_with("OK"), "{code:?}: {}", text(&report));
}

#[test]
fn a_guest_whose_clocks_were_ahead_sees_no_step_back() {
    clocks_go_on(500_000);
}

#[test]
fn a_guest_whose_clocks_were_behind_sees_no_leap() {
    clocks_go_on(-1000);
}
