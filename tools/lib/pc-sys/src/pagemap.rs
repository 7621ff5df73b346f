//! The `PAGEMAP_SCAN` ioctl of /proc/PID/pagemap (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst), and the file itself
//! where the kernel lacks that.

mod entries;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::check;

bitflags::bitflags! {
    /// Categories of pages, `PAGE_IS_*` of include/uapi/linux/fs.h.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct PageIs: u64 {
        /// Write-protect tracking is on for the page's mapping.
        const WPALLOWED = 1 << 0;
        /// Written since it was last write-protected.
        const WRITTEN = 1 << 1;
        /// Backed by a file or shared memory.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// Swapped out.
        const SWAPPED = 1 << 4;
        /// The zero page.
        const PFNZERO = 1 << 5;
        /// Part of a transparent or hugetlb huge page.
        const HUGE = 1 << 6;
        /// soft-dirty.
        const SOFT_DIRTY = 1 << 7;
        /// A guard page of `MADV_GUARD_INSTALL` (Linux 6.15).
        const GUARD = 1 << 8;
    }
}

bitflags::bitflags! {
    /// Flags of the scan, `PM_SCAN_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ScanFlags: u64 {
        /// Write-protect the pages that match.
        const WP_MATCHING = 1 << 0;
        /// Fail with `EPERM` at a page whose mapping is not tracked.
        const CHECK_WPASYNC = 1 << 1;
    }
}

/// `struct page_region`: a run of pages of the same categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// [`PageIs`] bits, of those asked for.
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<PmScanArg>() == 96);
const _: () = assert!(size_of::<PageRegion>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// What to look for: a page matches if it has all of `all` (but those in `inverted`, which it must lack) and, where
/// `any` is not empty, at least one of `any`.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Categories whose sense is turned round.
    pub inverted: PageIs,
    /// All of these.
    pub all: PageIs,
    /// At least one of these.
    pub any: PageIs,
    /// Which categories the answer reports.
    pub report: PageIs,
    /// Flags.
    pub flags: ScanFlags,
}

impl Query {
    /// Matches pages with any of `any`, and reports `report`.
    pub fn any_of(any: PageIs, report: PageIs) -> Self {
        Self { inverted: PageIs::empty(), all: PageIs::empty(), any, report, flags: ScanFlags::empty() }
    }

    /// Adds categories of which a page must have all.
    pub fn and_all(mut self, all: PageIs) -> Self {
        self.all |= all;
        self
    }

    /// Adds categories that a page must lack.
    pub fn without(mut self, none: PageIs) -> Self {
        self.inverted |= none;
        self.all |= none;
        self
    }

    /// Sets the scan's flags.
    pub fn flags(mut self, flags: ScanFlags) -> Self {
        self.flags = flags;
        self
    }
}

/// /proc/PID/pagemap, open for scans.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of process `pid`.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Scans `[start, end)` into `regions` (cleared first, grown as needed). Where the kernel lacks the ioctl, the entries
    /// of the file are read, which tell of no zero page, huge page or guard page; what only the ioctl can do is `ENOTTY`
    /// there (see [`Query`]: flags, and [`PageIs::WPALLOWED`] and [`PageIs::WRITTEN`]). With `CHECK_WPASYNC`, `EPERM` at the
    /// first mapping that is not tracked.
    pub fn scan(&self, start: u64, end: u64, query: Query, regions: &mut Vec<PageRegion>) -> io::Result<()> {
        match self.scan_by_ioctl(start, end, query, regions) {
            Err(err) if err.raw_os_error() == Some(libc::ENOTTY) && entries::can_tell(&query) => {
                regions.clear();
                entries::scan(&self.0, start, end, &query, regions)
            }
            done => done,
        }
    }

    fn scan_by_ioctl(
        &self,
        start: u64,
        end: u64,
        query: Query,
        regions: &mut Vec<PageRegion>,
    ) -> io::Result<()> {
        // Most mappings have few regions, and there may be many mappings.
        const FIRST: usize = 32;
        const BATCH: usize = 4096;
        regions.clear();
        let mut at = start;
        while at < end {
            let filled = regions.len();
            let room = if filled == 0 { FIRST } else { BATCH };
            regions.resize(filled + room, PageRegion::default());
            let out = &mut regions[filled..];
            let (count, walk_end) = match self.scan_again(at, end, query, out) {
                Ok(done) => done,
                Err(err) => {
                    regions.truncate(filled);
                    return Err(err);
                }
            };
            regions.truncate(filled + count);
            if walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = walk_end;
        }
        merge(regions);
        Ok(())
    }

    /// The same for several ranges (ascending, apart) at once, each but the first by a thread of its own: the kernel looks at
    /// some 150 million pages a second for each of them.
    pub fn scan_at_once(
        &self,
        ranges: &[(u64, u64)],
        query: Query,
        regions: &mut Vec<PageRegion>,
    ) -> io::Result<()> {
        let (first, others) = match ranges {
            [] => {
                regions.clear();
                return Ok(());
            }
            [(start, end)] => return self.scan(*start, *end, query, regions),
            [first, others @ ..] => (first, others),
        };
        std::thread::scope(|scope| {
            let scan = |(start, end): (u64, u64)| {
                let mut regions = Vec::new();
                self.scan(start, end, query, &mut regions).map(|()| regions)
            };
            let started: io::Result<Vec<_>> = others
                .iter()
                .map(|range| {
                    std::thread::Builder::new()
                        .name("pc-scan".into())
                        .spawn_scoped(scope, move || scan(*range))
                })
                .collect();
            let started = started?;
            self.scan(first.0, first.1, query, regions)?;
            for thread in started {
                let more = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                regions.extend(more);
            }
            merge(regions);
            Ok(())
        })
    }

    /// A target whose threads fault and fork is now and then answered for with `ESRCH` though it lives (seen on Linux
    /// 6.18, once in some thousand scans): one that has died is so every time.
    fn scan_again(
        &self,
        start: u64,
        end: u64,
        query: Query,
        out: &mut [PageRegion],
    ) -> io::Result<(usize, u64)> {
        const ATTEMPTS: usize = 20;
        for _ in 1..ATTEMPTS {
            match self.scan_once(start, end, query, out) {
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                done => return done,
            }
        }
        self.scan_once(start, end, query, out)
    }

    fn scan_once(
        &self,
        start: u64,
        end: u64,
        query: Query,
        out: &mut [PageRegion],
    ) -> io::Result<(usize, u64)> {
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: query.flags.bits(),
            start,
            end,
            vec: out.as_mut_ptr() as u64,
            vec_len: out.len() as u64,
            category_inverted: query.inverted.bits(),
            category_mask: query.all.bits(),
            category_anyof_mask: query.any.bits(),
            return_mask: query.report.bits(),
            ..PmScanArg::default()
        };
        // SAFETY: `arg` is the structure the ioctl expects, and its vector is `out`, writable for `vec_len` entries.
        let n = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &mut arg) };
        let n = check(n.into())?;
        Ok((n as usize, arg.walk_end))
    }
}

