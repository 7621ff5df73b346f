//! Live moves: the memory goes in rounds while the guest writes it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Writer, dump_halted, end_original, program, said, status, traces, wait_for};
use serde_json::Value;

/// How many moves in a row: `PC_MOVES`, else this many.
fn moves(usual: usize) -> usize {
    std::env::var("PC_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

struct Moved {
    writer: Writer,
    dump: Value,
}

/// Through a pipe into a file, by rounds; the copy takes the pid. Without a census, pc-dump ends the original.
fn moved(writer: Writer, args: &[&str], restore: &[&str], census: bool) -> Moved {
    let folder = Folder::new();
    let (image, stats) = (folder.file("image"), folder.file("stats"));
    let mut dump = Command::new(program("pc-dump"));
    dump.args((!census).then_some("--kill"));
    // The guest's children live for longer on a busy machine.
    dump.arg("--retry=20s");
    let dump = dump.arg("--stats").arg(&stats).args(args).arg(writer.guest.arg());
    let output = dump.stdin(Stdio::null()).stdout(File::create(&image).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    // It waits for the end of what it has ended, and hears of all threads.
    assert!(!said(&output).contains("is still being ended"), "{}", said(&output));
    let dump = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    let writer = writer.moved_by(|mut guest| {
        if census {
            end_original(&mut guest, &image);
        } else {
            guest.ended(Duration::from_secs(10));
        }
        pc_tests::restored(&image, restore)
    });
    Moved { writer, dump }
}

/// Two guests that compute in all of their threads make each other's moves ten times longer on two CPUs.
static ONE: Mutex<()> = Mutex::new(());

fn moved_in_a_row(moves: usize, guest: &[&str], args: &[&str], restore: &[&str]) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut writer = Writer::start_with(guest);
    let began = Instant::now();
    let (mut rounds, mut patched) = (0, 0);
    for i in 0..moves {
        let one = moved(writer, args, restore, i == 0 || i + 1 == moves);
        writer = one.writer;
        writer.goes_on();
        let all = one.dump["rounds"].as_array().unwrap();
        assert!(all.len() >= 2, "there was no round before the stop: {}", one.dump);
        rounds += all.len();
        patched += number(&one.dump, "pages_patched");
    }
    println!(
        "{moves} moves {args:?} {restore:?} in {:?}, {rounds} rounds, {patched} patched pages",
        began.elapsed()
    );
    assert!(patched > moves as u64, "of {moves} moves only {patched} pages were patched");
    writer.end();
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_tracked_by_userfaultfd() {
    moved_in_a_row(moves(20), &["--fork"], &["--track", "uffd"], &[]);
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_found_by_hashing() {
    moved_in_a_row(moves(20), &["--fork"], &["--track", "hash"], &[]);
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_found_by_soft_dirty_bits() {
    let guest = Guest::start(Command::new("sleep").arg("60"));
    let tried = Command::new(program("pc-dump"))
        .args(["--leave-running", "--track", "soft-dirty", &guest.arg()])
        .stdout(Stdio::null())
        .output()
        .unwrap();
    if tried.status.code() == Some(6) && said(&tried).contains("soft-dirty") {
        println!("SKIP tracking by soft-dirty bits: this kernel has none");
        return;
    }
    moved_in_a_row(moves(20), &["--fork"], &["--track", "soft-dirty"], &[]);
}

#[test]
fn rounds_may_be_kept_and_applied_late() {
    moved_in_a_row(moves(8), &[], &["--rounds=4", "--downtime-limit=0"], &["--start-round", "2"]);
    moved_in_a_row(moves(8), &[], &["--rounds=4", "--downtime-limit=0"], &["--no-pipeline"]);
}

const PAGE: u64 = 4096;
/// Pages of a guest that are there to be sent: too many for smaps to be read again at the stop.
const BALLAST: u64 = 10240;

/// The guest that changes when it is told to.
struct Edges {
    guest: Guest,
    folder: Folder,
}

impl Edges {
    fn start(what: &str) -> Edges {
        let folder = Folder::new();
        let mut command = Command::new(program("guest-edges"));
        let guest = Guest::start(command.arg(folder.file("report")).args([&BALLAST.to_string(), what]));
        let ready = folder.file("report.ready");
        wait_for("the guest's memory", Duration::from_secs(10), || ready.exists());
        Edges { guest, folder }
    }

    /// A dump in whose first round it changes.
    fn dumped_while_it_changes(&self, image: &Path, args: &[&str]) -> Output {
        let changed = self.folder.file("report.changed");
        let mut dump = Command::new(program("pc-dump"));
        dump.args(["--rounds=4", "--downtime-limit=0"]).args(args).arg(self.guest.arg());
        dump_halted(&mut dump, image, BALLAST * PAGE / 2, || {
            self.guest.signal(Signal::SIGUSR1);
            wait_for("the change", Duration::from_secs(10), || changed.exists());
        })
    }

    /// Where a range is that has changed.
    fn range(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.file("report.changed")).unwrap();
        let mut all = text.lines().filter_map(|line| line.split_once(' '));
        all.find(|(it, _)| *it == name).expect("a range").1.to_owned()
    }

    fn end(mut self) {
        self.guest.signal(Signal::SIGTERM);
        let code = self.guest.ended(Duration::from_secs(20));
        let report = fs::read_to_string(self.folder.file("report")).unwrap_or_default();
        assert!(code == Some(0) && report == "OK\n", "exit {code:?}: {report}");
    }
}

/// The bytes that an image has at an address, as `pc-show --pages` tells them.
fn pages(image: &Path, at: &str) -> String {
    let span = format!("{at},64");
    let output = pc_tests::run("pc-show", &["--pages", &span, image.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The protection of the mapping that begins at an address.
fn protection(pid: i32, at: &str) -> String {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let at = u64::from_str_radix(&at[2..], 16).unwrap();
    let inside = |line: &&str| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split_once(' ').unwrap().0;
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        number(start) <= at && at < number(end)
    };
    maps.lines().find(inside).unwrap().split(' ').nth(1).unwrap().to_owned()
}

fn changed_between_rounds(args: &[&str], restore: &[&str]) {
    let edges = Edges::start("memory");
    let image = edges.folder.file("image");
    let output = edges.dumped_while_it_changes(&image, args);
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    let dropped = pages(&image, &edges.range("dropped"));
    assert!(!dropped.contains("01 01"), "what was dropped still has its content: {dropped}");
    let replaced = pages(&image, &edges.range("replaced"));
    assert!(replaced.contains("0c 0c") && !replaced.contains("02 02"), "{replaced}");
    let Edges { mut guest, folder } = edges;
    end_original(&mut guest, &image);
    let edges = Edges { guest: pc_tests::restored(&image, restore), folder };
    let pid = edges.guest.pid();
    assert_eq!(protection(pid, &edges.range("hidden")), "---p");
    assert_eq!(protection(pid, &edges.range("sealed")), "r--p");
    assert_eq!(protection(pid, &edges.range("heap")), "rw-p");
    assert_eq!(status(pid, "Threads"), "2");
    edges.end();
}

#[test]
fn mappings_and_threads_that_change_between_rounds_are_in_the_copy_as_they_became() {
    for track in ["--track=uffd", "--track=hash"] {
        changed_between_rounds(&[track], &[]);
        changed_between_rounds(&[track], &["--no-pipeline"]);
        changed_between_rounds(&[track], &["--start-round=2"]);
    }
}

/// smaps, which alone tells of it, is not read at the stop of a process of this size.
#[test]
fn advice_about_a_mapping_that_is_given_between_rounds_holds_for_the_copy() {
    let edges = Edges::start("advice");
    let image = edges.folder.file("image");
    let output = edges.dumped_while_it_changes(&image, &["--track=uffd"]);
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    let Edges { mut guest, folder } = edges;
    end_original(&mut guest, &image);
    Edges { guest: pc_tests::restored(&image, &[]), folder }.end();
}

/// It gains something that cannot be moved, while its memory is on the way.
fn refused_between_rounds(what: &str, word: &str) {
    let edges = Edges::start(what);
    let output = edges.dumped_while_it_changes(&edges.folder.file("image"), &["--track=uffd"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains(word), "{text:?} does not say {word:?}");
    runs_untraced(edges.guest.pid());
    edges.end();
}

fn runs_untraced(pid: i32) {
    assert_eq!(status(pid, "TracerPid"), "0");
    let state = status(pid, "State");
    assert!(!state.starts_with(['T', 't']), "it is stopped: {state}");
}

#[test]
fn a_descriptor_that_cannot_be_moved_gained_between_rounds_cancels_and_the_original_runs_on() {
    refused_between_rounds("inotify", "inotify");
}

#[test]
fn a_child_that_stays_born_between_rounds_cancels_and_the_original_runs_on() {
    refused_between_rounds("child", "child");
}

/// A dump of the writer that is to leave it alone.
fn dump(writer: &Writer, args: &[&str]) -> Output {
    let mut dump = Command::new(program("pc-dump"));
    dump.args(args).arg(writer.guest.arg()).stdin(Stdio::null()).stdout(Stdio::null()).output().unwrap()
}

#[test]
fn a_stop_longer_than_required_is_not_made_and_the_original_runs_on() {
    let writer = Writer::start();
    let before = descriptors(writer.guest.pid());
    let output = dump(&writer, &["--require-downtime", "--downtime-limit=0", "--rounds=3"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(said(&output).contains("above the limit of 0 ms"), "{}", said(&output));
    runs_untraced(writer.guest.pid());
    assert_eq!(descriptors(writer.guest.pid()), before);
    writer.goes_on();
    writer.end();
}

fn descriptors(pid: i32) -> Vec<String> {
    traces(pid).into_iter().filter(|line| line.starts_with("/proc/")).collect()
}

#[test]
fn soft_dirty_bits_that_the_kernel_lacks_are_named_and_the_original_runs_on() {
    let writer = Writer::start();
    let output = dump(&writer, &["--leave-running", "--track=soft-dirty"]);
    if output.status.success() {
        println!("SKIP a kernel without soft-dirty bits: this one has them");
        return;
    }
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("this kernel has no soft-dirty bits"), "{}", said(&output));
    runs_untraced(writer.guest.pid());
    writer.goes_on();
    writer.end();
}

fn figures(writer: &Writer, args: &[&str]) -> Value {
    let folder = Folder::new();
    let stats = folder.file("stats");
    let stats_arg = ["--leave-running", "--stats", stats.to_str().unwrap()];
    let output = dump(writer, &[&stats_arg, args].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// The figures of a run with so many rounds, of which the last is the stop.
fn consistent(figures: &Value, count: usize) {
    let rounds = figures["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), count, "{figures}");
    for (i, round) in rounds.iter().enumerate() {
        assert_eq!(number(round, "round"), i as u64, "{figures}");
        assert_eq!(round["last"], Value::Bool(i + 1 == count), "{figures}");
        let (pages, patched) = (number(round, "pages"), number(round, "patched_pages"));
        let patches = number(round, "bytes").checked_sub(pages * PAGE).unwrap_or_else(|| panic!("{figures}"));
        // A block and where it is, to three quarters of a page.
        assert!((patched * 74..=patched * (PAGE * 3 / 4)).contains(&patches), "{figures}");
        assert!(i >= 2 || patched == 0, "{figures}");
        assert!(number(round, "elapsed_us") > 0, "{figures}");
    }
    let written: u64 = rounds.iter().map(|round| number(round, "pages")).sum();
    assert_eq!(number(figures, "pages_written"), written);
    let patched: u64 = rounds.iter().map(|round| number(round, "patched_pages")).sum();
    assert_eq!(number(figures, "pages_patched"), patched);
    assert!(written > 0 && number(figures, "pages_scanned") >= written, "{figures}");
    let (stop, frozen) = (&figures["stop"], number(figures, "frozen_time"));
    let part = |name| number(stop, name);
    // One after the other; copying goes on beside registers and descriptors.
    let in_turn = part("freeze") + part("scan") + part("registers") + part("descriptors") + part("write");
    assert!(frozen > 0 && frozen >= in_turn && frozen >= part("copy"), "{figures}");
    assert_eq!(number(figures, "freezing_time"), part("freeze"), "{figures}");
}

#[test]
fn the_rounds_are_as_many_as_allowed_and_the_figures_add_up() {
    let writer = Writer::start();
    consistent(&figures(&writer, &["--rounds=1"]), 2);
    writer.goes_on();
    consistent(&figures(&writer, &["--rounds=4", "--downtime-limit=0"]), 5);
    writer.goes_on();
    consistent(&figures(&writer, &["--once"]), 1);
    writer.goes_on();
    writer.end();
}

/// A dump of a program in Python that has made something, with what is foretold of its stop after the first round.
fn foretold(made: &str) -> (u64, String) {
    let folder = Folder::new();
    let (ready, stats) = (folder.file("ready"), folder.file("stats"));
    let program_text = format!(
        "import os, sys, threading\n{made}\nopen(sys.argv[1], 'w').close()\nthreading.Event().wait()\n"
    );
    let mut guest = Guest::start(Command::new("python3").args(["-c", &program_text]).arg(&ready));
    wait_for("what it makes", Duration::from_secs(20), || ready.exists());
    let mut dump = Command::new(program("pc-dump"));
    let dump = dump.args(["--leave-running", "--downtime-limit=1ms", "--stats"]).arg(&stats).arg(guest.arg());
    let output = dump.stdout(Stdio::null()).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    guest.signal(Signal::SIGKILL);
    guest.ended(Duration::from_secs(10));
    let stats: Value = serde_json::from_slice(&fs::read(&stats).expect("figures")).expect("figures");
    (stats["rounds"][0]["estimated_stop_us"].as_u64().expect("a number"), said(&output))
}

#[test]
fn a_stop_is_foretold_with_its_descriptors_and_threads_and_no_round_is_made_that_cannot_make_it_shorter() {
    let (few, _) = foretold("pass");
    let why = "its descriptors, threads and mappings alone take that long";
    for made in [
        "kept = [os.eventfd(0) if hasattr(os, 'eventfd') else os.open('/dev/null', 0) for _ in range(900)]",
        "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(100)]",
    ] {
        let (many, said) = foretold(made);
        assert!(many > 2 * few, "{many} µs with them, {few} µs without: {said}");
        assert!(said.contains(why), "{said}");
    }
}

/// What execve(2) sets: borders of the address space, executable, command line.
fn program_of(pid: i32) -> (Vec<String>, PathBuf, Vec<u8>) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<_> = stat.rsplit(") ").next().expect("fields").split(' ').map(str::to_owned).collect();
    // From the borders of the code to the stack's start, and from those of the data to the environment's end.
    let borders = [&fields[23..26], &fields[42..49]].concat();
    let exe = fs::read_link(format!("/proc/{pid}/exe")).expect("a program");
    (borders, exe, fs::read(format!("/proc/{pid}/cmdline")).expect("its arguments"))
}

#[test]
fn a_process_that_begins_another_program_during_a_round_runs_on() {
    let folder = Folder::new();
    let script = "import os, signal\n\
        ballast = bytearray(os.urandom(1 << 22))\n\
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
        open(os.environ['READY'], 'w').close()\n\
        signal.sigwait([signal.SIGUSR1])\n\
        os.execvp('sleep', ['sleep', '300'])";
    let ready = folder.file("ready");
    let guest = Guest::start(Command::new("python3").args(["-c", script]).env("READY", &ready));
    wait_for("it is ready", Duration::from_secs(20), || ready.exists());
    let mut dump = Command::new(program("pc-dump"));
    dump.args(["--rounds=2", "--downtime-limit=0", "--leave-stopped", &guest.arg()]);
    let output = dump_halted(&mut dump, &folder.file("image"), 1 << 20, || {
        guest.signal(Signal::SIGUSR1);
        let comm = || fs::read_to_string(format!("/proc/{}/comm", guest.pid())).expect("its name");
        wait_for("it runs another program", Duration::from_secs(20), || comm() == "sleep\n");
    });
    let text = said(&output);
    assert!(output.status.code() == Some(1) && text.contains("begun another program meanwhile"), "{text}");
    wait_for("it sleeps on", Duration::from_secs(5), || status(guest.pid(), "State").starts_with('S'));
    assert_eq!(status(guest.pid(), "TracerPid"), "0");
}

/// Whatever it is just doing: it is refused, or its copy is what it was.
#[test]
fn a_process_that_is_only_just_beginning_a_program_is_refused_or_moved_whole() {
    let folder = Folder::new();
    for i in 0..12 {
        let image = folder.file("image");
        let mut guest = Guest::start(Command::new("python3").args(["-c", "import time; time.sleep(300)"]));
        std::thread::sleep(Duration::from_micros(i * 200));
        let mut dump = Command::new(program("pc-dump"));
        dump.args(["--once", "--leave-stopped", &guest.arg()]).stdin(Stdio::null());
        let output = dump.stdout(File::create(&image).expect("an image")).output().expect("pc-dump runs");
        if !output.status.success() {
            assert!([Some(1), Some(6)].contains(&output.status.code()), "{}", said(&output));
            continue;
        }
        let before = program_of(guest.pid());
        guest.signal(Signal::SIGKILL);
        guest.ended(Duration::from_secs(10));
        let copy = pc_tests::restored(&image, &["--leave-stopped"]);
        assert_eq!(program_of(copy.pid()), before);
    }
}
