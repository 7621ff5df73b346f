//! A process that goes on replacing single pages in the middle of what it has mapped, and dropping pages of a file that it
//! had written, beside pages that it never touches again.
//!
//! `guest-holes REPORT FILE`: `REPORT.ready` appears once everything is set up; at SIGUSR1 it compares its memory with what
//! it knows to be there, and REPORT says `OK` or what is wrong.

use std::fs;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::ptr::null_mut;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use pc_tests::guest::finish;

const PAGE: usize = 4096;
const PAGES: usize = 64;
const LEN: usize = PAGES * PAGE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE;

fn map(at: *mut u8, len: usize, flags: libc::c_int, fd: libc::c_int) -> *mut u8 {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, or one in place of one of this program's own.
    let got = unsafe { libc::mmap(at.cast(), len, prot, flags, fd, 0) };
    assert_ne!(got, libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
    got.cast()
}

fn page(area: *mut u8, number: usize) -> &'static mut [u8] {
    // SAFETY: callers stay inside an area of LEN bytes, and keep no page.
    unsafe { std::slice::from_raw_parts_mut(area.add(number * PAGE), PAGE) }
}

struct Holes {
    /// Every other page is replaced again and again; those between hold what they were given at first.
    area: *mut u8,
    bytes: [u8; PAGES],
    /// A private mapping of a file, and what its pages were overwritten with.
    file: *mut u8,
    content: Vec<u8>,
    written: [Option<u8>; PAGES],
}

impl Holes {
    fn step(&mut self, n: usize) {
        let at = n * 13 % PAGES / 2 * 2;
        map(page(self.area, at).as_mut_ptr(), PAGE, PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED, -1);
        self.bytes[at] = n as u8;
        page(self.area, at).fill(n as u8);
        let at = n * 29 % PAGES;
        if n.is_multiple_of(3) {
            // SAFETY: a page of the mapping, whose content is given up.
            unsafe { libc::madvise(page(self.file, at).as_mut_ptr().cast(), PAGE, libc::MADV_DONTNEED) };
            self.written[at] = None;
        } else {
            page(self.file, at).fill(n as u8);
            self.written[at] = Some(n as u8);
        }
    }

    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for number in 0..PAGES {
            if page(self.area, number) != [self.bytes[number]; PAGE] {
                wrong.push(format!("page {number} of memory in which pages are replaced"));
            }
            let content = &self.content[number * PAGE..][..PAGE];
            let written = self.written[number].map(|byte| [byte; PAGE]);
            if page(self.file, number) != written.as_ref().map_or(content, |bytes| bytes) {
                wrong.push(format!("page {number} of a file, {written:.1?}"));
            }
        }
        wrong
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let go = SigSet::from_iter([Signal::SIGUSR1]);
    go.thread_block().expect("a mask");
    let content = fs::read(&args[2]).expect("a file");
    let open = fs::File::open(&args[2]).expect("a file");
    let mut holes = Holes {
        area: map(null_mut(), LEN, PRIVATE | libc::MAP_ANONYMOUS, -1),
        bytes: std::array::from_fn(|number| 1 + number as u8),
        file: map(null_mut(), LEN, PRIVATE, open.as_raw_fd()),
        content,
        written: [None; PAGES],
    };
    drop(open);
    (0..PAGES).for_each(|number| page(holes.area, number).fill(holes.bytes[number]));
    fs::write(format!("{}.ready", args[1]), "").expect("a report");
    let mut n = 0;
    while !is_pending() {
        n += 1;
        holes.step(n);
        std::thread::sleep(Duration::from_micros(30));
    }
    finish(&args[1], &holes.wrong())
}

fn is_pending() -> bool {
    // SAFETY: an empty set is valid, and the kernel fills it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, libc::SIGUSR1) == 1
    }
}
