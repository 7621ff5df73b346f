//! Tracking by comparing hashes of pages.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::blocks::{Blocks, Room};

/// Pages that a chunk of the table holds.
const CHUNK: u64 = 512;
const PAGE: u64 = 4096;

/// Hashes of pages as they were last sent: 16 bytes a page, and 1 KiB more for those of which it is asked what part of them
/// has changed. Seeded afresh for each use, so that nobody can prepare pages that collide.
#[derive(Debug)]
pub struct Hashes {
    seed: u64,
    blocks: Blocks,
    /// By chunk number; 0 = never sent (a hash of 0 is stored as 1).
    chunks: HashMap<u64, Box<[u128; CHUNK as usize]>>,
}

impl Hashes {
    /// An empty table; `seed` should be random. `room` is shared with all tables of the process.
    pub fn new(seed: u64, room: &Room) -> Self {
        Self { seed, blocks: Blocks::new(seed, room.clone()), chunks: HashMap::new() }
    }

    /// Takes note of a page that is about to be sent, or was just read: whether it differs from what was noted before
    /// (or was never noted).
    pub fn changed(&mut self, addr: u64, page: &[u8]) -> bool {
        let hash = xxh3_128_with_seed(page, self.seed).max(1);
        let number = addr / PAGE;
        let chunk = self.chunks.entry(number / CHUNK).or_insert_with(|| Box::new([0; CHUNK as usize]));
        let slot = &mut chunk[(number % CHUNK) as usize];
        std::mem::replace(slot, hash) != hash
    }

    /// The blocks of [`crate::BLOCK`] bytes in which a page that is about to be sent differs from what it was when it was
    /// last learned, the first one the lowest bit; `None` if nothing is known of it. With `learn` its blocks are known as they
    /// are now from here on, if there is room for them. A page must not be sent without being learned and then be asked for.
    pub fn changed_blocks(&mut self, addr: u64, page: &[u8], learn: bool) -> Option<u64> {
        self.blocks.changed(addr, page, learn)
    }

    /// Of how many pages of a range the blocks are known.
    pub fn known_pages(&self, range: (u64, u64)) -> u64 {
        self.blocks.known(range)
    }

    /// Forgets what the blocks of the pages of a range were: the destination came by them in another way.
    pub fn forget_blocks(&mut self, range: (u64, u64)) {
        self.blocks.forget(range);
    }

    /// Forgets the pages of a range `(start, end)`: they will count as changed.
    pub fn forget(&mut self, (start, end): (u64, u64)) {
        self.blocks.forget((start, end));
        let mut number = start / PAGE;
        while number < end / PAGE {
            let next = (number / CHUNK + 1) * CHUNK;
            if number.is_multiple_of(CHUNK) && next <= end / PAGE {
                self.chunks.remove(&(number / CHUNK));
            } else if let Some(chunk) = self.chunks.get_mut(&(number / CHUNK)) {
                let last = next.min(end / PAGE);
                chunk[(number % CHUNK) as usize..=((last - 1) % CHUNK) as usize].fill(0);
            }
            number = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_as_changed_once_until_it_changes_again() {
        let mut hashes = Hashes::new(7, &Room::default());
        let mut page = vec![0u8; 4096];
        assert!(hashes.changed(0x5000, &page));
        assert!(!hashes.changed(0x5000, &page));
        page[4095] = 1;
        assert!(hashes.changed(0x5000, &page));
        assert!(!hashes.changed(0x5000, &page));
        assert!(hashes.changed(0x6000, &page), "another page of the same content was not sent yet");
    }

    #[test]
    fn forgotten_pages_count_as_changed_and_their_neighbours_do_not() {
        let mut hashes = Hashes::new(7, &Room::default());
        let page = [3u8; 4096];
        let pages: Vec<u64> = (500..1600).map(|n| n * PAGE).collect();
        assert!(pages.iter().all(|&p| hashes.changed(p, &page)));
        hashes.forget((510 * PAGE, 1530 * PAGE));
        let again: Vec<u64> = pages.iter().copied().filter(|&p| hashes.changed(p, &page)).collect();
        assert_eq!(again, (510..1530).map(|n| n * PAGE).collect::<Vec<_>>());
    }
}
