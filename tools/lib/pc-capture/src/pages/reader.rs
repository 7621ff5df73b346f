//! Reads pages and sorts them: unchanged, zero, sent whole or patched.

use std::sync::atomic::Ordering;

use pc_image::PAGE_SIZE;
use pc_sys::mem::RemoteRange;
use pc_track::Hashes;

use crate::error::{CaptureError, Context, Result};
use crate::memory::{How, Span};
use crate::pages::chunk::Chunk;
use crate::pages::cutter::Cutter;
use crate::pages::origin::Origin;
use crate::pages::{Copied, CopyPlan, PAGE, Patched, Patching};

/// Ranges in a record of zero pages.
const MOST_ZERO_RANGES: usize = 4096;
static ZERO: [u8; PAGE] = [0; PAGE];

pub struct Reader<'a> {
    pub plan: CopyPlan<'a>,
    origin: Origin<'a>,
    hashes: &'a mut Hashes,
    batch: Vec<Span>,
    /// Zero ranges found and not sent yet.
    zero: Vec<(u64, u64)>,
    zero_pages: u64,
    unchanged: u64,
    patched: Patched,
}

impl<'a> Reader<'a> {
    pub fn new(plan: CopyPlan<'a>, origin: Origin<'a>, hashes: &'a mut Hashes) -> Self {
        Self {
            plan,
            origin,
            hashes,
            batch: Vec::new(),
            zero: Vec::new(),
            zero_pages: 0,
            unchanged: 0,
            patched: Patched::default(),
        }
    }

    pub fn add_to(&self, copied: &mut Copied) {
        copied.counts.zero_pages += self.zero_pages;
        copied.unchanged += self.unchanged;
        copied.patched.add(self.patched);
    }

    /// Fills a chunk; false if it is the last.
    pub fn fill(&mut self, cut: &mut Cutter<'_>, chunk: &mut Chunk) -> Result<bool> {
        if self.plan.cancel.load(Ordering::Relaxed) {
            return Err(CaptureError::Cancelled(self.plan.pid));
        }
        let mut batch = std::mem::take(&mut self.batch);
        cut.next(&mut batch);
        chunk.clear(batch.iter().map(|span| (span.end - span.start) as usize).sum());
        let read = self.read(&batch, chunk);
        let more = !batch.is_empty();
        self.batch = batch;
        read?;
        if !more || self.zero.len() >= MOST_ZERO_RANGES {
            std::mem::swap(&mut chunk.zero, &mut self.zero);
        }
        Ok(more)
    }

    fn read(&mut self, batch: &[Span], chunk: &mut Chunk) -> Result<()> {
        let ranges: Vec<RemoteRange> =
            batch.iter().map(|s| RemoteRange { addr: s.start, len: (s.end - s.start) as usize }).collect();
        let readable = batch.first().is_some_and(|s| s.readable);
        let pid = self.plan.pid;
        let got = match readable {
            true => self.origin.read_fast(pid, &ranges, &mut chunk.buf).of(pid, "reading its memory")?,
            false => 0,
        };
        let mut at = 0;
        for span in batch {
            for addr in (span.start..span.end).step_by(PAGE) {
                if (at + PAGE <= got || self.read_page(addr, &mut chunk.buf[at..at + PAGE])?)
                    && self.is_wanted(span.how, addr, &chunk.buf[at..at + PAGE])
                {
                    self.sort(addr, at, chunk);
                }
                at += PAGE;
            }
        }
        Ok(())
    }

    /// One page as a debugger reads it; false if it is gone and may be.
    fn read_page(&self, addr: u64, page: &mut [u8]) -> Result<bool> {
        match self.origin.read_page(addr, page) {
            Ok(()) => Ok(true),
            Err(_) if self.plan.running => Ok(false),
            Err(err) => Err(err).of(self.plan.pid, format_args!("reading its memory at {addr:#x}")),
        }
    }

    /// Whether a page is to be sent. Hashes are of the very bytes that are.
    fn is_wanted(&mut self, how: How, addr: u64, page: &[u8]) -> bool {
        let changed = how == How::Send || self.hashes.changed(addr, page);
        let wanted = changed || how == How::Note;
        self.unchanged += u64::from(!wanted);
        wanted
    }

    fn sort(&mut self, addr: u64, at: usize, chunk: &mut Chunk) {
        let page = &chunk.buf[at..at + PAGE];
        if page == ZERO {
            self.hashes.forget_blocks((addr, addr + PAGE_SIZE));
            self.zero_pages += 1;
            return match self.zero.last_mut() {
                Some(last) if last.1 == addr => last.1 += PAGE_SIZE,
                _ => self.zero.push((addr, addr + PAGE_SIZE)),
            };
        }
        let changed = match self.plan.patching {
            Patching::Never => None,
            how => self.hashes.changed_blocks(addr, page, how == Patching::Learn),
        };
        let Some(changed) = changed else { return chunk.add_page(addr, at) };
        self.patched.known += 1;
        if changed == 0 {
            self.unchanged += 1;
        } else {
            self.patched.whole += u64::from(chunk.add_changed(addr, at, changed));
        }
    }
}
