//! The disk full, memory short: a dump or a move fails, says so, and the original runs on.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_tests::handing::{Blow, Ended, HandOver, Part, Way, When, state};
use pc_tests::{
    Alone, Folder, Guest, Writer, descriptors, is_stopped, program, said, status, strays, wait_for,
};

/// Nothing but these is left of a move.
fn nothing_left(known: &[i32]) {
    wait_for("nothing is left", Duration::from_secs(5), || strays(known).is_empty());
}

/// Runs `$@` where the folder `$0` is a small file system in a mount namespace that goes with it; `$0` has no room left.
const ON_A_FULL_DISK: &str = "exec unshare -m sh -c 'mount -t tmpfs -o size=64k none \"$0\" && \
    ! head -c 1m /dev/zero >\"$0/filler\" 2>\"$0/why\" && exec \"$@\"' \"$0\" \"$@\"";

/// The same, with its output in a file there, as far as there is room.
const INTO_A_FULL_DISK: &str = "exec unshare -m sh -c 'mount -t tmpfs -o size=256k none \"$0\" && \
    exec \"$@\" >\"$0/image\"' \"$0\" \"$@\"";

#[test]
fn an_image_that_finds_no_room_fails_the_dump_and_the_original_runs_on() {
    let _one = Alone::new();
    let writer = Writer::start();
    let folder = Folder::new();
    let (pid, fds) = (writer.guest.arg(), descriptors(writer.guest.pid()));
    for fate in ["--leave-stopped", "--kill", "--leave-running"] {
        for rounds in ["--once", "--rounds=2"] {
            let mut dump = Command::new("sh");
            dump.args(["-c", INTO_A_FULL_DISK]).arg(folder.file("")).arg(program("pc-dump"));
            let mut full = Command::new(program("pc-dump"));
            full.stdout(fs::File::create("/dev/full").expect("a device"));
            for dump in [&mut dump, &mut full] {
                let output = dump.args([rounds, fate, &pid]).stdin(Stdio::null()).stderr(Stdio::piped());
                let output = output.spawn().and_then(|dump| dump.wait_with_output()).expect("pc-dump runs");
                let text = said(&output);
                assert_eq!(output.status.code(), Some(1), "{rounds} {fate}: {text}");
                assert!(text.contains("No space left on device"), "{rounds} {fate}: {text}");
                writer.goes_on();
                assert!(!is_stopped(writer.guest.pid()));
                assert_eq!(status(writer.guest.pid(), "TracerPid"), "0");
                assert_eq!(descriptors(writer.guest.pid()), fds);
            }
        }
    }
    assert_eq!(fs::read_dir(folder.file("")).expect("a folder").count(), 0);
    nothing_left(&[writer.guest.child()]);
    writer.end();
}

/// A hand-over of which one side has nowhere to put what it is told to.
fn without_room(scripts: [Option<&str>; 2], file: &str) -> Ended {
    let _one = Alone::new();
    let writer = Writer::start();
    let fds = descriptors(writer.guest.pid());
    let ended = HandOver::start_in(scripts, &writer.guest.arg(), None).finish();
    assert!(ended.said.contains("No space left on device"), "{}", ended.said);
    assert!(ended.said.contains(&format!("cannot write {}", ended.folder.file(file).display())));
    assert!(!ended.passed.iter().any(|(_, frame)| *frame == "MmState"), "it was stopped: {}", ended.said);
    writer.goes_on();
    assert_eq!(descriptors(writer.guest.pid()), fds, "{}", ended.said);
    nothing_left(&[writer.guest.child()]);
    writer.end();
    ended
}

#[test]
fn figures_that_find_no_room_at_the_source_fail_the_hand_over_before_anything_is_touched() {
    let ended = without_room([Some(ON_A_FULL_DISK), None], "dump.json");
    assert_eq!(ended.dumped.code(), Some(1), "{}", ended.said);
    assert!(!ended.restored.success(), "{}", ended.said);
}

#[test]
fn a_pidfile_that_finds_no_room_at_the_destination_fails_the_hand_over_before_the_stop() {
    let ended = without_room([None, Some(ON_A_FULL_DISK)], "pid");
    assert_eq!(ended.codes(), (Some(5), Some(1)), "{}", ended.said);
}

/// A control group with a limit of memory, that goes with its guard and takes along what is in it.
struct Group {
    path: PathBuf,
    /// Files for the limit and for what is used.
    limit: PathBuf,
    usage: PathBuf,
}

