//! Which part of a page has changed: hashes of its blocks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_128_with_seed;

const PAGE: u64 = 4096;
/// Bytes of a block: a cache line.
pub const BLOCK: usize = 64;
/// Blocks of a page: as many as a word has bits.
const COUNT: usize = PAGE as usize / BLOCK;
/// Pages that are known at the most. A page takes 1 KiB, so this is 128 MiB, for 512 MiB of memory written again and again.
const MOST: usize = 128 << 10;

/// How many more pages may be known: of one process, with all that is hashed of it.
#[derive(Debug, Clone)]
pub struct Room(Arc<AtomicUsize>);

impl Default for Room {
    /// For 131,072 pages, whose hashes take 128 MiB.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(MOST)))
    }
}

impl Room {
    fn take(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self, pages: usize) {
        self.0.fetch_add(pages, Relaxed);
    }
}

/// Hashes of the blocks of pages as they were last sent: 16 bytes a block, as far as there is room.
#[derive(Debug)]
pub(crate) struct Blocks {
    seed: u64,
    room: Room,
    /// By page number.
    pages: HashMap<u64, Box<[u128; COUNT]>>,
}

impl Blocks {
    pub fn new(seed: u64, room: Room) -> Self {
        Self { seed, room, pages: HashMap::new() }
    }

    /// How many pages of a range are known.
    pub fn known(&self, (start, end): (u64, u64)) -> u64 {
        if self.pages.is_empty() {
            return 0;
        }
        (start / PAGE..end / PAGE).filter(|number| self.pages.contains_key(number)).count() as u64
    }

    /// The blocks in which a page differs from what it was known as, the first one the lowest bit; `None` if nothing is
    /// known of it. With `learn` it is known as it is now from here on, if there is room.
    pub fn changed(&mut self, addr: u64, page: &[u8], learn: bool) -> Option<u64> {
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
                if learn && self.room.take() {
                    place.insert(Box::new(hashes(self.seed, page)));
                }
                None
            }
        }
    }

    /// Forgets the pages of a range `(start, end)`.
    pub fn forget(&mut self, (start, end): (u64, u64)) {
        let (first, behind, before) = (start / PAGE, end / PAGE, self.pages.len());
        // To look at all takes as long as there is room, however few there are.
        if behind.saturating_sub(first) <= self.pages.capacity() as u64 {
            (first..behind).for_each(|number| drop(self.pages.remove(&number)));
        } else {
            self.pages.retain(|number, _| !(first..behind).contains(number));
        }
        self.room.give_back(before - self.pages.len());
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.room.give_back(self.pages.len());
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
        let mut blocks = Blocks::new(3, Room::default());
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
            let mut blocks = Blocks::new(3, Room::default());
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
    fn no_more_pages_are_known_than_there_is_room_for_in_all_tables() {
        let room = Room(Arc::new(AtomicUsize::new(3)));
        let [mut one, mut other] = [3, 4].map(|seed| Blocks::new(seed, room.clone()));
        let page = [7u8; PAGE as usize];
        let learns = |blocks: &mut Blocks, addr| {
            blocks.changed(addr, &page, true);
            blocks.changed(addr, &page, true).is_some()
        };
        assert!(learns(&mut one, 0) && learns(&mut one, PAGE) && learns(&mut other, 0));
        assert!(!learns(&mut one, 2 * PAGE) && !learns(&mut other, PAGE));
        assert_eq!(
            (one.known((0, 9 * PAGE)), one.known((PAGE, 2 * PAGE)), other.known((PAGE, 9 * PAGE))),
            (2, 1, 0)
        );
        one.forget((0, PAGE));
        assert!(learns(&mut other, PAGE) && !learns(&mut one, 0));
        drop(other);
        assert!(learns(&mut one, 0) && learns(&mut one, 2 * PAGE) && !learns(&mut one, 3 * PAGE));
    }
}
