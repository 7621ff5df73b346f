//! The soft-dirty bit (Documentation/admin-guide/mm/soft-dirty.rst), for kernels built with it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::{Found, Range, Run, TrackError, Tracker, What, kernel};

const PAGE: u64 = 4096;
const SOFT_DIRTY: u64 = 1 << 55;
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Tracks by soft-dirty bits. They are read with the target standing, and cleared for the whole address space at once by
/// [`Tracker::clear_all`] before it goes on. New mappings are born soft-dirty, so none is ever lost.
#[derive(Debug)]
pub struct SoftDirty {
    pagemap: File,
    clear_refs: File,
}

impl SoftDirty {
    /// Whether this kernel has soft-dirty bits: tried on a page of our own.
    pub fn supported() -> bool {
        let mut page = vec![0u8; 2 * PAGE as usize];
        page[PAGE as usize] = 1;
        let base = page.as_ptr() as u64;
        let addr = base.next_multiple_of(PAGE);
        let seen = Self::begin(std::process::id() as i32).and_then(|mut own| {
            own.clear_all()?;
            page[(addr - base) as usize] = std::hint::black_box(2);
            let mut out = Vec::new();
            own.scan((addr, addr + PAGE), What::Anonymous, false, &mut out)?;
            Ok(out.iter().any(|run| run.written))
        });
        std::hint::black_box(&page);
        seen.unwrap_or(false)
    }

    /// Opens what is needed of process `pid`.
    pub fn begin(pid: i32) -> Result<Self, TrackError> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(kernel("opening the page map"))?;
        let clear_refs = OpenOptions::new().write(true).open(format!("/proc/{pid}/clear_refs"));
        Ok(Self { pagemap, clear_refs: clear_refs.map_err(kernel("opening clear_refs"))? })
    }
}

impl Tracker for SoftDirty {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    fn needs_pause(&self) -> bool {
        true
    }

    fn tracks(&mut self, _start: u64) -> Result<bool, TrackError> {
        Ok(true)
    }

    fn track(&mut self, _range: Range) -> Result<bool, TrackError> {
        Ok(true)
    }

    /// `clear` has no effect here: the bits can be cleared only all at once, see [`Tracker::clear_all`].
    fn scan(
        &mut self,
        (start, end): Range,
        what: What,
        _clear: bool,
        out: &mut Vec<Run>,
    ) -> Result<Found, TrackError> {
        const CHUNK: u64 = 8192;
        let mut buf = vec![0u8; (CHUNK * 8) as usize];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE).min(CHUNK);
            let words = &mut buf[..(pages * 8) as usize];
            self.pagemap.read_exact_at(words, at / PAGE * 8).map_err(kernel("reading the page map"))?;
            for (i, word) in words.chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
                let hidden = what == What::PrivateFile && word & FILE != 0;
                if word & (PRESENT | SWAPPED) != 0 && !hidden {
                    push(out, at + i as u64 * PAGE, word & SOFT_DIRTY != 0);
                }
            }
            at += pages * PAGE;
        }
        Ok(Found::Tracked)
    }

    /// Clears all bits of the address space.
    fn clear_all(&mut self) -> Result<(), TrackError> {
        self.clear_refs.write_all(b"4\n").map_err(kernel("clearing soft-dirty bits"))
    }

    fn untrack(&mut self, _range: Range) -> Result<(), TrackError> {
        Ok(())
    }
}

fn push(out: &mut Vec<Run>, page: u64, written: bool) {
    match out.last_mut() {
        Some(last) if last.end == page && last.written == written => last.end += PAGE,
        _ => out.push(Run { start: page, end: page + PAGE, written, guard: false, tracked: true }),
    }
}
