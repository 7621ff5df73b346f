//! Pages kept for later, compacted: of each page only the latest word.

use std::collections::BTreeMap;
use std::sync::Arc;

use pc_image::{PAGE_SIZE, PageRun, Pages};

const PAGE: usize = PAGE_SIZE as usize;

/// Pages by address.
#[derive(Debug, Default)]
pub struct Kept {
    /// A page's bytes: at this offset of a record's data.
    pages: BTreeMap<u64, (Arc<Pages>, usize)>,
    /// Pages of zeroes: start -> end. Ranges, for a few bytes of a stream can make terabytes of them.
    zero: BTreeMap<u64, u64>,
}

impl Kept {
    /// Keeps pages with their bytes. A record whose data are shorter than its runs is kept as far as it goes.
    pub fn pages(&mut self, pages: Pages) {
        let pages = Arc::new(pages);
        let mut offset = 0;
        let room = pages.data().len() / PAGE_SIZE as usize;
        let addrs =
            pages.runs.iter().flat_map(|r| (0..r.pages).map(move |i| r.addr.wrapping_add(i * PAGE_SIZE)));
        for addr in addrs.take(room) {
            self.cut_zero(addr, addr.saturating_add(PAGE_SIZE));
            self.pages.insert(addr, (pages.clone(), offset));
            offset += PAGE_SIZE as usize;
        }
    }

    /// Keeps pages of zeroes.
    pub fn zero(&mut self, ranges: &[(u64, u64)]) {
        self.forget(ranges);
        self.zero.extend(ranges.iter().filter(|r| r.0 < r.1).copied());
    }

    /// Forgets ranges.
    pub fn forget(&mut self, ranges: &[(u64, u64)]) {
        for &(start, end) in ranges.iter().filter(|r| r.0 < r.1) {
            let gone: Vec<u64> = self.pages.range(start..end).map(|(addr, _)| *addr).collect();
            for addr in gone {
                self.pages.remove(&addr);
            }
            self.cut_zero(start, end);
        }
    }

    /// Takes a range out of the ranges of zeroes; what sticks out of it stays.
    fn cut_zero(&mut self, start: u64, end: u64) {
        while let Some((&from, &to)) = self.zero.range(..end).next_back().filter(|(_, to)| **to > start) {
            self.zero.remove(&from);
            if from < start {
                self.zero.insert(from, start);
            }
            if to > end {
                self.zero.insert(end, to);
            }
        }
    }

    /// Ranges of zeroes, ascending.
    pub fn zero_ranges(&self) -> Vec<(u64, u64)> {
        self.zero.iter().map(|(start, end)| (*start, *end)).collect()
    }

    /// The pages with bytes, by the records that they came in: each is let go when the last of its parts is done with.
    pub fn into_parts(self) -> impl Iterator<Item = Part> {
        let mut rest = self.pages.into_iter().peekable();
        std::iter::from_fn(move || {
            let (addr, (record, offset)) = rest.next()?;
            let mut part =
                Part { record, runs: vec![PageRun { addr, pages: 1 }], offset, len: PAGE, reuse: false };
            while let Some((addr, _)) = rest.next_if(|(_, page)| part.continues(page)) {
                part.push(addr);
            }
            Some(part)
        })
    }
}

/// Pages whose bytes follow one another in a record.
#[derive(Debug)]
pub struct Part {
    pub record: Arc<Pages>,
    pub runs: Vec<PageRun>,
    /// Where in the record's data their bytes begin, and how many these are.
    pub offset: usize,
    pub len: usize,
    /// The record's buffer is to serve again.
    reuse: bool,
}

impl Part {
    /// All of a record.
    pub fn whole(mut pages: Pages) -> Self {
        let (runs, len) = (std::mem::take(&mut pages.runs), pages.data().len());
        Self { record: Arc::new(pages), runs, offset: 0, len, reuse: true }
    }

    fn continues(&self, (record, offset): &(Arc<Pages>, usize)) -> bool {
        Arc::ptr_eq(record, &self.record) && *offset == self.offset + self.len
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
        Arc::into_inner(self.record).filter(|_| self.reuse).map(|pages| pages.payload)
    }

    /// The bytes of its pages.
    pub fn data(&self) -> &[u8] {
        &self.record.data()[self.offset..self.offset + self.len]
    }
}

#[cfg(test)]
mod tests {
    use pc_image::SpaceId;

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
        assert_eq!(kept.zero_ranges(), [(0, 0x1000), (0x2000, 0x5000), (0x6000, 0x7000), (0x7000, 1 << 47)]);
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
}
