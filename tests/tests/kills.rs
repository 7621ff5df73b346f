//! A live move that is cut short, at every stage: the original runs on or is stopped as documented, and no copy of a move
//! that was not committed runs or is left.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_frame::{HEADER_LEN, Header, PREAMBLE_LEN};
use pc_tests::{
    Folder, Patience, Tool, Writer, adopt_orphans, descriptors, is_stopped, mounts, program, said, sleeper,
    status, strays, traces, wait_for,
};

/// Orphans of any test here become children of this process.
static ONE: Mutex<()> = Mutex::new(());

/// What happens to the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    KillDump,
    KillRestore,
    Cut,
    TermDump,
    TermRestore,
}

const BLOWS: [Blow; 5] = [Blow::KillDump, Blow::KillRestore, Blow::Cut, Blow::TermDump, Blow::TermRestore];

/// When: what the relay has passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Nothing.
    Begin,
    /// All before the `n`th frame of this name.
    Before(&'static str, u32),
    /// And half of that frame.
    Amid(&'static str, u32),
    /// All, but the input is not yet at its end.
    End,
}

const WHENS: [When; 12] = [
    When::Begin,
    When::Before("RoundBegin", 0),
    When::Amid("MapChange", 0),
    When::Amid("Pages", 0),
    When::Amid("Pages", 20),
    When::Before("RoundEnd", 0),
    When::Before("RoundBegin", 1),
    When::Before("MmState", 0),
    When::Amid("Thread", 3),
    When::Before("Commit", 0),
    When::Before("End", 0),
    When::End,
];

/// A move under way, with a relay between its ends.
struct Move {
    dump: Tool,
    restore: Tool,
    from: Option<ChildStdout>,
    to: Option<ChildStdin>,
    folder: Folder,
    /// Frames passed on, by name.
    passed: Vec<&'static str>,
}

impl Move {
    fn start(pid: &str, restore: &[&str]) -> Move {
        let folder = Folder::new();
        let args = ["--rounds=4", "--downtime-limit=0", pid];
        let mut dump = Tool::start("pc-dump", &args, &folder, |tool| _ = tool.stdout(Stdio::piped()));
        let pidfile = folder.file("pid");
        let mut args = vec!["--detach", "--new-pid-ns", "--pidfile", pidfile.to_str().expect("a path")];
        args.extend(restore);
        let mut restore = Tool::start("pc-restore", &args, &folder, |tool| _ = tool.stdin(Stdio::piped()));
        let (from, to) = (dump.0.stdout.take(), restore.0.stdin.take());
        Move { dump, restore, from, to, folder, passed: Vec::new() }
    }

    /// Passes the stream on, with the blow when it is due; `false` if that never came.
    fn relay(&mut self, when: When, blow: Blow) -> bool {
        let mut struck = when == When::Begin;
        if struck {
            self.strike(blow);
        }
        // A side that is gone shows as an error here; what has become of all is judged later.
        let _ = self.pass_on(when, blow, &mut struck);
        if !struck && when == When::End && self.passed.last() == Some(&"End") {
            self.strike(blow);
            struck = true;
        }
        (self.from, self.to) = (None, None);
        struck
    }

    fn pass_on(&mut self, when: When, blow: Blow, struck: &mut bool) -> io::Result<()> {
        let mut preamble = [0; PREAMBLE_LEN];
        self.read(&mut preamble)?;
        self.write(&preamble)?;
        let mut head = [0; HEADER_LEN];
        while self.passed.last() != Some(&"End") {
            self.read(&mut head)?;
            let header = Header::decode(&head).expect("a header");
            let mut frame = vec![0; header.len as usize];
            self.read(&mut frame)?;
            frame.splice(0..0, head);
            let name = pc_image::record_name(header.kind).expect("a name");
            let number = self.passed.iter().filter(|passed| **passed == name).count() as u32;
            let rest = if !*struck && when == When::Amid(name, number) { frame.len() / 2 } else { 0 };
            self.write(&frame[..rest])?;
            if !*struck && (when == When::Before(name, number) || when == When::Amid(name, number)) {
                *struck = true;
                self.strike(blow);
            }
            self.write(&frame[rest..])?;
            self.passed.push(name);
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<()> {
        let from = self.from.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut at = 0;
        while at < into.len() {
            let limit = PollTimeout::from(20_000u16);
            let ready = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], limit)?;
            assert!(ready > 0, "pc-dump sends nothing and does not end");
            match from.read(&mut into[at..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(bytes)
    }

    fn strike(&mut self, blow: Blow) {
        match blow {
            Blow::KillDump => self.dump.signal(Signal::SIGKILL),
            Blow::KillRestore => self.restore.signal(Signal::SIGKILL),
            Blow::TermDump => self.dump.signal(Signal::SIGTERM),
            Blow::TermRestore => self.restore.signal(Signal::SIGTERM),
            Blow::Cut => (self.from, self.to) = (None, None),
        }
        // What is passed on next comes after the blow has landed.
        match blow {
            Blow::KillDump => _ = self.dump.ended(),
            Blow::KillRestore => _ = self.restore.ended(),
            _ => {}
        }
    }

    fn said(&self) -> String {
        let of = |tool: &str| fs::read_to_string(self.folder.file(tool)).unwrap_or_default();
        format!("{} | {}", of("pc-dump"), of("pc-restore"))
    }
}

/// Whether something stays at the destination. A husk may need a moment to die.
fn is_copied(known: &[i32]) -> bool {
    let mut patience = Patience::new(Duration::from_secs(2));
    while !patience.is_over() {
        if strays(known).is_empty() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// What has become of a move.
struct Outcome {
    /// Blow and stage, and what the tools said.
    point: String,
    dumped: ExitStatus,
    restored: ExitStatus,
    /// So much of the stream has reached pc-restore that a copy may run.
    complete: bool,
    /// The round of the stop was seen.
    final_round: bool,
    stopped: bool,
    copied: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { point, dumped, restored, complete, final_round, stopped, copied } = self;
        write!(f, "pc-dump {dumped}, pc-restore {restored}, ")?;
        write!(f, "complete {complete}, final round {final_round}, ")?;
        write!(f, "original stopped {stopped}, copy {copied}: {point}")
    }
}

impl Outcome {
    fn judge(&self) {
        // Never a copy of what was not committed, never two that run.
        assert!(self.complete || !self.copied, "a copy without a commit: {self}");
        assert!(self.stopped || !self.copied, "the original and its copy both run: {self}");
        assert!(self.copied || !self.restored.success(), "no copy: {self}");
        // A dump that failed leaves the original running; one that is done leaves it stopped, and so does one that cannot
        // know (8), as the reader went away after Commit.
        match self.dumped.code() {
            Some(code) => assert_eq!(matches!(code, 0 | 8), self.stopped, "{self}"),
            // Killed: the stop is set just before Commit is written.
            None => assert!(self.final_round || !self.stopped, "{self}"),
        }
    }
}

/// One move with a blow. The original runs on afterwards, resumed if need be.
fn strike(writer: &Writer, when: When, blow: Blow, restore: &[&str]) -> Outcome {
    let pid = writer.guest.pid();
    let (fds, mounted) = (descriptors(pid), mounts());
    let mut moving = Move::start(&writer.guest.arg(), restore);
    if !moving.relay(when, blow) {
        panic!("{when:?} never came: {:?}: {}", moving.passed, moving.said());
    }
    let (dumped, restored) = (moving.dump.ended(), moving.restore.ended());
    let last = if restore.contains(&"--run-at-commit") { "Commit" } else { "End" };
    let complete = moving.passed.contains(&last);
    // What a killed pc-dump had put into the pipe is passed on after it.
    let final_round = moving.passed.contains(&"MmState");
    let known = [pid, moving.dump.0.id() as i32, moving.restore.0.id() as i32];
    let copied = if restored.success() { !strays(&known).is_empty() } else { is_copied(&known) };
    let point = format!("{blow:?} {when:?}: {}", moving.said());
    let outcome =
        Outcome { point, dumped, restored, complete, final_round, stopped: is_stopped(pid), copied };
    for stray in strays(&known) {
        let _ = kill(Pid::from_raw(stray), Signal::SIGKILL);
    }
    wait_for("the copy's end", Duration::from_secs(5), || strays(&known).is_empty());
    outcome.judge();
    assert_eq!(status(pid, "TracerPid"), "0", "{outcome}");
    if outcome.stopped {
        writer.guest.signal(Signal::SIGCONT);
    }
    writer.goes_on();
    assert_eq!(descriptors(pid), fds, "{outcome}");
    assert_eq!(mounts(), mounted, "{outcome}");
    outcome
}

fn lock() -> impl Drop {
    adopt_orphans();
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn strike_at_all(whens: &[When], restore: &[&str]) {
    let _one = lock();
    let writer = Writer::start();
    let points = || whens.iter().flat_map(|when| BLOWS.map(|blow| (*when, blow)));
    let outcomes: Vec<Outcome> = points().map(|(when, blow)| strike(&writer, when, blow, restore)).collect();
    let count = |what: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| what(outcome)).count();
    let (all, stopped, copied) = (outcomes.len(), count(|o| o.stopped), count(|o| o.copied));
    println!("{all} points: {} ran on, {stopped} stopped, {copied} copied", all - stopped);
    assert!(copied > 0, "no blow fell late enough");
    writer.end();
}

#[test]
fn a_move_cut_short_at_any_point_leaves_one_process_that_runs_or_is_stopped_as_documented() {
    strike_at_all(&WHENS, &[]);
}

#[test]
fn a_copy_that_runs_at_commit_is_never_beside_an_original_that_runs() {
    strike_at_all(&[When::Amid("Commit", 0), When::Before("End", 0), When::End], &["--run-at-commit"]);
}

/// A file that takes so many bytes and no more.
fn dump_limited(pid: &str, fate: &str, bytes: u64, image: &Path) -> Output {
    let script = format!("trap '' XFSZ; exec prlimit --fsize={bytes} \"$@\"");
    let mut dump = Command::new("sh");
    let dump = dump.args(["-c", &script, "sh"]).arg(program("pc-dump")).args(["--once", fate, pid]);
    dump.stdin(Stdio::null()).stdout(File::create(image).expect("an image")).output().expect("sh")
}

#[test]
fn an_original_whose_commit_is_written_but_not_the_end_of_the_stream_stays_stopped() {
    let _one = lock();
    let sleeper = sleeper();
    let folder = Folder::new();
    let image = folder.file("image");
    // The first dump wakes the sleeper, which then has a page more; all others are alike.
    for _ in 0..2 {
        let whole = dump_limited(&sleeper.arg(), "--leave-running", 1 << 30, &image);
        assert!(whole.status.success(), "{}", said(&whole));
    }
    let len = fs::metadata(&image).expect("an image").len();
    for (fate, code, stopped) in
        [("--leave-running", 1, false), ("--leave-stopped", 8, true), ("--kill", 8, true)]
    {
        // In the midst of the End, which is a header alone.
        let output = dump_limited(&sleeper.arg(), fate, len - HEADER_LEN as u64 / 2, &image);
        assert_eq!(output.status.code(), Some(code), "{fate}: {}", said(&output));
        assert!(!stopped || said(&output).contains("is left stopped"), "{fate}: {}", said(&output));
        assert_eq!(is_stopped(sleeper.pid()), stopped, "{fate}");
        sleeper.signal(Signal::SIGCONT);
        // A Commit that was not whole leaves it running.
        let output = dump_limited(&sleeper.arg(), fate, len - HEADER_LEN as u64 * 2, &image);
        assert_eq!(output.status.code(), Some(1), "{fate}: {}", said(&output));
        assert!(!is_stopped(sleeper.pid()), "{fate}");
    }
}

/// What was not there before; all that was must be.
fn left_behind(before: &[String], after: &[String]) -> Vec<String> {
    let lines = |traces: &[String]| -> Vec<String> {
        traces.iter().flat_map(|trace| trace.lines().map(str::to_owned)).collect()
    };
    let (before, after) = (lines(before), lines(after));
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    assert!(gone.is_empty(), "gone: {gone:#?}");
    after.into_iter().filter(|line| !before.contains(line)).collect()
}

#[test]
fn pc_dump_killed_at_any_moment_of_its_rounds_leaves_no_more_than_a_scratch_page() {
    let _one = lock();
    let folder = Folder::new();
    let mut scratch = 0;
    for i in 0..60 {
        let sleeper = sleeper();
        let before = traces(sleeper.pid());
        let args = ["--rounds=3", "--downtime-limit=0", "--leave-running", &sleeper.arg()];
        let mut dump = Tool::start("pc-dump", &args, &folder, |_| {});
        std::thread::sleep(Duration::from_micros(i * 400));
        dump.signal(Signal::SIGKILL);
        dump.ended();
        wait_for("it sleeps again", Duration::from_secs(5), || {
            status(sleeper.pid(), "State").starts_with('S')
        });
        let left = left_behind(&before, &traces(sleeper.pid()));
        // A scratch page may remain, as is documented.
        let is_page = |line: &&String| line.contains('-') && line.contains(" 00:00 0");
        let pages = left.iter().filter(is_page).count();
        assert!(pages <= 1 && left.len() == pages, "killed after {} us: {left:#?}", i * 400);
        scratch += pages;
    }
    println!("60 kills: {scratch} scratch pages left");
}
