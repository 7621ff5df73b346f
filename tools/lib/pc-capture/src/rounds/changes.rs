//! How the mappings of now differ from those that the destination knows.

use pc_image::{Backing, MapChange, Ranges, SpaceId, Vma};

/// What must be said of the step from `old` to `new` mappings (each ascending). What is mapped in a `fresh` range was not
/// there before, whatever lay at its address: it replaces what the destination has.
pub(crate) fn diff(space: SpaceId, old: &[Vma], new: &[Vma], fresh: &Ranges) -> MapChange {
    let mut change = MapChange { space, unmap: Vec::new(), map: Vec::new(), modify: Vec::new() };
    let old = &replaced(old, fresh, &mut change.unmap);
    unmap_gone(old, new, &mut change.unmap);
    for vma in new {
        let mut at = vma.start;
        let from = old.partition_point(|o| o.end <= vma.start);
        for before in old[from..].iter().take_while(|o| o.start < vma.end) {
            let (start, end) = (before.start.max(vma.start), before.end.min(vma.end));
            if !same_content(before, vma) {
                change.unmap.push((start, end));
                continue; // mapped anew with what lies around it
            }
            map(vma, at, start, &mut change.map);
            at = end;
            if !same_attributes(before, vma) {
                change.modify.push(part(vma, start, end));
            }
        }
        map(vma, at, vma.end, &mut change.map);
    }
    change.unmap.sort_unstable();
    change
}

/// The old mappings without what lies in fresh ranges, which is to be unmapped.
fn replaced(old: &[Vma], fresh: &Ranges, unmap: &mut Vec<(u64, u64)>) -> Vec<Vma> {
    let mut left = Vec::with_capacity(old.len());
    for vma in old {
        let mut at = vma.start;
        for (start, end) in fresh.within(vma.start, vma.end) {
            map(vma, at, start, &mut left);
            unmap.push((start, end));
            at = end;
        }
        map(vma, at, vma.end, &mut left);
    }
    left
}

/// Whether there is nothing to be said.
pub(crate) fn is_empty(change: &MapChange) -> bool {
    change.unmap.is_empty() && change.map.is_empty() && change.modify.is_empty()
}

/// Parts of old mappings where nothing is mapped now.
fn unmap_gone(old: &[Vma], new: &[Vma], out: &mut Vec<(u64, u64)>) {
    for before in old {
        let mut at = before.start;
        let from = new.partition_point(|n| n.end <= before.start);
        for vma in new[from..].iter().take_while(|n| n.start < before.end) {
            if at < vma.start {
                out.push((at, vma.start));
            }
            at = at.max(vma.end);
        }
        if at < before.end {
            out.push((at, before.end));
        }
    }
}

fn map(vma: &Vma, start: u64, end: u64, out: &mut Vec<Vma>) {
    if start < end {
        out.push(part(vma, start, end));
    }
}

/// A part of a mapping as a mapping of its own.
fn part(vma: &Vma, start: u64, end: u64) -> Vma {
    let into = start - vma.start;
    let backing = match vma.backing.clone() {
        Backing::File { file, offset } => Backing::File { file, offset: offset + into },
        Backing::Shm { space, offset } => Backing::Shm { space, offset: offset + into },
        other => other,
    };
    Vma { start, end, backing, ..vma.clone() }
}

/// Whether two mappings show the same thing at the same addresses.
fn same_content(a: &Vma, b: &Vma) -> bool {
    let origin = |vma: &Vma, offset: u64| offset.wrapping_sub(vma.start);
    let shared = |vma: &Vma| vma.flags & pc_image::vma_flag::SHARED;
    shared(a) == shared(b)
        && match (&a.backing, &b.backing) {
            (Backing::File { file: f, offset: x }, Backing::File { file: g, offset: y }) => {
                f == g && origin(a, *x) == origin(b, *y)
            }
            (Backing::Shm { space: f, offset: x }, Backing::Shm { space: g, offset: y }) => {
                f == g && origin(a, *x) == origin(b, *y)
            }
            (x, y) => x == y,
        }
}

fn same_attributes(a: &Vma, b: &Vma) -> bool {
    a.prot == b.prot && a.flags == b.flags && a.pkey == b.pkey && a.name == b.name
}

#[cfg(test)]
mod tests {
    use super::*;
    use pc_image::{FileId, prot};

    fn anon(start: u64, end: u64) -> Vma {
        Vma { start, end, prot: prot::READ, flags: 0, pkey: 0, backing: Backing::Anonymous, name: None }
    }

    fn file(start: u64, end: u64, offset: u64) -> Vma {
        Vma { backing: Backing::File { file: FileId(1), offset }, ..anon(start, end) }
    }

    fn step(old: &[Vma], new: &[Vma]) -> MapChange {
        diff(SpaceId(0), old, new, &Ranges::default())
    }

    #[test]
    fn nothing_is_said_of_mappings_that_only_split_or_merged() {
        let change = step(&[anon(1, 5), anon(5, 9)], &[anon(1, 9)]);
        assert!(is_empty(&change), "{change:?}");
        let change = step(&[file(0, 9, 100)], &[file(0, 4, 100), file(4, 9, 104)]);
        assert!(is_empty(&change), "{change:?}");
    }

    #[test]
    fn growth_at_either_end_is_a_new_mapping_and_shrinking_is_an_unmapping() {
        let change = step(&[file(4, 8, 104)], &[file(2, 10, 102)]);
        assert_eq!(change.map, [file(2, 4, 102), file(8, 10, 108)]);
        let change = step(&[anon(2, 10)], &[anon(4, 6)]);
        assert_eq!(change.unmap, [(2, 4), (6, 10)]);
        assert!(change.map.is_empty() && change.modify.is_empty());
    }

    #[test]
    fn another_protection_in_the_middle_is_a_modification_of_that_part() {
        let middle = Vma { prot: prot::READ | prot::WRITE, ..anon(4, 6) };
        let change = step(&[anon(2, 10)], &[anon(2, 4), middle.clone(), anon(6, 10)]);
        assert_eq!(change.modify, [middle]);
        assert!(change.unmap.is_empty() && change.map.is_empty());
    }

    #[test]
    fn what_shows_something_else_is_unmapped_and_mapped_anew_as_a_whole() {
        let change = step(&[anon(2, 4), anon(4, 6)], &[file(2, 6, 0)]);
        assert_eq!(change.unmap, [(2, 4), (4, 6)]);
        assert_eq!(change.map, [file(2, 6, 0)]);
        let change = step(&[file(2, 6, 0)], &[file(2, 6, 1)]);
        assert_eq!((change.unmap, change.map), (vec![(2, 6)], vec![file(2, 6, 1)]));
    }

    #[test]
    fn what_is_fresh_replaces_what_was_there_and_nothing_else() {
        let mut fresh = Ranges::default();
        fresh.insert(2, 6);
        let change = diff(SpaceId(0), &[anon(0, 8)], &[anon(2, 6), anon(6, 8)], &fresh);
        assert_eq!(change.unmap, [(0, 2), (2, 6)]);
        assert_eq!(change.map, [anon(2, 6)]);
        // A heap that has grown is one mapping with what it grew from.
        let change = diff(SpaceId(0), &[anon(0, 2)], &[anon(0, 6)], &fresh);
        assert_eq!((change.unmap, change.map), (vec![], vec![anon(2, 6)]));
    }
}
