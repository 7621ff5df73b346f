//! A guest that changes when it is told to: mappings, threads, descriptors, children.
//!
//! `guest-edges REPORT BALLAST WHAT`: at SIGUSR1 it does WHAT (`memory`, `advice`, `inotify` or `child`); `REPORT.changed` then has
//! a line for each range that matters, `name start`. At SIGTERM it looks at everything and writes REPORT. BALLAST pages
//! are written once.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use pc_tests::guest::finish;

const PAGE: usize = 4096;
/// Pages of every range.
const PAGES: usize = 64;

static LAPS: AtomicU64 = AtomicU64::new(0);
static LEAVE: AtomicBool = AtomicBool::new(false);

/// Pages at an address of their own.
#[derive(Clone, Copy)]
struct Range(*mut u8);

impl Range {
    fn new(at: *mut libc::c_void) -> Range {
        let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED_NOREPLACE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        // SAFETY: a new mapping, where nothing is.
        let got = unsafe { libc::mmap(at, PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert!(got != libc::MAP_FAILED && (at.is_null() || got == at), "mmap");
        Range(got.cast())
    }

    fn fill(self, pages: usize, byte: u8) -> Range {
        // SAFETY: inside of the mapping, which is writable.
        unsafe { self.0.write_bytes(byte, pages * PAGE) };
        self
    }

    fn protect(self, prot: i32) {
        // SAFETY: our mapping; nobody reads it meanwhile.
        let done = unsafe { libc::mprotect(self.0.cast(), PAGES * PAGE, prot) };
        assert_eq!(done, 0, "mprotect");
    }

    /// The one that begins `n` ranges after.
    fn after(self, n: usize) -> Range {
        Range(self.0.wrapping_add(n * PAGES * PAGE))
    }

    /// What is wrong, where `pages` are to hold `byte` and all others zeros.
    fn wrong(self, name: &str, pages: usize, byte: u8) -> Option<String> {
        // SAFETY: the mapping, which is readable.
        let all = unsafe { std::slice::from_raw_parts(self.0, PAGES * PAGE) };
        let want = |i: usize| if i < pages * PAGE { byte } else { 0 };
        let at = all.iter().enumerate().find(|(i, got)| **got != want(*i));
        at.map(|(i, got)| format!("{name}: byte {i:#x} is {got:#x}, not {:#x}", want(i)))
    }
}

/// The first and the last of three that were one mapping, apart from all others and where the kernel maps nothing by itself.
fn three_with_a_hole() -> Range {
    const FAR: u64 = 0x2000_0000_0000;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping, where nothing is.
    let got = unsafe { libc::mmap(FAR as *mut libc::c_void, 3 * PAGES * PAGE, prot, flags, -1, 0) };
    assert!(got as u64 == FAR, "mmap");
    let first = Range(got.cast()).fill(PAGES, 16);
    first.after(2).fill(PAGES, 18);
    // SAFETY: a part of the mapping made above, of which nobody knows.
    assert_eq!(unsafe { libc::munmap(first.after(1).0.cast(), PAGES * PAGE) }, 0, "munmap");
    first
}

/// A mapping with no neighbours.
fn alone() -> Range {
    Range::new(0x2100_0000_0000_u64 as *mut libc::c_void).fill(PAGES, 19)
}

/// Whether a mapping is left out of children, as madvise(2) has said.
fn not_forked(at: u64) -> Result<(), String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").map_err(|err| err.to_string())?;
    let own = smaps.split_once(&format!("{at:x}-")).map_or("", |(_, own)| own);
    let flags = own.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default();
    let told = flags.split_whitespace().any(|flag| flag == "dc");
    told.then_some(()).ok_or_else(|| format!("advised: the mapping has only the flags {flags}"))
}

/// Whether so many ranges are one mapping, as mremap(2) wants them.
fn in_one(at: u64, ranges: usize) -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|err| err.to_string())?;
    let span = format!("{at:x}-{:x} rw-p", at + (ranges * PAGES * PAGE) as u64);
    let there = maps.lines().any(|line| line.starts_with(&span));
    there.then_some(()).ok_or_else(|| format!("{span} is not one mapping in\n{maps}"))
}

struct Memory {
    dropped: Range,
    replaced: Range,
    hidden: Range,
    sealed: Range,
    parted: Range,
    advised: Range,
    heap: Option<Range>,
}

impl Memory {
    fn new() -> Memory {
        let range = |byte| Range::new(std::ptr::null_mut()).fill(PAGES, byte);
        let (parted, advised) = (three_with_a_hole(), alone());
        Memory {
            dropped: range(1),
            replaced: range(2),
            hidden: range(3),
            sealed: range(4),
            parted,
            advised,
            heap: None,
        }
    }

    fn change(&mut self) {
        // SAFETY: the content is given up.
        let done = unsafe { libc::madvise(self.dropped.0.cast(), PAGES * PAGE, libc::MADV_DONTNEED) };
        assert_eq!(done, 0, "madvise");
        let at = self.replaced.0.cast();
        // SAFETY: nobody uses it.
        assert_eq!(unsafe { libc::munmap(at, PAGES * PAGE) }, 0, "munmap");
        self.replaced = Range::new(at).fill(PAGES / 2, 12);
        self.hidden.fill(PAGES, 13).protect(libc::PROT_NONE);
        self.sealed.protect(libc::PROT_READ);
        // SAFETY: the heap grows; what malloc has of it stays.
        let heap = unsafe { libc::sbrk((PAGES * PAGE) as isize) };
        assert!(heap as isize != -1, "sbrk");
        self.heap = Some(Range(heap.cast()).fill(PAGES, 15));
        Range::new(self.parted.after(1).0.cast()).fill(PAGES, 17);
    }

