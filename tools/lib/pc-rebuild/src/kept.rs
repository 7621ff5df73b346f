//! Pages kept for later, compacted: of each page only the latest word.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pc_image::{PAGE_SIZE, PageRun, Pages, Patches, Ranges};

use crate::error::RebuildError;

const PAGE: usize = PAGE_SIZE as usize;

/// Pages by address.
#[derive(Debug, Default)]
pub struct Kept {
    /// Where a page's bytes are: the number of a record, and an offset in its payload.
    pages: BTreeMap<u64, (u64, usize)>,
    /// The records that they came in, each let go when the last of its pages is done with.
    records: HashMap<u64, Record>,
    /// Records that came.
    count: u64,
    /// Pages of zeroes. Ranges, for a few bytes of a stream can make terabytes of them.
    zero: Ranges,
}

#[derive(Debug)]
struct Record {
    payload: Vec<u8>,
    /// Pages that are still kept.
    pages: usize,
}

impl Kept {
    /// Keeps pages with their bytes. A record whose data are shorter than its runs is kept as far as it goes.
    pub fn pages(&mut self, pages: Pages) {
        let Pages { runs, payload, data_offset, .. } = pages;
        let room = (payload.len() - data_offset) / PAGE;
        let addrs = runs.iter().flat_map(|r| (0..r.pages).map(move |i| r.addr.wrapping_add(i * PAGE_SIZE)));
        let mut kept = 0;
        for (addr, offset) in addrs.take(room).zip((data_offset..).step_by(PAGE)) {
            self.forget_page(addr);
            self.zero.remove(addr, addr.saturating_add(PAGE_SIZE));
            self.pages.insert(addr, (self.count, offset));
            kept += 1;
        }
        self.records.insert(self.count, Record { payload, pages: kept });
        self.count += 1;
    }

    /// Keeps pages of zeroes.
    pub fn zero(&mut self, ranges: &[(u64, u64)]) {
        self.forget(ranges);
        ranges.iter().for_each(|(start, end)| self.zero.insert(*start, *end));
    }

