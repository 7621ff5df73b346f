//! A process with shared memory of its own, which it goes on writing in every way until it is told to look at all of it.
//!
//! `guest-shared REPORT`: `REPORT.ready` appears once everything is set up; at SIGUSR1 it compares its shared memory with
//! what it knows to have written, and REPORT says `OK` or what is wrong. With `--still` it writes nothing meanwhile; with
//! `--pwrite` it writes through the file alone, and only once `REPORT.go` is there.

use std::fs::{self, File};
use std::io::{Error, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::ptr::null_mut;
use std::time::Duration;

use libc::c_int;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use pc_tests::guest::finish;

const PAGE: usize = 4096;
const PAGES: usize = 64;
const LEN: usize = PAGES * PAGE;
const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;

fn map(len: usize, prot: c_int, flags: c_int, fd: c_int, offset: usize) -> *mut u8 {
    // SAFETY: a new mapping where the kernel finds room.
    let at = unsafe { libc::mmap(null_mut(), len, prot, flags, fd, offset as i64) };
    assert_ne!(at, libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
    at.cast()
}

/// A second mapping of what is mapped: mremap(2) with an old length of 0.
fn twin(at: *mut u8) -> *mut u8 {
    // SAFETY: nothing is moved; the new mapping goes where there is room.
    let twin = unsafe { libc::mremap(at.cast(), 0, LEN, libc::MREMAP_MAYMOVE) };
    assert_ne!(twin, libc::MAP_FAILED, "mremap: {}", Error::last_os_error());
    twin.cast()
}

fn poke(at: *mut u8, word: usize, value: u64) {
    // SAFETY: callers stay inside a writable mapping of LEN bytes.
    unsafe { at.cast::<u64>().add(word).write_volatile(value) };
}

fn peek(at: *mut u8, word: usize) -> u64 {
    // SAFETY: callers stay inside a mapping of LEN bytes.
    unsafe { at.cast::<u64>().add(word).read_volatile() }
}

fn memfd(name: &std::ffi::CStr, len: u64) -> File {
    let file: File = memfd_create(name, MFdFlags::MFD_ALLOW_SEALING).expect("a memfd").into();
    file.set_len(len).expect("a length");
    file
}

fn seal(file: &File, seals: SealFlag) {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
}

fn seals(file: &File) -> SealFlag {
    SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS).expect("seals"))
}

/// Bytes of a line of the log, of which a page does not hold a whole number.
const LINE: u64 = 24;

fn line(number: u64) -> [u8; LINE as usize] {
    std::array::from_fn(|i| number.to_le_bytes()[i % 8] | 0x80)
}

/// A word of each page, as it was written.
type Model = [u64; PAGES];

struct Shared {
    /// Mapped twice and open.
    file: File,
    maps: [*mut u8; 2],
    model: Model,
    /// Shared anonymous memory, mapped twice.
    anonymous: [*mut u8; 2],
    anonymous_model: Model,
    /// A private mapping of `file` with a page of its own.
    private: *mut u8,
    /// Open only, of no whole number of pages, sealed.
    sealed: File,
    /// Open only, and cut off and extended again and again.
    growing: File,
    grown: Vec<u8>,
    /// Open only, and appended to: nothing in it is ever written again.
    log: File,
    logged: u64,
    /// Mapped only, for reading only.
    closed: *mut u8,
}

