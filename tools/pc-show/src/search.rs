//! `--search`, `--search-text`: where bytes occur in page data.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use memchr::memmem::Finder;
use pc_image::{Item, PAGE_SIZE, Pages, Patch, Patches, Record, SpaceId};

use crate::args::Needle;
use crate::model::Model;

/// Looks for bytes in page data as it goes by. A match inside a run of pages is found at once. One that reaches from
/// page to page is found whatever runs, records and rounds the two came in: of every page, how much of the needle's
/// front it ends with and of the needle's back it begins with is kept, which for nearly all pages is nothing.
///
/// Where only what has changed in a page was sent, the rest of it is needed: so pages are kept that were sent in any
/// round but the first (of which there are few; pc-dump patches no others).
#[derive(Debug)]
pub struct Search {
    finder: Finder<'static>,
    /// By space and page: how many bytes of the needle's front end the page.
    fronts: HashMap<(SpaceId, u64), Vec<u16>>,
    /// By space and page: how many bytes of the needle's front are missing before the page.
    backs: HashMap<(SpaceId, u64), Vec<u16>>,
    /// By space and page: its bytes.
    kept: BTreeMap<(SpaceId, u64), Vec<u8>>,
    /// Patched pages that were not kept, so that they could not be searched.
    pub missed: u64,
}

impl Search {
    pub fn new(needle: &Needle) -> Self {
        let finder = Finder::new(&needle.0).into_owned();
        Self { finder, fronts: HashMap::new(), backs: HashMap::new(), kept: BTreeMap::new(), missed: 0 }
    }

    /// Searches an item; prints each place with the round that completed it.
    pub fn item(&mut self, item: &Item, model: &Model, out: &mut impl Write) -> io::Result<()> {
        let round = model.rounds.last().map_or(0, |round| round.number);
        let found = match item {
            Item::Pages(pages) => {
                self.keep_pages(pages, round > 0);
                self.pages(pages)
            }
            Item::Patches(patches) => self.patches(patches),
            Item::Record(record) => {
                match &**record {
                    Record::ZeroPages(zero) => self.forget(zero.space, &zero.ranges),
                    Record::Zap(zap) => self.forget(zap.space, &zap.ranges),
                    Record::MapChange(change) => self.forget(change.space, &change.unmap),
                    _ => {}
                }
                return Ok(());
            }
        };
        found
            .iter()
            .try_for_each(|(space, addr)| writeln!(out, "space {} {addr:#014x} round {round}", space.0))
    }

    /// Keeps pages, or only lets go what they replace.
    fn keep_pages(&mut self, pages: &Pages, keep: bool) {
        if !keep && self.kept.is_empty() {
            return;
        }
        let page = PAGE_SIZE as usize;
        let addrs = pages.runs.iter().flat_map(|run| (run.addr..).step_by(page).take(run.pages as usize));
        for (addr, bytes) in addrs.zip(pages.data().chunks_exact(page)) {
            match keep {
                true => drop(self.kept.insert((pages.space, addr), bytes.to_vec())),
                false => drop(self.kept.remove(&(pages.space, addr))),
            }
        }
    }

    /// Matches that patches have completed.
    fn patches(&mut self, patches: &Patches) -> Vec<(SpaceId, u64)> {
        let all: Vec<(Patch, &[u8])> = patches.iter().collect();
        let pages = all.chunk_by(|a, b| a.0.page() == b.0.page());
        pages.flat_map(|of_page| self.patch(patches.space, of_page)).collect()
    }