    /// Nothing changes but a flag that only smaps shows.
    fn advise(&self) {
        // SAFETY: our own mapping, whose content stays.
        let done = unsafe { libc::madvise(self.advised.0.cast(), PAGES * PAGE, libc::MADV_DONTFORK) };
        assert_eq!(done, 0, "madvise");
    }

    fn ranges(&self) -> Vec<(&'static str, Range)> {
        let all = [("dropped", self.dropped), ("replaced", self.replaced), ("hidden", self.hidden)];
        let grown = self.heap.map(|heap| ("heap", heap));
        all.into_iter().chain([("sealed", self.sealed)]).chain(grown).collect()
    }

    fn wrong(&self) -> Vec<String> {
        self.hidden.protect(libc::PROT_READ);
        [
            self.dropped.wrong("dropped", 0, 0),
            self.replaced.wrong("replaced", PAGES / 2, 12),
            self.hidden.wrong("hidden", PAGES, 13),
            self.sealed.wrong("sealed", PAGES, 4),
            self.heap.and_then(|heap| heap.wrong("heap", PAGES, 15)),
            self.parted.wrong("parted: first", PAGES, 16),
            self.parted.after(1).wrong("parted: between", PAGES, 17),
            self.parted.after(2).wrong("parted: last", PAGES, 18),
            in_one(self.parted.0 as u64, 3).err(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// One file that is written on, and one that another takes the number of.
struct Files {
    report: String,
    grows: File,
    closed: Option<File>,
    next: Option<File>,
}

impl Files {
    fn new(report: &str) -> Files {
        for (name, text) in [("closed", "second"), ("next", "third")] {
            std::fs::write(format!("{report}.{name}"), text).expect("a file");
        }
        let grows = File::create(format!("{report}.grows")).expect("a file");
        let closed = File::open(format!("{report}.closed")).ok();
        Files { report: report.to_owned(), grows, closed, next: None }
    }

    fn change(&mut self) {
        self.grows.write_all(b"0123456789").expect("room");
        let number = self.closed.take().map(|file| file.as_raw_fd());
        self.next = File::open(format!("{}.next", self.report)).ok();
        assert_eq!(self.next.as_ref().map(|file| file.as_raw_fd()), number, "the number is taken again");
    }

    fn wrong(&mut self) -> Vec<String> {
        let at = self.grows.stream_position().expect("an offset");
        let mut text = String::new();
        let read = self.next.as_mut().map(|next| next.read_to_string(&mut text));
        let mut wrong = Vec::new();
        wrong.extend((at != 10).then(|| format!("the file that was written on is at {at}")));
        wrong.extend((text != "third").then(|| format!("the file opened again holds {text:?} ({read:?})")));
        wrong
    }
}

/// A thread whose stack and counter tell that it goes on.
fn born() {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut mine = [0u64; 512];
        send.send(()).expect("it is waited for");
        loop {
            mine.iter_mut().for_each(|word| *word += 1);
            let good = std::hint::black_box(&mine).iter().all(|word| *word == mine[0]);
            LAPS.fetch_add(if good { 1 } else { 1 << 40 }, SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    receive.recv().expect("it begins");
}

fn thread_wrong() -> Option<String> {
    let before = LAPS.load(SeqCst);
    std::thread::sleep(Duration::from_millis(50));
    let after = LAPS.load(SeqCst);
    let good = after > before && after < 1 << 40;
    (!good).then(|| format!("the thread that was born went from {before} to {after}"))
}

/// A child that stays as long as this process.
fn child() {
    // SAFETY: the child only waits for its end.
    unsafe {
        if libc::fork() == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
}

fn main() -> ExitCode {
    // SAFETY: nothing here has opened a descriptor yet; what a test runner leaks is nothing that we want.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, ballast, what] = &args[..] else {
        eprintln!("usage: guest-edges REPORT BALLAST WHAT");
        return ExitCode::from(2);
    };
    let told = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGTERM]);
    told.thread_block().expect("a mask");
    let mut memory = Memory::new();
    let mut files = Files::new(report);
    let ballast = vec![7u8; ballast.parse::<usize>().expect("pages") * PAGE];
    let leaves = std::thread::spawn(|| {
        while !LEAVE.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    std::fs::write(format!("{report}.ready"), "").expect("a file");
    if told.wait().expect("a signal") == Signal::SIGUSR1 {
        match what.as_str() {
            "inotify" => {
                // SAFETY: a new descriptor.
                assert!(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) } >= 0, "inotify");
            }
            "child" => child(),
            "advice" => memory.advise(),
            _ => {
                memory.change();
                files.change();
                LEAVE.store(true, SeqCst);
                leaves.join().expect("it ends");
                born();
            }
        }
        let ranges = memory.ranges();
        let lines: Vec<String> =
            ranges.iter().map(|(name, at)| format!("{name} {:#x}\n", at.0 as u64)).collect();
        let fresh = format!("{report}.fresh");
        std::fs::write(&fresh, lines.concat()).expect("a file");
        std::fs::rename(fresh, format!("{report}.changed")).expect("a file");
        while told.wait().expect("a signal") != Signal::SIGTERM {}
    }
    let mut wrong = Vec::new();
    if what == "memory" {
        wrong = memory.wrong();
        wrong.extend(thread_wrong());
        wrong.extend(files.wrong());
    }
    if what == "advice" {
        wrong.extend(memory.advised.wrong("advised", PAGES, 19));
        wrong.extend(not_forked(memory.advised.0 as u64).err());
    }
    wrong.extend(ballast.iter().any(|byte| *byte != 7).then(|| "ballast".to_owned()));
    finish(report, &wrong)
}
