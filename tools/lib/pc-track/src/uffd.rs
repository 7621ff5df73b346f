//! userfaultfd(2) with `UFFD_FEATURE_WP_ASYNC`, and PAGEMAP_SCAN.

use pc_sys::pagemap::{PageIs, PageRegion, Pagemap, Query, ScanFlags};
use pc_sys::{pidfd, uffd};
use pc_trace::{Call, Remote};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use crate::{Found, Range, Run, TrackError, Tracker, What, kernel};

/// Unregistering holds the address space's lock: this many bytes at a time.
const PIECE: u64 = 16 << 20;
/// A survey of less than twice this is not worth a second thread: it takes half a millisecond.
const PART: u64 = 256 << 20;
/// The most threads for one.
const MOST_PARTS: u64 = 8;

/// The target's userfaultfd, taken over. Tracking ends when it is dropped; drop it only after [`Tracker::untrack`] of
/// large ranges, or after the target's end, for it holds the target's lock for all of them at once.
#[derive(Debug)]
pub struct Uffd {
    fd: uffd::Uffd,
    pagemap: Pagemap,
    regions: Vec<PageRegion>,
}

impl Uffd {
    /// Makes the target create a userfaultfd, takes it over and closes the target's copy.
    pub fn begin(remote: &mut Remote<'_>) -> Result<Self, TrackError> {
        let pid = remote.tracees().pid();
        let pidfd = pidfd::pidfd_open(pid).map_err(kernel("taking the userfaultfd"))?;
        let call = Call::new(libc::SYS_userfaultfd, [uffd::OPEN_FLAGS]);
        let taken = match remote.with_descriptor(call, |fd| pidfd::pidfd_getfd(pidfd.as_fd(), fd)) {
            Err(pc_trace::TraceError::Remote { errno: libc::ENOSYS, .. }) => {
                return Err(TrackError::Unsupported("userfaultfd"));
            }
            taken => taken?.map_err(kernel("taking the userfaultfd"))?,
        };
        let fd = uffd::Uffd::new(taken).map_err(|err| match err.raw_os_error() {
            Some(libc::EINVAL) => {
                TrackError::Unsupported("userfaultfd (asynchronous write-protection, Linux 6.7)")
            }
            _ => TrackError::Kernel { what: "setting up the userfaultfd", source: err },
        })?;
        let pagemap = Pagemap::open(pid).map_err(kernel("opening the page map"))?;
        // Both came with the same kernel, but only one may be let through to us.
        let (first, mut regions) = ((0, 4096), Vec::new());
        let written = Query::any_of(PageIs::PRESENT, PageIs::WRITTEN);
        match pagemap.scan(first.0, first.1, written, &mut regions) {
            Err(err) if err.raw_os_error() == Some(libc::ENOTTY) => {
                Err(TrackError::Unsupported("PAGEMAP_SCAN (Linux 6.7)"))
            }
            done => done.map(|()| Self { fd, pagemap, regions }).map_err(kernel("looking at the page map")),
        }
    }
}

impl Uffd {
    /// Scans ranges into `self.regions`; without guard pages on a kernel before 6.15, which knows none.
    fn query(&mut self, ranges: &[Range], what: What, flags: ScanFlags) -> std::io::Result<()> {
        match self.query_with(ranges, what, PageIs::GUARD, flags) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                self.query_with(ranges, what, PageIs::empty(), flags)
            }
            done => done,
        }
    }

    fn query_with(
        &mut self,
        ranges: &[Range],
        what: What,
        guard: PageIs,
        flags: ScanFlags,
    ) -> std::io::Result<()> {
        // The any-of mask keeps the walk from building page tables where nothing ever was. The kernel write-protects
        // only what is written, so matching the rest as well costs nothing.
        let content = PageIs::PRESENT | PageIs::SWAPPED | guard;
        let report = PageIs::WRITTEN | PageIs::WPALLOWED | guard | doubtful(what);
        let query = Query::any_of(content, report).without(hidden(what)).flags(flags);
        self.pagemap.scan_at_once(ranges, query, &mut self.regions)
    }

    fn tell(&self, what: What, out: &mut Vec<Run>) {
        let written = PageIs::WRITTEN | doubtful(what);
        out.extend(self.regions.iter().map(|region| Run {
            start: region.start,
            end: region.end,
            written: region.categories & written.bits() != 0,
            guard: region.categories & PageIs::GUARD.bits() != 0,
            tracked: region.categories & PageIs::WPALLOWED.bits() != 0,
        }));
    }
}