/// Puts regions in order: the kernel gives them apart where a batch ended between them, and reports some pages twice (when
/// it has to begin a page table anew, and after a batch that was full). Such a page has all categories that were reported of
/// it: that it was written may have been reported the first time only, as the report can clear it.
fn merge(regions: &mut Vec<PageRegion>) {
    let overlaps = regions.windows(2).any(|pair| pair[1].start < pair[0].end);
    if overlaps {
        *regions = flatten(regions);
    }
    regions.dedup_by(|next, last| {
        let joined = last.end == next.start && last.categories == next.categories;
        if joined {
            last.end = next.end;
        }
        joined
    });
}

/// Overlapping regions as ones that do not, ascending.
fn flatten(regions: &[PageRegion]) -> Vec<PageRegion> {
    let mut borders: Vec<u64> = regions.iter().flat_map(|r| [r.start, r.end]).collect();
    borders.sort_unstable();
    borders.dedup();
    let mut cells: Vec<Option<u64>> = vec![None; borders.len()];
    for region in regions {
        let from = borders.partition_point(|border| *border < region.start);
        let to = borders.partition_point(|border| *border < region.end);
        for cell in &mut cells[from..to] {
            *cell = Some(cell.unwrap_or(0) | region.categories);
        }
    }
    let told = borders.windows(2).zip(cells).filter_map(|(border, categories)| {
        Some(PageRegion { start: border[0], end: border[1], categories: categories? })
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Touches pages of a new mapping and gives the regions that a scan reports, in pages.
    fn scanned(pages: usize, touched: impl Iterator<Item = usize>) -> Vec<(u64, u64)> {
        let len = pages * 4096;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(addr, libc::MAP_FAILED);
        // SAFETY: forbids huge pages in our own mapping, so that pages are counted singly.
        unsafe { libc::madvise(addr, len, libc::MADV_NOHUGEPAGE) };
        let base = addr as u64;
        for page in touched {
            // SAFETY: inside the mapping made above.
            unsafe { addr.cast::<u8>().add(page * 4096).write_volatile(1) };
        }
        let map = Pagemap::open(std::process::id() as i32).unwrap();
        let mut regions = Vec::new();
        let query = Query::any_of(PageIs::PRESENT | PageIs::SWAPPED, PageIs::empty());
        map.scan(base, base + len as u64, query, &mut regions).unwrap();
        let got = regions.iter().map(|r| ((r.start - base) / 4096, (r.end - base) / 4096)).collect();
        // SAFETY: our own mapping, no longer used.
        unsafe { libc::munmap(addr, len) };
        got
    }

    #[test]
    fn scan_finds_exactly_the_touched_pages() {
        assert_eq!(scanned(64, [1, 2, 10].into_iter()), [(1, 3), (10, 11)]);
    }

    #[test]
    fn no_page_is_told_twice_where_regions_fill_a_batch() {
        let pages = 16384;
        let want: Vec<(u64, u64)> = (0..pages as u64).step_by(2).map(|page| (page, page + 1)).collect();
        assert_eq!(scanned(pages, (0..pages).step_by(2)), want);
    }

    #[test]
    fn a_page_told_twice_has_all_categories_told() {
        let region = |start, end, categories| PageRegion { start, end, categories };
        let mut regions = vec![region(0, 8, 1), region(4, 6, 2), region(6, 12, 0), region(20, 24, 1)];
        merge(&mut regions);
        let want = [region(0, 4, 1), region(4, 6, 3), region(6, 8, 1), region(8, 12, 0), region(20, 24, 1)];
        assert_eq!(regions, want);
    }
}
