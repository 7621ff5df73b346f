//! A guest whose memory a device fills: it reads a file with O_DIRECT over and over, each time another content, and looks
//! whether its pages hold what was read.
//!
//! `guest-direct FILE REPORT PAGES BALLAST [--late]`: FILE holds `CONTENTS` times PAGES pages, each word of which tells its place in the
//! file. REPORT appears when something is wrong, or says `OK` after SIGTERM. `REPORT.beat` says how many reads were begun.
//! BALLAST pages are written once. With `--late` the file is opened only at SIGUSR1.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use memmap2::MmapMut;

/// How many contents the file has, which are read in turn.
const CONTENTS: u64 = 3;
const PAGE: usize = 4096;

static END: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_: i32) {
    END.store(true, SeqCst);
}

extern "C" fn open(_: i32) {
    OPEN.store(true, SeqCst);
}

fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: the handlers only store to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// The first word that is not its place in the file.
fn wrong(memory: &[u8], offset: u64) -> Option<String> {
    let words = memory.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    (offset..).step_by(8).zip(words).find(|(want, got)| want != got).map(|(want, got)| {
        let page = (want - offset) / PAGE as u64;
        format!(
            "page {page}: content {} where {} was read",
            got / memory.len() as u64,
            want / memory.len() as u64
        )
    })
}

fn reads(file: &str, report: &str, memory: &mut [u8]) -> Result<u64, String> {
    let beat = File::create(format!("{report}.beat")).map_err(|err| err.to_string())?;
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(file);
    let file = file.map_err(|err| format!("opening with O_DIRECT: {err}"))?;
    let mut number = 0;
    while !END.load(SeqCst) {
        let offset = number % CONTENTS * memory.len() as u64;
        number += 1;
        beat.write_at(format!("{number:>20}").as_bytes(), 0).map_err(|err| err.to_string())?;
        file.read_exact_at(memory, offset).map_err(|err| format!("reading: {err}"))?;
        if let Some(what) = wrong(memory, offset) {
            return Err(format!("read {number}: {what}"));
        }
    }
    Ok(number)
}

fn main() -> ExitCode {
    // SAFETY: nothing here has opened a descriptor yet; what a test runner leaks is nothing that we want.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, report, pages, ballast, rest @ ..] = &args[..] else {
        eprintln!("usage: guest-direct FILE REPORT PAGES BALLAST [--late]");
        return ExitCode::from(2);
    };
    handle(libc::SIGTERM, end);
    handle(libc::SIGUSR1, open);
    let mapped =
        |pages: &str| MmapMut::map_anon(pages.parse::<usize>().expect("pages") * PAGE).expect("memory");
    let mut memory = mapped(pages);
    let mut ballast = mapped(ballast);
    ballast.iter_mut().zip(1u32..).for_each(|(byte, n)| *byte = (n >> 8 ^ n) as u8 | 1);
    std::fs::write(format!("{report}.ready"), "").expect("a file");
    while rest.iter().any(|arg| arg == "--late") && !OPEN.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (text, good) = match reads(file, report, &mut memory) {
        Ok(reads) => (format!("OK {reads} reads\n"), true),
        Err(why) => (format!("FAIL {why}\n"), false),
    };
    std::fs::write(report, text).expect("a report");
    ExitCode::from(u8::from(!good))
}
