//! Moving a guest: through a file into the same pid, or through a pipe into a new pid namespace.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::census::{self, Moved};
use crate::handing::HandOver;
use crate::{Folder, Guest, Patience, program, said};

/// How a guest is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into a file; once the original is killed and reaped, the copy takes its pid.
    File,
    /// Through a pipe into a new pid namespace; the original is killed meanwhile.
    NewPidNs,
    /// By a two-way hand-over in rounds, into a new pid namespace. The guest does nothing until it is asked.
    HandOver,
}

/// Orphans of detached tools become children of this process, so that it can reap them.
pub fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("a subreaper");
}

/// Moves a guest; the original is ended and reaped.
pub fn moved(guest: Guest, way: Way) -> Guest {
    match way {
        Way::File => through_file(guest),
        Way::NewPidNs if census::is_due() => into_namespace(guest),
        Way::NewPidNs => through_pipe(guest),
        Way::HandOver => handed_over(guest),
    }
}

fn through_file(mut guest: Guest) -> Guest {
    let folder = Folder::new();
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(10));
    restored(&image, &[])
}

/// Dumps a guest into a file. One that has a child at the moment is asked again.
///
/// Where it is ended or left stopped, the census is taken of it, for [`restored`] to compare with. So what is to be
/// ended (`--kill`) is left stopped first.
pub fn dump_to_file(guest: &Guest, image: &Path, args: &[&str]) {
    let left: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--kill").collect();
    dump_asked_again(guest, image, &left);
    if !args.contains(&"--leave-running") {
        census::before(guest.pid(), image);
    }
    if left.len() < args.len() {
        guest.signal(Signal::SIGKILL);
    }
}

fn dump_asked_again(guest: &Guest, image: &Path, args: &[&str]) {
    for _ in 0..200 {
        let out = File::create(image).expect("an image");
        let mut tool = Command::new(program("pc-dump"));
        let tool = tool.arg("--once").args(args).arg(guest.arg()).stdin(Stdio::null()).stdout(out);
        let output = tool.output().expect("pc-dump runs");
        if !has_children(&output) {
            assert!(output.status.success(), "{:?}: {}", output.status, said(&output));
            return;
        }
    }
    panic!("pid {} always has children", guest.pid());
}

fn has_children(output: &Output) -> bool {
    output.status.code() == Some(6) && said(output).contains("children")
}

/// Ends an original that was left stopped once this image of it was made. The census is taken of it, for [`restored`] to
/// compare with.
pub fn end_original(guest: &mut Guest, image: &Path) {
    census::before(guest.pid(), image);
    guest.signal(Signal::SIGKILL);
    guest.ended(Duration::from_secs(10));
}

/// Restores an image, detached.
pub fn restored(image: &Path, args: &[&str]) -> Guest {
    adopt_orphans();
    let folder = Folder::new();
    let pidfile = folder.file("pid");
    let mut tool = Command::new(program("pc-restore"));
    let before = census::taken(image).with(args);
    let tool = tool.arg("--detach").arg("--pidfile").arg(&pidfile).args(args).args(before.args());
    let mut patience = Patience::new(Duration::from_secs(10));
    let (ended, said) = loop {
        let (ended, said) = run_apart(tool.stdin(File::open(image).expect("an image")), &folder);
        // Pids wrap within half a minute here: a short-lived thread or child of another guest may have ours.
        let taken = ended.code() == Some(6) && said.contains("is taken by");
        if !taken || patience.is_over() {
            break (ended, said);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success(), "{ended}: {said}");
    let copy = Guest::adopt(pid_in(&pidfile));
    before.compare(&copy, Moved { new_pid_ns: args.contains(&"--new-pid-ns") });
    copy
}

/// Runs pc-restore, and tells how it ended and what it said. That goes through a file: what a process has of a pipe to
/// the outside becomes pc-restore's stderr, so that a copy may hold the other end of it.
fn run_apart(tool: &mut Command, folder: &Folder) -> (ExitStatus, String) {
    let path = folder.file("said");
    let said = File::create(&path).expect("a file");
    let ended = tool.stdout(Stdio::null()).stderr(said).status().expect("pc-restore runs");
    (ended, fs::read_to_string(&path).expect("what it said"))
}

fn pid_in(pidfile: &Path) -> i32 {
    fs::read_to_string(pidfile).expect("a pidfile").trim().parse().expect("a pid")
}

fn handed_over(mut guest: Guest) -> Guest {
    adopt_orphans();
    let before = census::of_running(guest.pid());
    let ended = HandOver::start(&guest.arg(), &[], &[], None).finish();
    assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
    let copy = Guest::adopt(pid_in(&ended.folder.file("pid")));
    guest.ended(Duration::from_secs(10));
    before.compare(&copy, Moved { new_pid_ns: true });
    copy
}

/// The same with a census: the original must be gone before the copy has its addresses.
fn into_namespace(mut guest: Guest) -> Guest {
    let folder = Folder::new();
    let image = folder.file("image");
    dump_asked_again(&guest, &image, &[]);
    census::take(guest.pid(), &image);
    guest.signal(Signal::SIGKILL);
    guest.ended(Duration::from_secs(10));
    restored(&image, &["--new-pid-ns"])
}

fn through_pipe(mut guest: Guest) -> Guest {
    adopt_orphans();
    let folder = Folder::new();
    let pidfile = folder.file("pid");
    let mut dump = Command::new(program("pc-dump"));
    let dump = dump.args(["--once", "--kill", &guest.arg()]).stdin(Stdio::null());
    let mut dump = dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pc-dump runs");
    let mut restore = Command::new(program("pc-restore"));
    let restore = restore.args(["--detach", "--new-pid-ns", "--pidfile"]).arg(&pidfile);
    let (ended, text) = run_apart(restore.stdin(dump.stdout.take().expect("a pipe")), &folder);
    let dumped = dump.wait_with_output().expect("pc-dump ends");
    let good = dumped.status.success() && ended.success();
    assert!(good, "{}: {} | {ended}: {text}", dumped.status, said(&dumped));
    let copy = Guest::adopt(pid_in(&pidfile));
    guest.ended(Duration::from_secs(10));
    copy
}

/// Runs pc-dump into a file, with a halt: of its output nothing is taken beyond `taken` bytes until `meanwhile` is
/// through, so that what that does falls into the round under way.
pub fn dump_halted(dump: &mut Command, image: &Path, taken: u64, meanwhile: impl FnOnce()) -> Output {
    let dump = dump.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut dump = Killed(dump.spawn().expect("pc-dump runs"));
    let mut stream = dump.0.stdout.take().expect("a pipe");
    let mut out = File::create(image).expect("an image");
    let got = io::copy(&mut stream.by_ref().take(taken), &mut out).expect("a part of it");
    assert_eq!(got, taken, "it ended early");
    meanwhile();
    io::copy(&mut stream, &mut out).expect("the rest");
    let mut stderr = Vec::new();
    dump.0.stderr.take().expect("a pipe").read_to_end(&mut stderr).expect("what it said");
    Output { status: dump.0.wait().expect("pc-dump ends"), stdout: Vec::new(), stderr }
}

/// A tool that does not outlive a test that failed.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
