//! What was sent for each page, as ranges: for the picture of the address spaces.

use std::collections::BTreeMap;

use pc_image::{Item, PAGE_SIZE, Record, SpaceId};

/// What became of a page. In the order in which one hides another where both fall on one dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// As zeroes.
    Zero,
    /// With its bytes, once.
    Once,
    /// With its bytes, more than once, or with those that had changed.
    Again,
}

/// By space: start -> end and what was sent, merged.
#[derive(Debug, Default)]
pub struct Touched(BTreeMap<SpaceId, BTreeMap<u64, (u64, Sent)>>);

impl Touched {
    /// Takes note of an item.
    pub fn item(&mut self, item: &Item) {
        match item {
            Item::Pages(pages) => {
                for run in &pages.runs {
                    let end = run.addr + run.pages * PAGE_SIZE;
                    self.update(pages.space, run.addr, end, |before| match before {
                        None | Some(Sent::Zero) => Some(Sent::Once),
                        Some(Sent::Once | Sent::Again) => Some(Sent::Again),
                    });
                }
            }
            Item::Patches(patches) => self.set(patches.space, &patches.pages(), Some(Sent::Again)),
            Item::Record(record) => match &**record {
                Record::ZeroPages(zero) => self.set(zero.space, &zero.ranges, Some(Sent::Zero)),
                Record::Zap(zap) => self.set(zap.space, &zap.ranges, None),
                Record::MapChange(change) => self.set(change.space, &change.unmap, None),
                Record::SpaceGone(id) => drop(self.0.remove(id)),
                _ => {}
            },
        }
    }

    /// The ranges of a space that touch `start..end`.
    pub fn within(
        &self,
        space: SpaceId,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, u64, Sent)> + '_ {
        let ranges = self.0.get(&space);
        let first = ranges.and_then(|all| all.range(..=start).next_back()).map_or(start, |(at, _)| *at);
        let all = ranges.into_iter().flat_map(move |all| all.range(first..end.max(first)));
        all.map(|(from, (to, sent))| (*from, *to, *sent)).filter(move |range| range.1 > start)
    }

    fn set(&mut self, space: SpaceId, ranges: &[(u64, u64)], sent: Option<Sent>) {
        for (start, end) in ranges {
            self.update(space, *start, *end, |_| sent);
        }
    }

    fn update(&mut self, space: SpaceId, start: u64, end: u64, next: impl Fn(Option<Sent>) -> Option<Sent>) {
        let known = self.0.entry(space).or_default();
        let mut at = start;
        for (from, to, sent) in cut(known, start, end) {
            put(known, at, from, next(None));
            put(known, from, to, next(Some(sent)));
            at = to;
        }
        put(known, at, end, next(None));
    }
}

/// Takes a range out, and gives what was in it.
fn cut(known: &mut BTreeMap<u64, (u64, Sent)>, start: u64, end: u64) -> Vec<(u64, u64, Sent)> {
    let mut out = Vec::new();
    while let Some((&from, &(to, sent))) = known.range(..end).next_back().filter(|(_, (to, _))| *to > start) {
        known.remove(&from);
        if from < start {
            known.insert(from, (start, sent));
        }
        if to > end {
            known.insert(end, (to, sent));
        }
        out.push((from.max(start), to.min(end), sent));
    }
    out.reverse();
    out
}

/// Puts a range in that holds nothing yet, joined with the one before where they are alike.
fn put(known: &mut BTreeMap<u64, (u64, Sent)>, start: u64, end: u64, sent: Option<Sent>) {
    let Some(sent) = sent.filter(|_| start < end) else { return };
    if let Some((_, (to, before))) = known.range_mut(..start).next_back()
        && *to == start
        && *before == sent
    {
        *to = end;
        return;
    }
    known.insert(start, (end, sent));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_split_and_joined_as_pages_come_again() {
        let mut touched = Touched::default();
        let space = SpaceId(3);
        let again = |before: Option<Sent>| Some(before.map_or(Sent::Once, |_| Sent::Again));
        touched.update(space, 0x1000, 0x9000, again);
        touched.update(space, 0x3000, 0x4000, again);
        touched.update(space, 0x4000, 0x5000, again);
        touched.set(space, &[(0x8000, 0xb000)], Some(Sent::Zero));
        touched.set(space, &[(0x1000, 0x2000)], None);
        let all: Vec<_> = touched.within(space, 0, u64::MAX).collect();
        assert_eq!(
            all,
            [
                (0x2000, 0x3000, Sent::Once),
                (0x3000, 0x5000, Sent::Again),
                (0x5000, 0x8000, Sent::Once),
                (0x8000, 0xb000, Sent::Zero)
            ]
        );
        let part: Vec<_> = touched.within(space, 0x4000, 0x5000).collect();
        assert_eq!(part, [(0x3000, 0x5000, Sent::Again)]);
    }
}
