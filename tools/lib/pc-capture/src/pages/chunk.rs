//! Pages on their way from the reader to the sink.

use std::time::Instant;

use pc_image::{ImageError, PAGE_SIZE, PageRun, Patch, Record, Sink, SpaceId, ZeroPages};
use pc_track::BLOCK;

use crate::pages::{Copied, PAGE};

/// Bytes read at once, and the most in a frame.
pub const CHUNK: usize = 1 << 20;
/// Patches that take more than this are not worth it: the page is sent.
const WORTH_IT: usize = PAGE / 4 * 3;

/// Pages on their way.
#[derive(Debug, Default)]
pub struct Chunk {
    pub buf: Vec<u8>,
    /// Runs that travel with their bytes, and where in `buf` these lie.
    runs: Vec<PageRun>,
    pieces: Vec<(usize, usize)>,
    /// Patches, their bytes, and how many pages they are of.
    patches: Vec<Patch>,
    patch_bytes: Vec<u8>,
    patched: u64,
    /// Ranges that are all zero.
    pub zero: Vec<(u64, u64)>,
}

impl Chunk {
    pub fn put(&self, space: SpaceId, sink: &mut dyn Sink, copied: &mut Copied) -> Result<(), ImageError> {
        let began = Instant::now();
        if !self.runs.is_empty() {
            let data: Vec<&[u8]> = self.pieces.iter().map(|(from, to)| &self.buf[*from..*to]).collect();
            sink.pages(space, &self.runs, &data)?;
        }
        if !self.patches.is_empty() {
            sink.patches(space, &self.patches, &self.patch_bytes)?;
        }
        if !self.zero.is_empty() {
            sink.record(&Record::ZeroPages(ZeroPages { space, ranges: self.zero.clone() }))?;
        }
        copied.counts.pages += self.runs.iter().map(|run| run.pages).sum::<u64>();
        copied.counts.patched_pages += self.patched;
        copied.patched.bytes += (self.patches.len() * Patch::HEAD + self.patch_bytes.len()) as u64;
        copied.write_us += began.elapsed().as_micros() as u64;
        Ok(())
    }

    /// Makes it ready for so many bytes. No larger than that: at the stop, making more memory present would take longer than
    /// to read the pages that are left.
    pub fn clear(&mut self, bytes: usize) {
        if self.buf.len() < bytes {
            self.buf.resize(bytes, 0);
        }
        self.runs.clear();
        self.pieces.clear();
        self.patches.clear();
        self.patch_bytes.clear();
        self.patched = 0;
        self.zero.clear();
    }

    /// Adds a page's bytes (at `at` in the buffer) to the last run if it goes on from there.
    pub fn add_page(&mut self, addr: u64, at: usize) {
        if let (Some(run), Some(piece)) = (self.runs.last_mut(), self.pieces.last_mut())
            && run.addr + run.pages * PAGE_SIZE == addr
            && piece.1 == at
        {
            run.pages += 1;
            piece.1 += PAGE;
            return;
        }
        self.runs.push(PageRun { addr, pages: 1 });
        self.pieces.push((at, at + PAGE));
    }

    /// Adds those blocks of a page (at `at` in the buffer) that have changed, the first one the lowest bit: as patches, or
    /// the whole page where that takes about as much (true).
    pub fn add_changed(&mut self, addr: u64, at: usize, changed: u64) -> bool {
        let starts = (changed & !(changed << 1)).count_ones() as usize;
        if changed.count_ones() as usize * BLOCK + starts * Patch::HEAD > WORTH_IT {
            self.add_page(addr, at);
            return true;
        }
        let mut rest = changed;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let blocks = (rest >> first).trailing_ones();
            let (from, len) = (first as usize * BLOCK, blocks as usize * BLOCK);
            self.patches.push(Patch { addr: addr + from as u64, len: len as u16 });
            self.patch_bytes.extend_from_slice(&self.buf[at + from..at + from + len]);
            // There is always a block that has not changed, so no shift is as wide as the word.
            rest &= !(((1 << blocks) - 1) << first);
        }
        self.patched += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Chunk {
        let mut chunk = Chunk::default();
        chunk.clear(CHUNK);
        chunk.buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / BLOCK) as u8);
        chunk
    }

    #[test]
    fn blocks_that_follow_one_another_are_one_patch() {
        let mut chunk = chunk();
        assert!(!chunk.add_changed(0x7000, PAGE, 0b1101 | 1 << 63));
        let patch = |at: u64, blocks: u16| Patch { addr: 0x7000 + at * 64, len: blocks * 64 };
        assert_eq!(chunk.patches, [patch(0, 1), patch(2, 2), patch(63, 1)]);
        let bytes: Vec<u8> = [64, 66, 67, 127].iter().flat_map(|byte| [*byte; BLOCK]).collect();
        assert_eq!(chunk.patch_bytes, bytes);
        assert_eq!((chunk.patched, chunk.runs.len()), (1, 0));
    }

    #[test]
    fn a_page_of_which_most_has_changed_is_sent_whole() {
        let mut chunk = chunk();
        assert!(!chunk.add_changed(0x7000, 0, (1 << 47) - 1));
        assert_eq!((chunk.patched, chunk.runs.len()), (1, 0));
        for changed in [u64::MAX, (1 << 48) - 1, (u64::MAX / 3) | 0xffff_ffff] {
            chunk.clear(CHUNK);
            assert!(chunk.add_changed(0x7000, 0, changed));
            assert_eq!((chunk.patched, chunk.runs.len()), (0, 1), "{changed:#b}");
        }
    }
}
