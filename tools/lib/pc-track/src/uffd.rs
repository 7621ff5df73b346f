//! userfaultfd(2) with `UFFD_FEATURE_WP_ASYNC`, and PAGEMAP_SCAN.

use pc_sys::pagemap::{PageIs, PageRegion, Pagemap, Query, ScanFlags};
use pc_sys::{pidfd, uffd};
use pc_trace::{Call, Remote};
use std::os::fd::AsFd;

use crate::{Found, Range, Run, TrackError, Tracker, What, kernel};

/// Unregistering holds the address space's lock: this many bytes at a time.
const PIECE: u64 = 16 << 20;

/// The target's userfaultfd, taken over. Tracking ends when it is dropped; drop it only after [`Tracker::untrack`] of
/// large ranges, or after the target's end, for it holds the target's lock for all of them at once.
#[derive(Debug)]
pub struct Uffd {
    fd: uffd::Uffd,
    pagemap: Pagemap,
    regions: Vec<PageRegion>,
}

impl Uffd {
    /// Has the target make a userfaultfd, takes it over and closes the target's copy.
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
        Ok(Self { fd, pagemap, regions: Vec::new() })
    }
}

impl Uffd {
    /// Scans into `self.regions`; without guard pages on a kernel before 6.15, which knows none.
    fn query(&mut self, range: Range, what: What, flags: ScanFlags) -> std::io::Result<()> {
        match self.query_with(range, what, PageIs::GUARD, flags) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                self.query_with(range, what, PageIs::empty(), flags)
            }
            done => done,
        }
    }

    fn query_with(
        &mut self,
        (start, end): Range,
        what: What,
        guard: PageIs,
        flags: ScanFlags,
    ) -> std::io::Result<()> {
        // The any-of mask keeps the walk from building page tables where nothing ever was. The kernel write-protects
        // only what is written, so matching the rest as well costs nothing.
        let content = PageIs::PRESENT | PageIs::SWAPPED | guard;
        let report = PageIs::WRITTEN | PageIs::WPALLOWED | guard | doubtful(what);
        let query = Query::any_of(content, report).without(hidden(what)).flags(flags);
        self.pagemap.scan(start, end, query, &mut self.regions)
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
        match self.query(range, what, flags) {
            Ok(()) => self.tell(what, out),
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => return Ok(Found::Lost),
            Err(err) => return Err(TrackError::Kernel { what: "scanning for written pages", source: err }),
        }
        Ok(Found::Tracked)
    }

    /// One scan for neighbours of one kind: to ask of each page whether it is a file's would take several times as long.
    fn survey(&mut self, mappings: &[(Range, What)], out: &mut Vec<Run>) -> Result<(), TrackError> {
        for alike in mappings.chunk_by(|a, b| a.1 == b.1) {
            let (first, last) = (alike[0], alike[alike.len() - 1]);
            self.query((first.0.0, last.0.1), first.1, ScanFlags::empty())
                .map_err(kernel("scanning for written pages"))?;
            self.tell(first.1, out);
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
