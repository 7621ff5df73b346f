//! Tracking a real process: a python that touches its memory when told.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use pc_trace::{SeizeOptions, Tracees};
use pc_track::{Found, Run, SoftDirty, Tracker, Uffd, What};

const PROGRAM: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
N = 64
base = libc.mmap(0x200000000000, N * 4096, 3, 0x22 | 0x100000, -1, 0)
libc.madvise(base, N * 4096, 15)  # no huge pages
for i in range(0, N, 2):
    ctypes.memset(base + i * 4096, 1, 1)
print("ready", flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == "write":
        ctypes.memset(base + int(words[1]) * 4096, 7, 1)
    elif words[0] == "drop":
        libc.madvise(base + int(words[1]) * 4096, 4096, 4)
    elif words[0] == "beside":
        libc.mmap(base + (N + 8) * 4096, 2 * 4096, 3, 0x22 | 0x100000, -1, 0)
        ctypes.memset(base + (N + 8) * 4096, 7, 1)
    elif words[0] == "large":
        libc.mmap(base + (N + 8) * 4096, 2 << 30, 3, 0x22 | 0x100000 | 0x4000, -1, 0)
        libc.madvise(base + (N + 8) * 4096, 2 << 30, 15)
        for at in range(0, 2 << 30, 1 << 24):
            ctypes.memset(base + (N + 8) * 4096 + at, 7, 3 * 4096)
    elif words[0] == "again":
        libc.munmap(ctypes.c_void_p(base), N * 4096)
        libc.mmap(base, N * 4096, 3, 0x22 | 0x100000, -1, 0)
    print("done", flush=True)
"#;

const BASE: u64 = 0x2000_0000_0000;
const RANGE: (u64, u64) = (BASE, BASE + 64 * 4096);

struct Guest {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Guest {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut guest = Self { child, stdin, stdout: BufReader::new(stdout) };
        guest.answer("ready");
        guest
    }

    fn answer(&mut self, want: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), want);
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.stdin, "{order}").unwrap();
        self.answer("done");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn track(guest: &Guest) -> Uffd {
    let mut tracees = Tracees::seize(guest.child.id() as i32, &SeizeOptions::default()).unwrap();
    let mut remote = tracees.remote(4096).unwrap();
    let mut uffd = Uffd::begin(&mut remote).unwrap();
    remote.finish().unwrap();
    tracees.detach().unwrap();
    assert!(uffd.track(RANGE).unwrap());
    uffd
}

fn pages(runs: &[Run], written: bool) -> Vec<u64> {
    let hit = runs.iter().filter(|run| run.written == written);
    hit.flat_map(|run| (run.start..run.end).step_by(4096)).map(|addr| (addr - BASE) / 4096).collect()
}

fn scan(uffd: &mut Uffd, clear: bool) -> (Found, Vec<Run>) {
    let mut runs = Vec::new();
    let found = uffd.scan(RANGE, What::Anonymous, clear, &mut runs).unwrap();
    (found, runs)
}

#[test]
fn exactly_the_written_pages_are_found_and_dropped_ones_are_gone() {
    let mut guest = Guest::start();
    let mut uffd = track(&guest);
    let (found, runs) = scan(&mut uffd, true);
    assert_eq!(found, Found::Tracked);
    assert_eq!(pages(&runs, true), (0..64).step_by(2).collect::<Vec<_>>(), "all counts as written at first");
    guest.tell("write 2");
    guest.tell("write 5");
    guest.tell("drop 8");
    let (_, runs) = scan(&mut uffd, true);
    assert_eq!(pages(&runs, true), [2, 5]);
    assert!(!pages(&runs, false).contains(&8), "a dropped page has no content");
    let (_, runs) = scan(&mut uffd, false);
    assert_eq!(pages(&runs, true), [0u64; 0], "taken and cleared");
    guest.tell("write 8");
    for clear in [false, true] {
        let (_, runs) = scan(&mut uffd, clear);
        assert_eq!(pages(&runs, true), [8], "a scan without clear takes nothing away");
    }
}

#[test]
fn a_mapping_replaced_at_the_same_address_is_lost() {
    let mut guest = Guest::start();
    let mut uffd = track(&guest);
    scan(&mut uffd, true);
    guest.tell("again");
    assert_eq!(scan(&mut uffd, true).0, Found::Lost);
    assert!(uffd.track(RANGE).unwrap());
    guest.tell("write 1");
    let (found, runs) = scan(&mut uffd, true);
    assert_eq!((found, pages(&runs, true)), (Found::Tracked, vec![1]));
    uffd.untrack(RANGE).unwrap();
    guest.tell("write 3");
}

#[test]
fn a_survey_of_many_mappings_takes_nothing_away_and_says_what_is_not_tracked() {
    let mut guest = Guest::start();
    let mut uffd = track(&guest);
    scan(&mut uffd, true);
    guest.tell("write 5");
    guest.tell("beside");
    let beside = (BASE + 72 * 4096, BASE + 74 * 4096);
    for _ in 0..2 {
        let mut runs = Vec::new();
        uffd.survey(&[(RANGE, What::Anonymous), (beside, What::Anonymous)], &mut runs).unwrap();
        let (tracked, other): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(|run| run.tracked);
        assert_eq!(pages(&tracked, true), [5]);
        assert_eq!(pages(&tracked, false).len(), 32);
        assert_eq!(pages(&other, true), [72]);
    }
}

/// Looked at by several threads where there are several processors.
#[test]
fn a_survey_of_much_memory_finds_what_a_scan_finds() {
    let mut guest = Guest::start();
    let mut uffd = track(&guest);
    guest.tell("large");
    let large = (BASE + 72 * 4096, BASE + 72 * 4096 + (2 << 30));
    assert!(uffd.track(large).unwrap());
    uffd.scan(large, What::Anonymous, true, &mut Vec::new()).unwrap();
    // At both ends, and around the middle.
    let written = [72, 73, 72 + (1 << 18) - 1, 72 + (1 << 18), 72 + (1 << 18) + 1, 71 + (1 << 19)];
    written.iter().for_each(|page| guest.tell(&format!("write {page}")));
    let (mut surveyed, mut scanned) = (Vec::new(), Vec::new());
    uffd.survey(&[(RANGE, What::Anonymous), (large, What::Anonymous)], &mut surveyed).unwrap();
    for range in [RANGE, large] {
        uffd.scan(range, What::Anonymous, false, &mut scanned).unwrap();
    }
    assert_eq!(surveyed, scanned);
    surveyed.retain(|run| run.start >= large.0);
    assert_eq!(pages(&surveyed, true), written);
    assert_eq!(pages(&surveyed, false).len(), 128 * 3 - 4);
}

#[test]
fn soft_dirty_sees_a_write_or_says_that_the_kernel_lacks_it() {
    if !SoftDirty::supported() {
        println!("SKIP soft-dirty: this kernel is built without CONFIG_MEM_SOFT_DIRTY");
        return;
    }
    let mut guest = Guest::start();
    let mut tracker = SoftDirty::begin(guest.child.id() as i32).unwrap();
    tracker.clear_all().unwrap();
    guest.tell("write 4");
    let mut runs = Vec::new();
    tracker.scan(RANGE, What::Anonymous, false, &mut runs).unwrap();
    assert_eq!(pages(&runs, true), [4]);
}
