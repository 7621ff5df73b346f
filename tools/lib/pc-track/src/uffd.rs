//! userfaultfd(2) with `UFFD_FEATURE_WP_ASYNC`, and PAGEMAP_SCAN.

use pc_sys::pagemap::{PageIs, PageRegion, Pagemap, Query, ScanFlags};
use pc_sys::{pidfd, uffd};
use pc_trace::{Call, Remote};
use std::os::fd::AsFd;

use crate::{Found, Range, TrackError, Tracker, kernel};

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
        let theirs = match remote.call(pid, Call::new(libc::SYS_userfaultfd, [uffd::OPEN_FLAGS])) {
            Err(pc_trace::TraceError::Remote { errno: libc::ENOSYS, .. }) => {
                return Err(TrackError::Unsupported("userfaultfd"));
            }
            theirs => theirs?,
        };
        let taken = pidfd::pidfd_open(pid)
            .and_then(|pidfd| pidfd::pidfd_getfd(pidfd.as_fd(), theirs as i32))
            .map_err(kernel("taking the userfaultfd"));
        remote.call(pid, Call::new(libc::SYS_close, [theirs]))?;
        let fd = uffd::Uffd::new(taken?).map_err(|err| match err.raw_os_error() {
            Some(libc::EINVAL) => {
                TrackError::Unsupported("userfaultfd (asynchronous write-protection, Linux 6.7)")
            }
            _ => TrackError::Kernel { what: "setting up the userfaultfd", source: err },
        })?;
        let pagemap = Pagemap::open(pid).map_err(kernel("opening the page map"))?;
        Ok(Self { fd, pagemap, regions: Vec::new() })
    }
}

impl Tracker for Uffd {
    fn name(&self) -> &'static str {
        "uffd"
    }

    fn needs_pause(&self) -> bool {
        false
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

    fn written(
        &mut self,
        (start, end): Range,
        clear: bool,
        out: &mut Vec<Range>,
    ) -> Result<Found, TrackError> {
        let flags =
            if clear { ScanFlags::CHECK_WPASYNC | ScanFlags::WP_MATCHING } else { ScanFlags::CHECK_WPASYNC };
        // The any-of mask keeps the walk from building page tables where nothing ever was.
        let query = Query::any_of(PageIs::PRESENT | PageIs::SWAPPED, PageIs::empty())
            .and_all(PageIs::WRITTEN)
            .flags(flags);
        match self.pagemap.scan(start, end, query, &mut self.regions) {
            Ok(()) => {
                out.extend(self.regions.iter().map(|r| (r.start, r.end)));
                Ok(Found::Tracked)
            }
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => Ok(Found::Lost),
            Err(err) => Err(TrackError::Kernel { what: "scanning for written pages", source: err }),
        }
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