    /// Changes bytes of pages that are kept.
    pub fn patch(&mut self, patches: &Patches) -> Result<(), RebuildError> {
        for (patch, bytes) in patches.iter() {
            let page = patch.page();
            let place = self.pages.get(&page);
            let place = place.and_then(|(number, at)| Some((self.records.get_mut(number)?, *at)));
            let Some((record, at)) = place else {
                let why = format!("a patch at {:#x}, where no page was sent", patch.addr);
                return Err(RebuildError::Contradiction(why));
            };
            let at = at + (patch.addr - page) as usize;
            record.payload[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Forgets ranges.
    pub fn forget(&mut self, ranges: &[(u64, u64)]) {
        for &(start, end) in ranges.iter().filter(|r| r.0 < r.1) {
            let gone: Vec<u64> = self.pages.range(start..end).map(|(addr, _)| *addr).collect();
            gone.into_iter().for_each(|addr| self.forget_page(addr));
            self.zero.remove(start, end);
        }
    }

    fn forget_page(&mut self, addr: u64) {
        let Some((number, _)) = self.pages.remove(&addr) else { return };
        let Some(record) = self.records.get_mut(&number) else { return };
        record.pages -= 1;
        if record.pages == 0 {
            self.records.remove(&number);
        }
    }

    /// Ranges of zeroes, ascending.
    pub fn zero_ranges(&self) -> Vec<(u64, u64)> {
        self.zero.ranges().collect()
    }

    /// The pages with bytes, by the records that they came in.
    pub fn into_parts(self) -> impl Iterator<Item = Part> {
        let shared = |(number, record): (u64, Record)| (number, (Arc::new(record.payload), record.pages));
        let mut records: HashMap<_, _> = self.records.into_iter().map(shared).collect();
        let mut rest = self.pages.into_iter().peekable();
        std::iter::from_fn(move || {
            let (addr, (number, offset)) = rest.next()?;
            let runs = vec![PageRun { addr, pages: 1 }];
            let mut part = Part { payload: Arc::default(), runs, offset, len: PAGE, reuse: false };
            while let Some((addr, _)) = rest.next_if(|(_, page)| *page == (number, part.offset + part.len)) {
                part.push(addr);
            }
            let (payload, pages) = records.get_mut(&number)?;
            part.payload = payload.clone();
            *pages = pages.saturating_sub(part.len / PAGE);
            if *pages == 0 {
                records.remove(&number);
            }
            Some(part)
        })
    }
}

/// Bytes that follow one another in the payload of a record, and where they belong.
#[derive(Debug)]
pub struct Part {
    payload: Arc<Vec<u8>>,
    /// Pages that the bytes are those of; none of patches.
    pub runs: Vec<PageRun>,
    /// Where in the payload the bytes begin.
    offset: usize,
    /// How many there are.
    pub len: usize,
    /// The payload's buffer is to serve again.
    reuse: bool,
}

impl Part {
    /// All of a record.
    pub fn whole(pages: Pages) -> Self {
        let Pages { runs, payload, data_offset: offset, .. } = pages;
        Self { len: payload.len() - offset, payload: Arc::new(payload), runs, offset, reuse: true }
    }

    /// The bytes of all patches of a record.
    pub fn patches(patches: Patches) -> Self {
        let Patches { payload, data_offset: offset, .. } = patches;
        Self {
            len: payload.len() - offset,
            payload: Arc::new(payload),
            runs: Vec::new(),
            offset,
            reuse: true,
        }
    }

    fn push(&mut self, addr: u64) {
        self.len += PAGE;
        match self.runs.last_mut() {
            Some(run) if run.addr + run.pages * PAGE_SIZE == addr => run.pages += 1,
            _ => self.runs.push(PageRun { addr, pages: 1 }),
        }
    }

    /// The record's buffer, if it is to serve again.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        Arc::into_inner(self.payload).filter(|_| self.reuse)
    }

    /// The bytes.
    pub fn data(&self) -> &[u8] {
        &self.payload[self.offset..self.offset + self.len]
    }
}

#[cfg(test)]
mod tests {
    use pc_image::{Patch, SpaceId};

    use super::*;

    fn pages(addr: u64, count: u64, byte: u8) -> Pages {
        let runs = vec![PageRun { addr, pages: count }];
        Pages { space: SpaceId(1), runs, payload: vec![byte; (count * PAGE_SIZE) as usize], data_offset: 0 }
    }

    #[test]
    fn the_latest_word_about_a_page_counts() {
        let mut kept = Kept::default();
        kept.pages(pages(0x1000, 4, 1));
        kept.pages(pages(0x2000, 1, 2));
        kept.zero(&[(0x3000, 0x4000)]);
        kept.forget(&[(0x4000, 0x5000)]);
        assert_eq!(kept.zero_ranges(), [(0x3000, 0x4000)]);
        let parts: Vec<Part> = kept.into_parts().collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].runs, [PageRun { addr: 0x1000, pages: 1 }]);
        assert_eq!(parts[1].runs, [PageRun { addr: 0x2000, pages: 1 }]);
        assert_eq!((parts[0].data(), parts[1].data()), (&[1; 4096][..], &[2; 4096][..]));
    }

    #[test]
    fn zeroes_as_far_as_addresses_go_cost_no_memory() {
        let mut kept = Kept::default();
        kept.zero(&[(0, 1 << 47)]);
        kept.pages(pages(0x5000, 2, 1));
        kept.forget(&[(0x1000, 0x2000)]);
        kept.zero(&[(0x6000, 0x7000)]);
        assert_eq!(kept.zero_ranges(), [(0, 0x1000), (0x2000, 0x5000), (0x6000, 1 << 47)]);
        let parts: Vec<Part> = kept.into_parts().collect();
        assert_eq!(parts[0].runs, [PageRun { addr: 0x5000, pages: 1 }]);
    }

    #[test]
    fn pages_that_follow_one_another_in_a_record_stay_together() {
        let mut kept = Kept::default();
        let mut record = pages(0x1000, 6, 1);
        record.runs = vec![PageRun { addr: 0x1000, pages: 2 }, PageRun { addr: 0x8000, pages: 4 }];
        kept.pages(record);
        kept.forget(&[(0x9000, 0xa000)]);
        let parts: Vec<Part> = kept.into_parts().collect();
        let runs: Vec<_> = parts.iter().map(|part| part.runs.clone()).collect();
        let run = |addr, pages| PageRun { addr, pages };
        assert_eq!(runs, [vec![run(0x1000, 2), run(0x8000, 1)], vec![run(0xa000, 2)]]);
        assert_eq!((parts[0].offset, parts[1].offset), (0, 4 * PAGE));
    }

