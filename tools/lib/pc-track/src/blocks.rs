//! Which part of a page has changed: hashes of its blocks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use xxhash_rust::xxh3::xxh3_128_with_seed;

const PAGE: u64 = 4096;
/// Bytes of a block: a cache line.
pub const BLOCK: usize = 64;
/// Blocks of a page: as many as a word has bits.
const COUNT: usize = PAGE as usize / BLOCK;
/// Pages that are known at the most. A page takes 1 KiB, so this is 128 MiB, for 512 MiB of memory written again and again.
const MOST: usize = 128 << 10;

/// Hashes of the blocks of pages as they were last sent: 16 bytes a block, of a bounded number of pages.
#[derive(Debug)]
pub(crate) struct Blocks {
    seed: u64,
    /// By page number.
    pages: HashMap<u64, Box<[u128; COUNT]>>,
}

impl Blocks {
    pub fn new(seed: u64) -> Self {
        Self { seed, pages: HashMap::new() }
    }

    /// The blocks in which a page differs from what it was known as, the first one the lowest bit; `None` if nothing is
    /// known of it. With `learn` it is known as it is now from here on, if there is room.
    pub fn changed(&mut self, addr: u64, page: &[u8], learn: bool) -> Option<u64> {
        let room = self.pages.len() < MOST;
        match self.pages.entry(addr / PAGE) {
            Entry::Occupied(mut known) => {
                let now = hashes(self.seed, page);
                let differ = now.iter().zip(known.get().iter()).map(|(now, known)| now != known);
                let bits = differ.enumerate().fold(0, |bits, (i, differs)| bits | u64::from(differs) << i);
                if learn {
                    **known.get_mut() = now;
                }
                Some(bits)
            }
            Entry::Vacant(place) => {
                if learn && room {
                    place.insert(Box::new(hashes(self.seed, page)));
                }
                None
            }
        }
    }

    /// Forgets the pages of a range `(start, end)`.
    pub fn forget(&mut self, (start, end): (u64, u64)) {
        let (first, behind) = (start / PAGE, end / PAGE);
        // To look at all takes as long as there is room, however few there are.
        if behind.saturating_sub(first) <= self.pages.capacity() as u64 {
            (first..behind).for_each(|number| drop(self.pages.remove(&number)));
        } else {
            self.pages.retain(|number, _| !(first..behind).contains(number));
        }
    }
}

fn hashes(seed: u64, page: &[u8]) -> [u128; COUNT] {
    std::array::from_fn(|i| xxh3_128_with_seed(&page[i * BLOCK..(i + 1) * BLOCK], seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn just_the_blocks_that_differ_are_told_and_only_of_pages_that_are_known() {
        let mut blocks = Blocks::new(3);
        let mut page = [7u8; PAGE as usize];
        assert_eq!(blocks.changed(0x5000, &page, false), None);
        assert_eq!(blocks.changed(0x5000, &page, true), None, "it was not to be learned before");
        page[63] = 1;
        page[64] = 1;
        page[4095] = 1;
        assert_eq!(blocks.changed(0x5000, &page, false), Some(0b11 | 1 << 63));
        assert_eq!(blocks.changed(0x5000, &page, true), Some(0b11 | 1 << 63), "nothing was to be learned");
        assert_eq!(blocks.changed(0x5000, &page, true), Some(0));
        assert_eq!(blocks.changed(0x6000, &page, false), None);
    }

    #[test]
    fn forgotten_pages_are_not_known_and_their_neighbours_are() {
        for (behind, left) in [(6, vec![0, 1, 6, 7]), (1 << 40, vec![0, 1])] {
            let mut blocks = Blocks::new(3);
            let page = [7u8; PAGE as usize];
            for n in 0..8 {
                blocks.changed(n * PAGE, &page, true);
            }
            blocks.forget((2 * PAGE, behind * PAGE));
            let known = (0..8).filter(|n| blocks.changed(n * PAGE, &page, false).is_some());
            assert_eq!(known.collect::<Vec<u64>>(), left);
        }
    }

    #[test]
    fn no_more_pages_are_known_than_there_is_room_for() {
        let mut blocks = Blocks::new(3);
        let page = [7u8; PAGE as usize];
        let most = MOST as u64;
        (0..most).for_each(|n| drop(blocks.pages.insert(n, Box::new([0; COUNT]))));
        assert_eq!(blocks.changed(most * PAGE, &page, true), None);
        assert_eq!(blocks.changed(most * PAGE, &page, true), None, "it was learned beyond the limit");
        blocks.forget((0, PAGE));
        assert_eq!(blocks.changed(most * PAGE, &page, true), None);
        assert_eq!(blocks.changed(most * PAGE, &page, true), Some(0));
    }
}
