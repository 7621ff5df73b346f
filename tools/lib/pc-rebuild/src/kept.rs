//! Pages kept for later, compacted: of each page only the latest word.

use std::collections::BTreeMap;
use std::rc::Rc;

use pc_image::{PAGE_SIZE, PageRun, Pages, SpaceId};

/// Pages by address.
#[derive(Debug, Default)]
pub struct Kept {
    /// A page's bytes: at this offset of a record's data.
    pages: BTreeMap<u64, (Rc<Pages>, usize)>,
    /// Pages of zeroes: start -> end. Ranges, for a few bytes of a stream can make terabytes of them.
    zero: BTreeMap<u64, u64>,
}

impl Kept {
    /// Keeps pages with their bytes. A record whose data are shorter than its runs is kept as far as it goes.
    pub fn pages(&mut self, pages: Pages) {
        let pages = Rc::new(pages);
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

    /// The pages with bytes as records of about `room` bytes, in ascending order.
    pub fn into_records(self, space: SpaceId, room: usize) -> impl Iterator<Item = Pages> {
        let mut rest = self.pages.into_iter();
        std::iter::from_fn(move || {
            let mut record =
                Pages { space, runs: Vec::new(), payload: Vec::with_capacity(room), data_offset: 0 };
            for (addr, (from, offset)) in rest.by_ref().take(room / PAGE_SIZE as usize) {
                match record.runs.last_mut() {
                    Some(run) if run.addr + run.pages * PAGE_SIZE == addr => run.pages += 1,
                    _ => record.runs.push(PageRun { addr, pages: 1 }),
                }
                record.payload.extend_from_slice(&from.data()[offset..offset + PAGE_SIZE as usize]);
            }
            (!record.runs.is_empty()).then_some(record)
        })
    }
}

#[cfg(test)]
mod tests {
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
        let records: Vec<Pages> = kept.into_records(SpaceId(1), 1 << 20).collect();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].runs, [PageRun { addr: 0x1000, pages: 2 }]);
        assert_eq!((records[0].payload[0], records[0].payload[4096]), (1, 2));
    }

    #[test]
    fn zeroes_as_far_as_addresses_go_cost_no_memory() {
        let mut kept = Kept::default();
        kept.zero(&[(0, 1 << 47)]);
        kept.pages(pages(0x5000, 2, 1));
        kept.forget(&[(0x1000, 0x2000)]);
        kept.zero(&[(0x6000, 0x7000)]);
        assert_eq!(kept.zero_ranges(), [(0, 0x1000), (0x2000, 0x5000), (0x6000, 0x7000), (0x7000, 1 << 47)]);
        let records: Vec<Pages> = kept.into_records(SpaceId(1), 1 << 20).collect();
        assert_eq!(records[0].runs, [PageRun { addr: 0x5000, pages: 1 }]);
    }
}