    fn patches(patches: &[(u64, &[u8])]) -> Patches {
        let payload = patches.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let patches = patches.iter().map(|(addr, bytes)| Patch { addr: *addr, len: bytes.len() as u16 });
        Patches { space: SpaceId(1), patches: patches.collect(), payload, data_offset: 0 }
    }

    #[test]
    fn a_patch_changes_the_page_that_was_kept_last() {
        let mut kept = Kept::default();
        kept.pages(pages(0x1000, 2, 1));
        kept.pages(pages(0x2000, 1, 2));
        kept.patch(&patches(&[(0x1fff, b"a"), (0x2000, b"bc")])).unwrap();
        kept.patch(&patches(&[(0x2001, b"e")])).unwrap();
        let parts: Vec<Part> = kept.into_parts().collect();
        let starts = |at: usize| &parts[at].data()[..4];
        assert_eq!((parts[0].data()[4094..].as_ref(), starts(0)), (&b"\x01a"[..], &[1; 4][..]));
        assert_eq!(starts(1), b"be\x02\x02");
    }

    #[test]
    fn a_patch_of_a_page_that_is_not_kept_contradicts_the_stream() {
        let mut kept = Kept::default();
        kept.pages(pages(0x1000, 2, 1));
        kept.forget(&[(0x1000, 0x2000)]);
        kept.zero(&[(0x3000, 0x4000)]);
        for addr in [0x1fff, 0x3000] {
            let refused = kept.patch(&patches(&[(addr, b"a")]));
            assert!(matches!(refused, Err(RebuildError::Contradiction(_))));
        }
    }

    /// Against the same with a plain array, whatever comes in whatever order.
    #[test]
    fn what_is_kept_is_what_one_after_the_other_would_have_made() {
        const PAGES: u64 = 24;
        let mut seed = 5u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..300 {
            let (mut kept, mut model) = (Kept::default(), vec![None; PAGES as usize]);
            for step in 1..60u8 {
                let (first, count) = (random(PAGES), 1 + random(6));
                let range = first..(first + count).min(PAGES);
                let ranges = [(range.start * PAGE_SIZE, range.end * PAGE_SIZE)];
                let hit = &mut model[range.start as usize..range.end as usize];
                match random(5) {
                    0 => {
                        kept.forget(&ranges);
                        hit.fill(None);
                    }
                    1 => {
                        kept.zero(&ranges);
                        hit.fill(Some([0; PAGE]));
                    }
                    2 => {
                        kept.pages(pages(ranges[0].0, range.end - range.start, step));
                        hit.fill(Some([step; PAGE]));
                    }
                    _ => {
                        let at = random(4096) as usize;
                        let bytes = vec![step; 1 + random(4096 - at as u64) as usize];
                        for (i, page) in (range.start..).zip(hit) {
                            let patched = kept.patch(&patches(&[(i * PAGE_SIZE + at as u64, &bytes)]));
                            let page = page.as_mut().filter(|page| **page != [0; PAGE]);
                            assert_eq!(patched.is_ok(), page.is_some());
                            if let Some(page) = page {
                                page[at..at + bytes.len()].copy_from_slice(&bytes);
                            }
                        }
                    }
                }
            }
            let mut got = vec![None; PAGES as usize];
            for (start, end) in kept.zero_ranges() {
                got[(start / PAGE_SIZE) as usize..(end / PAGE_SIZE) as usize].fill(Some([0; PAGE]));
            }
            for part in kept.into_parts() {
                let addrs =
                    part.runs.iter().flat_map(|run| (run.addr..).step_by(PAGE).take(run.pages as usize));
                for (addr, bytes) in addrs.zip(part.data().chunks(PAGE)) {
                    let before = got[(addr / PAGE_SIZE) as usize].replace(bytes.try_into().unwrap());
                    assert!(before.is_none(), "{addr:#x} is kept twice");
                }
            }
            assert!(got == model);
        }
    }

    #[test]
    fn a_record_is_let_go_with_the_last_of_its_pages() {
        let mut kept = Kept::default();
        kept.pages(pages(0x1000, 3, 1));
        kept.pages(pages(0x1000, 2, 2));
        assert_eq!(kept.records.len(), 2);
        kept.zero(&[(0x3000, 0x4000)]);
        assert_eq!(kept.records.len(), 1);
        kept.forget(&[(0, 0x9000)]);
        assert!(kept.records.is_empty());
    }
}
