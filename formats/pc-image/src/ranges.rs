//! Sets of addresses.

use std::collections::BTreeMap;

/// A set of addresses (of pages that were sent, of memory that is tracked ...) as merged ranges `(start, end)`.
#[derive(Debug, Clone, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((s, e)) = self.0.range(..=start).next_back().map(|(s, e)| (*s, *e))
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        let inside: Vec<u64> = self.0.range(start..=end).map(|(s, _)| *s).collect();
        for s in inside {
            end = end.max(self.0.remove(&s).unwrap_or(end));
        }
        self.0.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, start: u64, end: u64) {
        let first = self.0.range(..=start).next_back().map_or(start, |(s, _)| *s);
        let hit: Vec<(u64, u64)> = self.0.range(first..end).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in hit.into_iter().filter(|(_, e)| *e > start) {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, start);
            }
            if e > end {
                self.0.insert(end, e);
            }
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of a range is in the set.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.0.range(..end).next_back().is_some_and(|(_, e)| *e > start)
    }

    /// Whether all of a range is in the set.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        self.0.range(..=start).next_back().is_some_and(|(_, e)| *e >= end)
    }

    /// What of a range is in the set, ascending.
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.0.range(..=start).next_back().map_or(start, |(s, _)| *s);
        let hit = self.0.range(first..end).map(|(s, e)| ((*s).max(start), (*e).min(end)));
        hit.filter(|(s, e)| s < e).collect()
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(start, end)| (*start, *end))
    }

    /// What is in the set and not among `content` (ascending, not overlapping), and takes it out: pages that were sent
    /// and are no more, say.
    pub fn take_missing(&mut self, content: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut content = content.peekable();
        for (&start, &end) in &self.0 {
            let mut at = start;
            while let Some(&(s, e)) = content.peek() {
                if e <= at {
                    content.next();
                    continue;
                }
                if s >= end {
                    break;
                }
                if at < s {
                    missing.push((at, s));
                }
                at = e;
                if e >= end {
                    break; // it may reach into the next range too
                }
                content.next();
            }
            if at < end {
                missing.push((at, end));
            }
        }
        for (start, end) in &missing {
            self.remove(*start, *end);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> Ranges {
        let mut sent = Ranges::default();
        ranges.iter().for_each(|(s, e)| sent.insert(*s, *e));
        sent
    }

    fn ranges(sent: &Ranges) -> Vec<(u64, u64)> {
        sent.ranges().collect()
    }

    #[test]
    fn ranges_merge_where_they_touch_or_overlap() {
        assert_eq!(ranges(&of(&[(1, 3), (5, 7), (3, 5)])), [(1, 7)]);
        assert_eq!(ranges(&of(&[(4, 6), (1, 9), (12, 13)])), [(1, 9), (12, 13)]);
        assert_eq!(ranges(&of(&[(1, 9), (4, 6)])), [(1, 9)]);
    }

    #[test]
    fn a_range_is_in_the_set_if_all_of_it_is() {
        let set = of(&[(2, 4), (6, 9)]);
        assert!(set.contains(2, 4) && set.contains(7, 8) && set.contains(8, 9));
        assert!(!set.contains(1, 3) && !set.contains(3, 7) && !set.contains(5, 6) && !set.contains(9, 10));
    }

    #[test]
    fn removing_splits() {
        let mut set = of(&[(1, 9), (12, 20)]);
        set.remove(3, 14);
        assert_eq!(ranges(&set), [(1, 3), (14, 20)]);
        set.remove(0, 100);
        assert!(ranges(&set).is_empty());
    }

    /// Against the same by single addresses.
    #[test]
    fn what_is_missing_is_found_as_if_page_by_page() {
        let mut seed = 1u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..2000 {
            let mut bits = |n: u64| -> Vec<bool> { (0..40).map(|_| random(n) == 0).collect() };
            let (sent, content) = (bits(2), bits(2));
            let runs = |bits: &[bool]| {
                let on = (0..40u64).filter(|i| bits[*i as usize]).map(|i| (i, i + 1));
                ranges(&of(&on.collect::<Vec<_>>()))
            };
            let mut set = of(&runs(&sent));
            let missing = set.take_missing(runs(&content).into_iter());
            let expected: Vec<bool> = sent.iter().zip(&content).map(|(s, c)| *s && !c).collect();
            assert_eq!(ranges(&of(&missing)), runs(&expected));
            let left: Vec<bool> = sent.iter().zip(&content).map(|(s, c)| *s && *c).collect();
            assert_eq!(ranges(&set), runs(&left));
        }
    }
}