impl Shared {
    fn new() -> Shared {
        let file = memfd(c"mapped twice", LEN as u64);
        let maps = [(); 2].map(|()| map(LEN, RW, libc::MAP_SHARED, file.as_raw_fd(), 0));
        let private = map(LEN, RW, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        poke(private, 0, 77);
        let one = map(LEN, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
        let mut sealed = memfd(c"sealed", 5000);
        sealed.write_all_at(&[0x5a; 5000], 0).expect("content");
        sealed.seek(SeekFrom::Start(123)).expect("an offset");
        seal(&sealed, SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL);
        let growing = memfd(c"growing", 0);
        let log = memfd(c"log", 0);
        let short = memfd(c"closed", 3 * PAGE as u64);
        short.write_all_at(b"only mapped", 2 * PAGE as u64).expect("content");
        seal(&short, SealFlag::F_SEAL_WRITE);
        let closed = map(PAGE, libc::PROT_READ, libc::MAP_SHARED, short.as_raw_fd(), 2 * PAGE);
        let anonymous = [one, twin(one)];
        let mut new = Shared {
            file,
            maps,
            model: [0; PAGES],
            anonymous,
            anonymous_model: [0; PAGES],
            private,
            sealed,
            growing,
            grown: Vec::new(),
            log,
            logged: 0,
            closed,
        };
        (1..=3 * PAGES as u64).for_each(|n| new.step(n));
        new
    }

    /// Writes a little in every way.
    fn step(&mut self, n: u64) {
        let page = (n as usize / 2) % PAGES;
        if n.is_multiple_of(2) {
            poke(self.maps[(n as usize / 4) % 2], page * PAGE / 8, n);
            self.model[page] = n;
        } else {
            self.write(page, n);
        }
        poke(self.anonymous[n as usize % 2], page * PAGE / 8, n);
        self.anonymous_model[page] = n;
        if n.is_multiple_of(7) {
            let hole = (page + 13) % PAGES;
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, flags, (hole * PAGE) as i64, PAGE as i64).expect("a hole");
            self.model[hole] = 0;
        }
        for len in [n % 300, n * 97 % 20_000] {
            self.growing.set_len(len).expect("a length");
            self.grown.resize(len as usize, 0);
        }
        if let Some(last) = self.grown.last_chunk_mut::<8>() {
            *last = n.to_le_bytes();
            let at = self.grown.len() as u64 - 8;
            self.growing.write_all_at(&n.to_le_bytes(), at).expect("content");
        }
        self.log.write_all_at(&line(self.logged), self.logged * LINE).expect("content");
        self.logged += 1;
    }

    /// Whether every line of the log is as it was written.
    fn log_is_right(&self) -> bool {
        let log = fs::read(format!("/proc/self/fd/{}", self.log.as_raw_fd())).unwrap_or_default();
        let lines: Vec<u8> = (0..self.logged).flat_map(line).collect();
        log == lines
    }

    /// Through the file alone.
    fn write(&mut self, page: usize, n: u64) {
        self.file.write_all_at(&n.to_le_bytes(), (page * PAGE) as u64).expect("content");
        self.model[page] = n;
    }

    fn wrong(&mut self, n: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |good: bool, what: &str| wrong.extend((!good).then(|| what.to_owned()));
        let seen = |at: *mut u8| -> Model { std::array::from_fn(|page| peek(at, page * PAGE / 8)) };
        check(seen(self.maps[0]) == self.model, "a memfd by its first mapping");
        check(seen(self.maps[1]) == self.model, "a memfd by its second mapping");
        let mut word = [0; 8];
        let by_file: Model = std::array::from_fn(|page| {
            self.file.read_exact_at(&mut word, (page * PAGE) as u64).expect("content");
            u64::from_le_bytes(word)
        });
        check(by_file == self.model, "a memfd by its descriptor");
        check(seen(self.anonymous[0]) == self.anonymous_model, "shared anonymous memory");
        check(seen(self.anonymous[1]) == self.anonymous_model, "its second mapping");
        check(peek(self.private, 0) == 77, "a page of a private mapping's own");
        check(seen(self.private)[1..] == self.model[1..], "a private mapping of a memfd");
        let mut all = vec![0; 5000];
        check(self.sealed.read_exact_at(&mut all, 0).is_ok() && all == [0x5a; 5000], "a sealed memfd");
        check(self.sealed.metadata().is_ok_and(|meta| meta.len() == 5000), "its length");
        check(self.sealed.stream_position().is_ok_and(|at| at == 123), "its offset");
        check(self.sealed.write_all_at(b"x", 0).is_err(), "a memfd that may be written despite its seal");
        let expected = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        check(seals(&self.sealed) == expected, "seals");
        check(seals(&self.file).is_empty(), "seals that were not there");
        let grown = fs::read(format!("/proc/self/fd/{}", self.growing.as_raw_fd())).unwrap_or_default();
        check(grown == self.grown, "a memfd that was cut off and extended");
        check(self.log_is_right(), "a memfd that was appended to");
        // SAFETY: a mapped page.
        let closed = unsafe { std::slice::from_raw_parts(self.closed, 11) };
        check(closed == b"only mapped", "a memfd that is only mapped");
        self.step(n + 1);
        check(seen(self.maps[0]) == self.model, "a memfd that is written afterwards");
        check(seen(self.anonymous[0]) == self.anonymous_model, "anonymous memory that is written afterwards");
        wrong
    }
}

/// Mappings of shared memory, as /proc has them, without their inode numbers.
fn mappings() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let lines = maps.lines().filter(|line| line.ends_with("(deleted)"));
    let fields = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        [&words[..4], &words[5..]].concat().join(" ")
    };
    lines.map(fields).collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let report = &args[1];
    let has = |arg: &str| args.iter().any(|a| a == arg);
    let go = SigSet::from_iter([Signal::SIGUSR1]);
    go.thread_block().expect("a mask");
    let mut shared = Shared::new();
    let mut n = 3 * PAGES as u64;
    let before = mappings();
    fs::write(format!("{report}.ready"), "").expect("a report");
    if has("--pwrite") {
        while !fs::exists(format!("{report}.go")).expect("a folder") {
            std::thread::sleep(Duration::from_millis(1));
        }
        (0..PAGES).for_each(|page| shared.write(page, 1_000_000 + page as u64));
        fs::write(format!("{report}.gone"), "").expect("a report");
    }
    let writes = !has("--still") && !has("--pwrite");
    loop {
        let pending = go.contains(Signal::SIGUSR1) && is_pending();
        if pending {
            break;
        }
        if writes {
            n += 1;
            shared.step(n);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let mut wrong = shared.wrong(n);
    let after = mappings();
    if before != after {
        wrong.push(format!("mappings: {before:?}, then {after:?}"));
    }
    finish(report, &wrong)
}

fn is_pending() -> bool {
    // SAFETY: an empty set is valid, and the kernel fills it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, libc::SIGUSR1) == 1
    }
}