impl Tracker for Uffd {
    fn name(&self) -> &'static str {
        "uffd"
    }

    fn needs_pause(&self) -> bool {
        false
    }

    fn tracks(&mut self, start: u64) -> Result<bool, TrackError> {
        const PAGE: u64 = 4096;
        let query = Query::any_of(PageIs::PRESENT, PageIs::empty()).flags(ScanFlags::CHECK_WPASYNC);
        match self.pagemap.scan(start, start + PAGE, query, &mut self.regions) {
            Ok(()) => Ok(true),
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => Ok(false),
            Err(err) => Err(TrackError::Kernel { what: "asking what is tracked", source: err }),
        }
    }

    fn track(&mut self, (start, end): Range) -> Result<bool, TrackError> {
        match self.fd.register(start, end) {
            Ok(()) => Ok(true),
            Err(err) => match err.raw_os_error() {
                // Another userfaultfd has it; a mapping of a kind that cannot be write-protected.
                Some(libc::EBUSY | libc::EPERM | libc::EINVAL) => Ok(false),
                _ => Err(TrackError::Kernel { what: "tracking a mapping", source: err }),
            },
        }
    }

    fn scan(
        &mut self,
        range: Range,
        what: What,
        clear: bool,
        out: &mut Vec<Run>,
    ) -> Result<Found, TrackError> {
        let flags =
            if clear { ScanFlags::CHECK_WPASYNC | ScanFlags::WP_MATCHING } else { ScanFlags::CHECK_WPASYNC };
        match self.query(&[range], what, flags) {
            Ok(()) => self.tell(what, out),
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => return Ok(Found::Lost),
            Err(err) => return Err(TrackError::Kernel { what: "scanning for written pages", source: err }),
        }
        Ok(Found::Tracked)
    }

    /// One scan for neighbours of one kind: to ask of each page whether it is a file's would take several times as long.
    /// Large ones are looked at in parts, each by a thread.
    fn survey(&mut self, mappings: &[(Range, What)], out: &mut Vec<Run>) -> Result<(), TrackError> {
        for alike in mappings.chunk_by(|a, b| a.1 == b.1) {
            let what = alike[0].1;
            self.query(&parts(alike, cpus()), what, ScanFlags::empty())
                .map_err(kernel("scanning for written pages"))?;
            self.tell(what, out);
        }
        Ok(())
    }

    fn clear_all(&mut self) -> Result<(), TrackError> {
        Ok(()) // each scan has cleared its range
    }

    fn untrack(&mut self, (start, end): Range) -> Result<(), TrackError> {
        let mut at = start;
        while at < end {
            let next = end.min(at + PIECE);
            match self.fd.unregister(at, next) {
                Ok(()) => {}
                // Unmapped meanwhile, or never registered; the target is gone.
                Err(err) if matches!(err.raw_os_error(), Some(libc::EINVAL | libc::ESRCH | libc::ENOMEM)) => {
                }
                Err(err) => return Err(TrackError::Kernel { what: "ending tracking", source: err }),
            }
            at = next;
        }
        Ok(())
    }
}

/// How many CPUs there are for us. Asked once, before the stop: it takes a look at files.
fn cpus() -> u64 {
    static CPUS: OnceLock<u64> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

/// All from the first to the last of some mappings in as many parts as are worth it, but no more than `most`, with about as
/// much of the mappings in each.
fn parts(mappings: &[(Range, What)], most: u64) -> Vec<Range> {
    /// What a page table spans: no two threads work on one.
    const TABLE: u64 = 2 << 20;
    let (Some(((first, _), _)), Some(((_, last), _))) = (mappings.first(), mappings.last()) else {
        return Vec::new();
    };
    let total: u64 = mappings.iter().map(|((start, end), _)| end - start).sum();
    let count = (total / PART).min(most).clamp(1, MOST_PARTS);
    let (mut borders, mut before) = (vec![*first], 0);
    for ((start, end), _) in mappings {
        // The next part begins after so much of the mappings.
        let next = |borders: &[u64]| total / count * borders.len() as u64;
        while (borders.len() as u64) < count && next(&borders) < before + (end - start) {
            let border = (start + next(&borders) - before) / TABLE * TABLE;
            borders.push(border.max(*start));
        }
        before += end - start;
    }
    borders.push(*last);
    borders.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Pages that may have changed though they do not count as written: where a page of a private file mapping was dropped
/// (`MADV_DONTNEED`), the kernel leaves a mark that it was write-protected, which looks like a page in swap, unwritten.
fn doubtful(what: What) -> PageIs {
    match what {
        What::Anonymous => PageIs::empty(),
        What::PrivateFile => PageIs::SWAPPED,
    }
}

/// Pages without content of their own.
fn hidden(what: What) -> PageIs {
    match what {
        What::Anonymous => PageIs::PFNZERO,
        What::PrivateFile => PageIs::PFNZERO | PageIs::FILE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_surveys_are_parted_so_that_each_thread_has_about_as_much() {
        const GIB: u64 = 1 << 30;
        let parts = |ranges: &[Range], most| {
            let mappings: Vec<_> = ranges.iter().map(|range| (*range, What::Anonymous)).collect();
            parts(&mappings, most)
        };
        assert_eq!(parts(&[(4096, PART)], 8), [(4096, PART)], "not worth it");
        assert_eq!(parts(&[(GIB, 2 * GIB)], 1), [(GIB, 2 * GIB)], "one processor");
        assert_eq!(parts(&[(GIB, 2 * GIB)], 0), [(GIB, 2 * GIB)], "none is known of");
        assert_eq!(parts(&[(GIB, 3 * GIB)], 2), [(GIB, 2 * GIB), (2 * GIB, 3 * GIB)]);
        // What is not mapped between them does not count.
        let (near, far) = ((GIB, 2 * GIB), (1000 * GIB, 1003 * GIB));
        assert_eq!(parts(&[near, far], 2), [(GIB, 1001 * GIB), (1001 * GIB, 1003 * GIB)]);
        assert_eq!(parts(&[(0, 64 * GIB)], 100).len() as u64, MOST_PARTS);
        // A border that would lie in front of its mapping.
        let odd = [(0, GIB), (2 * GIB + 4096, 3 * GIB + 8192)];
        assert_eq!(parts(&odd, 2), [(0, 2 * GIB + 4096), (2 * GIB + 4096, 3 * GIB + 8192)]);
        let many: Vec<Range> = (0..100_000).map(|i| (i * 65536, i * 65536 + 32768)).collect();
        let all = parts(&many, 4);
        assert_eq!((all.len(), all[0].0, all[3].1), (4, many[0].0, many[99_999].1));
        assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].0 < pair[0].1));
    }
}