impl Group {
    /// `None` where this machine has no memory controller that we may use: that is said.
    fn new(bytes: u64) -> Option<Group> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pc-tests-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let kinds = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.current"),
            ("/sys/fs/cgroup/unified", "memory.max", "memory.current"),
        ];
        for (root, limit, usage) in kinds {
            let path = Path::new(root).join(&name);
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Group { limit: path.join(limit), usage: path.join(usage), path };
            if group.limit.exists() && fs::write(&group.limit, bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        println!("SKIP memory short at the destination: no control group of memory can be made here");
        None
    }

    /// Starts `$@` in it.
    fn script(&self) -> String {
        format!("echo $$ >'{}/cgroup.procs' && exec \"$@\"", self.path.display())
    }

    /// Leaves it so many bytes beyond what it has.
    fn narrow(&self, bytes: u64) -> String {
        let (limit, usage) = (self.limit.display(), self.usage.display());
        format!("echo $(( $(cat '{usage}') + {bytes} )) >'{limit}'")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..250 {
            let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process with so much memory that it knows by heart.
struct Large {
    guest: Guest,
    report: PathBuf,
    _folder: Folder,
}

impl Large {
    const LEN: u64 = 96 << 20;

    fn start() -> Large {
        const PROGRAM: &str = "import hashlib, os, signal, sys
block = os.urandom(int(sys.argv[2]))
digest = hashlib.sha256(block).digest()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
open(sys.argv[1] + '.ready', 'w').close()
signal.sigwait({signal.SIGUSR1})
with open(sys.argv[1] + '.new', 'w') as f: f.write('OK' if hashlib.sha256(block).digest() == digest else 'FAIL')
os.rename(sys.argv[1] + '.new', sys.argv[1])
signal.pause()";
        let folder = Folder::new();
        let report = folder.file("report");
        let mut python = Command::new("python3");
        let guest = Guest::start(python.args(["-c", PROGRAM]).arg(&report).arg(Large::LEN.to_string()));
        let large = Large { guest, report, _folder: folder };
        wait_for("the guest waits", Duration::from_secs(20), || {
            large.report.with_extension("ready").exists() && state(large.guest.pid()) == Some('S')
        });
        large
    }

    fn runs_on(&self) {
        assert_eq!(status(self.guest.pid(), "TracerPid"), "0");
        self.guest.signal(Signal::SIGUSR1);
        wait_for("its answer", Duration::from_secs(20), || self.report.exists());
        assert_eq!(fs::read_to_string(&self.report).expect("an answer"), "OK");
    }
}

#[test]
fn a_destination_whose_group_has_less_memory_than_is_needed_refuses_before_the_stop() {
    let _one = Alone::new();
    let Some(group) = Group::new(Large::LEN / 2) else { return };
    let large = Large::start();
    let ended = HandOver::start_in([None, Some(&group.script())], &large.guest.arg(), None).finish();
    assert_eq!(ended.codes(), (Some(6), Some(6)), "{}", ended.said);
    assert!(ended.said.contains("the destination refused: it needs"), "{}", ended.said);
    assert!(ended.said.contains("bytes of memory, our cgroup allows"), "{}", ended.said);
    assert!(!ended.passed.iter().any(|(_, frame)| *frame == "MmState"), "it was stopped: {}", ended.said);
    large.runs_on();
    nothing_left(&[large.guest.child()]);
}

#[test]
fn memory_that_runs_out_at_the_destination_leaves_nothing_there_and_the_original_runs_on() {
    let _one = Alone::new();
    // Enough at first, and then no longer.
    let Some(group) = Group::new(Large::LEN * 3) else { return };
    let large = Large::start();
    let narrow: &'static str = Box::leak(group.narrow(16 << 20).into_boxed_str());
    let when = When { way: Way::Forth, frame: "Pages", number: 30, part: Part::None };
    let plan = Some((when, Blow::Run(narrow)));
    let ended = HandOver::start_in([None, Some(&group.script())], &large.guest.arg(), plan).finish();
    assert!(ended.struck, "{:?}", ended.passed.len());
    assert_eq!(ended.codes(), (Some(6), Some(6)), "{}", ended.said);
    assert!(ended.said.contains("the destination refused: memory "), "{}", ended.said);
    large.runs_on();
    nothing_left(&[large.guest.child()]);
}

#[test]
fn files_that_are_cached_in_its_group_are_no_shortage() {
    let _one = Alone::new();
    let Some(group) = Group::new(Large::LEN * 2) else { return };
    let Large { mut guest, report, _folder } = Large::start();
    let len = Large::LEN / 2 * 3;
    let cache = format!("head -c {len} /dev/zero >\"$0/cached\" && sync \"$0/cached\"");
    let script = group.script().replace("exec", &format!("{cache} && exec"));
    let ended = HandOver::start_in([None, Some(&script)], &guest.arg(), None).finish();
    assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
    guest.ended(Duration::from_secs(10));
    let pid = fs::read_to_string(ended.folder.file("pid")).expect("a pidfile");
    let guest = Guest::adopt(pid.trim().parse().expect("a pid"));
    Large { guest, report, _folder }.runs_on();
}
