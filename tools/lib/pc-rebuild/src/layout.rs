//! Address space layouts: what is where in our own, and where a hole is free in two.

use std::fs;
use std::io;

/// First address after user space, as mmap(2) gives it without a hint above 47 bits.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Nothing of ours goes below: programs without position independence lie there, with their heap after them.
const LOWEST: u64 = 0x1_0000_0000;

/// Ranges `(start, end)`.
pub type Ranges = Vec<(u64, u64)>;

/// A line of /proc/PID/maps, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub name: String,
}

/// Our own mappings.
pub fn own_mappings() -> io::Result<Vec<Mapping>> {
    mappings("self")
}

/// The mappings of a process.
pub fn mappings_of(pid: i32) -> io::Result<Vec<Mapping>> {
    mappings(pid)
}

/// Paths need not be text, and do not matter here.
fn mappings(who: impl std::fmt::Display) -> io::Result<Vec<Mapping>> {
    let text = fs::read(format!("/proc/{who}/maps"))?;
    Ok(parse_maps(&String::from_utf8_lossy(&text)))
}

fn parse_maps(text: &str) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            Some(Mapping { start, end, name: words.nth(4).unwrap_or_default().to_owned() })
        })
        .collect()
}

/// An address from which `len` bytes are free in all of `taken`: in the middle of the largest hole, so that it stays
/// free while mappings come and go.
pub fn find_hole(taken: &[(u64, u64)], len: u64) -> Option<u64> {
    let mut all: Ranges = taken.to_vec();
    all.push((0, LOWEST));
    all.push((TASK_SIZE, u64::MAX));
    all.sort_unstable();
    let (mut best, mut free_from) = ((0, 0), 0);
    for (start, end) in all {
        if start > free_from && start - free_from > best.1 {
            best = (free_from, start - free_from);
        }
        free_from = free_from.max(end);
    }
    let (start, room) = best;
    (room >= len + 4096).then(|| (start + (room - len) / 2) & !0xfff)
}

/// Where the kernel's own mappings of a process lie: vDSO and its data, in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelMaps {
    /// `(name, start, end)`.
    pub parts: Vec<(String, u64, u64)>,
}

/// Names of the mappings that the kernel makes with every program.
pub const KERNEL_MAPS: [&str; 3] = ["[vdso]", "[vvar]", "[vvar_vclock]"];

impl KernelMaps {
    /// Of these mappings.
    pub fn of(maps: &[Mapping]) -> Self {
        let ours = maps.iter().filter(|m| KERNEL_MAPS.contains(&m.name.as_str()));
        Self { parts: ours.map(|m| (m.name.clone(), m.start, m.end)).collect() }
    }

    /// Bytes of one of them, 0 if there is none.
    pub fn len_of(&self, name: &str) -> u64 {
        self.find(name).map_or(0, |(start, end)| end - start)
    }

    /// Where one of them lies.
    pub fn find(&self, name: &str) -> Option<(u64, u64)> {
        self.parts.iter().find(|p| p.0 == name).map(|p| (p.1, p.2))
    }

    /// Bytes from the first to the end of the last.
    pub fn span(&self) -> u64 {
        let start = self.parts.iter().map(|p| p.1).min().unwrap_or(0);
        self.parts.iter().map(|p| p.2).max().unwrap_or(0) - start
    }

    /// The same, moved so that the first begins at `base`.
    pub fn moved_to(&self, base: u64) -> Self {
        let start = self.parts.iter().map(|p| p.1).min().unwrap_or(0);
        let moved = |a: u64| a - start + base;
        Self { parts: self.parts.iter().map(|p| (p.0.clone(), moved(p.1), moved(p.2))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_is_free_in_all_layouts_and_away_from_its_neighbours() {
        let taken = [(0x1000, 0x2000), (0x4000_0000_0000, 0x7fff_f000_0000), (0x2_0000_0000, 0x3_0000_0000)];
        let hole = find_hole(&taken, 1 << 20).unwrap();
        assert!(hole > 0x1000_0000_0000 && hole + (1 << 20) < 0x4000_0000_0000, "{hole:#x}");
        assert_eq!(hole & 0xfff, 0);
    }

    #[test]
    fn a_full_address_space_has_no_hole() {
        assert_eq!(find_hole(&[(0x1000, TASK_SIZE - 0x1000)], 1 << 20), None);
        assert_eq!(find_hole(&[(0, 1 << 46), (1 << 46, TASK_SIZE)], 4096), None);
    }

    #[test]
    fn overlapping_ranges_of_two_layouts_are_no_holes() {
        let hole = find_hole(&[(0, 0x7000_0000_0000), (0x1000, 0x5000), (0x7800_0000_0000, TASK_SIZE)], 4096);
        assert!(matches!(hole, Some(a) if a > 0x7000_0000_0000 && a < 0x7800_0000_0000));
    }

    #[test]
    fn kernel_maps_keep_their_order_when_they_move() {
        let text = "7f00-7f04 r--p 0 00:00 0 [vvar]\n7f04-7f06 r--p 0 00:00 0 [vvar_vclock]\n\
                    7f06-7f08 r-xp 0 00:00 0 [vdso]\n8000-9000 r--p 0 00:00 0 /x\n";
        let maps = KernelMaps::of(&parse_maps(text));
        assert_eq!((maps.span(), maps.len_of("[vvar_vclock]")), (8, 2));
        let moved = maps.moved_to(0x100);
        assert_eq!(moved.find("[vdso]"), Some((0x106, 0x108)));
        assert_eq!(moved.find("[vvar]"), Some((0x100, 0x104)));
    }
}