    /// The same for patches of one page.
    fn patch(&mut self, space: SpaceId, patches: &[(Patch, &[u8])]) -> Vec<(SpaceId, u64)> {
        let addr = patches[0].0.page();
        let Some(mut page) = self.kept.remove(&(space, addr)) else {
            self.missed += 1;
            return Vec::new();
        };
        for (patch, bytes) in patches {
            let at = (patch.addr - addr) as usize;
            page[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.learn(space, addr, &page);
        let mut found = self.border(space, addr);
        found.extend(self.finder.find_iter(&page).map(|at| (space, addr + at as u64)));
        found.extend(self.border(space, addr + PAGE_SIZE));
        self.kept.insert((space, addr), page);
        let len = self.finder.needle().len() as u64;
        let is_in = |patch: &Patch, at: u64| patch.addr < at + len && at < patch.addr + u64::from(patch.len);
        found.retain(|(_, at)| patches.iter().any(|(patch, _)| is_in(patch, *at)));
        found
    }

    fn pages(&mut self, pages: &Pages) -> Vec<(SpaceId, u64)> {
        let mut found = Vec::new();
        let mut data = pages.data();
        for run in &pages.runs {
            let (bytes, rest) = data.split_at(((run.pages * PAGE_SIZE) as usize).min(data.len()));
            data = rest;
            let end = run.addr + bytes.len() as u64;
            self.learn(pages.space, run.addr, bytes);
            found.extend(self.border(pages.space, run.addr));
            found.extend(self.finder.find_iter(bytes).map(|at| (pages.space, run.addr + at as u64)));
            found.extend(self.border(pages.space, end));
        }
        found
    }

    /// Takes note of the edges of each page of a run.
    fn learn(&mut self, space: SpaceId, addr: u64, bytes: &[u8]) {
        let needle = self.finder.needle();
        for (page, addr) in bytes.chunks(PAGE_SIZE as usize).zip((addr..).step_by(PAGE_SIZE as usize)) {
            let cuts = 1..needle.len() as u16;
            let fronts = cuts.clone().filter(|cut| page.ends_with(&needle[..usize::from(*cut)]));
            keep(&mut self.fronts, (space, addr), fronts.collect());
            let backs = cuts.filter(|cut| page.starts_with(&needle[usize::from(*cut)..]));
            keep(&mut self.backs, (space, addr), backs.collect());
        }
    }

    /// Matches across the border at `addr`.
    fn border(&self, space: SpaceId, addr: u64) -> Vec<(SpaceId, u64)> {
        let before = addr.checked_sub(PAGE_SIZE).and_then(|page| self.fronts.get(&(space, page)));
        let (Some(fronts), Some(backs)) = (before, self.backs.get(&(space, addr))) else { return Vec::new() };
        let both = fronts.iter().rev().filter(|cut| backs.contains(cut));
        both.map(|cut| (space, addr - u64::from(*cut))).collect()
    }

    /// Pages that hold nothing any more.
    fn forget(&mut self, space: SpaceId, ranges: &[(u64, u64)]) {
        let gone = |at: &(SpaceId, u64)| {
            let behind = ranges.partition_point(|range| range.0 <= at.1);
            at.0 == space && behind > 0 && at.1 < ranges[behind - 1].1
        };
        self.fronts.retain(|at, _| !gone(at));
        self.backs.retain(|at, _| !gone(at));
        for (start, end) in ranges.iter().filter(|(start, end)| start < end) {
            let hit = self.kept.range((space, *start)..(space, *end)).map(|(at, _)| *at);
            hit.collect::<Vec<_>>().iter().for_each(|at| drop(self.kept.remove(at)));
        }
    }
}

fn keep(edges: &mut HashMap<(SpaceId, u64), Vec<u16>>, page: (SpaceId, u64), cuts: Vec<u16>) {
    if cuts.is_empty() {
        edges.remove(&page);
    } else {
        edges.insert(page, cuts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pc_image::{PageRun, Zap};

    const SPACE: SpaceId = SpaceId(0);

    fn pages(addr: u64, data: &[u8]) -> Item {
        let runs = vec![PageRun { addr, pages: data.len() as u64 / PAGE_SIZE }];
        Item::Pages(Pages { space: SPACE, runs, payload: data.to_vec(), data_offset: 0 })
    }

    fn ending(text: &[u8]) -> Vec<u8> {
        [vec![0; 4096 - text.len()], text.to_vec()].concat()
    }

    fn beginning(text: &[u8]) -> Vec<u8> {
        [text.to_vec(), vec![0; 4096 - text.len()]].concat()
    }

    fn begin(number: u32) -> pc_image::RoundBegin {
        let clocks = pc_image::Clocks {
            realtime: 0,
            monotonic: 0,
            boottime: 0,
            monotonic_offset: 0,
            boottime_offset: 0,
        };
        pc_image::RoundBegin { number, last: false, clocks }
    }

    fn search(text: &str, items: &[Item]) -> String {
        search_in(&mut Model::default(), text, items).1
    }

    fn search_in(model: &mut Model, text: &str, items: &[Item]) -> (Search, String) {
        let mut search = Search::new(&Needle(text.as_bytes().to_vec()));
        let mut out = Vec::new();
        items.iter().for_each(|item| search.item(item, model, &mut out).unwrap());
        (search, String::from_utf8(out).unwrap())
    }

    fn patches(patches: &[(u64, &[u8])]) -> Item {
        let payload = patches.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let patches = patches.iter().map(|(addr, bytes)| Patch { addr: *addr, len: bytes.len() as u16 });
        Item::Patches(Patches { space: SPACE, patches: patches.collect(), payload, data_offset: 0 })
    }

    #[test]
    fn a_text_that_a_patch_completes_is_found_and_what_it_leaves_is_not_told_again() {
        let mut model = Model::default();
        model.item(Item::Record(Box::new(Record::RoundBegin(begin(1)))));
        let items = [
            pages(0x1000, &[beginning(b"nXXdle needle"), beginning(b"le")].concat()),
            patches(&[(0x1001, b"ee"), (0x1ffc, b"need"), (0x2f00, b"needle")]),
            patches(&[(0x1100, b"x")]),
        ];
        let (search, found) = search_in(&mut model, "needle", &items);
        let at = |addr: u64| format!("space 0 {addr:#014x} round 1\n");
        assert_eq!(found, [at(0x1007), at(0x1000), at(0x1ffc), at(0x2f00)].concat());
        assert_eq!(search.missed, 0);
        let (search, found) = search_in(&mut Model::default(), "needle", &items);
        assert_eq!((search.missed, found), (3, at(0x1007).replace("round 1", "round 0")));
    }

    #[test]
    fn a_page_that_came_anew_in_the_first_round_of_another_segment_is_not_the_one_kept_before() {
        let mut model = Model::default();
        let mut search = Search::new(&Needle(b"needle".to_vec()));
        let mut out = Vec::new();
        let mut round = |number, items: &[Item]| {
            model.item(Item::Record(Box::new(Record::RoundBegin(begin(number)))));
            items.iter().for_each(|item| search.item(item, &model, &mut out).unwrap());
        };
        round(1, &[pages(0x1000, &beginning(b"need"))]);
        round(0, &[pages(0x1000, &beginning(b"work"))]);
        round(1, &[patches(&[(0x1004, b"le")])]);
        assert_eq!((search.missed, String::from_utf8(out).unwrap()), (1, String::new()));
    }

    #[test]
    fn a_text_across_the_border_of_two_pages_is_found_once_however_they_came() {
        let (first, second) = (ending(b"needle"), beginning(b"work"));
        let found = "space 0 0x000000001ffa round 0\n";
        let both = [first.clone(), second.clone()].concat();
        assert_eq!(search("needlework", &[pages(0x1000, &both)]), found);
        let (first, second) = (pages(0x1000, &first), pages(0x2000, &second));
        assert_eq!(search("needlework", &[first.clone(), second.clone()]), found);
        assert_eq!(search("needlework", &[second.clone(), first.clone()]), found);
        let between = pages(0x9000, &[1; 8192]);
        assert_eq!(search("needlework", &[first, between, second]), found);
    }

    #[test]
    fn a_page_sent_again_in_the_middle_of_a_run_is_joined_with_its_old_neighbours() {
        let run = [ending(b"nee"), beginning(b"xxx"), beginning(b"y")].concat();
        let again = pages(0x2000, &beginning(b"dle"));
        assert_eq!(
            search("needle", &[pages(0x1000, &run), again.clone()]),
            "space 0 0x000000001ffd round 0\n"
        );
        let zap = Item::Record(Box::new(Record::Zap(Zap { space: SPACE, ranges: vec![(0x1000, 0x2000)] })));
        assert_eq!(search("needle", &[pages(0x1000, &run), zap, again]), "");
    }

    #[test]
    fn the_end_of_a_page_may_fit_in_two_ways() {
        let found = search("abab", &[pages(0x1000, &ending(b"abab")), pages(0x2000, &beginning(b"abab"))]);
        let at = |addr: u64| format!("space 0 {addr:#014x} round 0\n");
        assert_eq!(found, [at(0x1ffc), at(0x1ffe), at(0x2000)].concat());
    }
}
