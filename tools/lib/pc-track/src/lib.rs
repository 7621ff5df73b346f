//! Which pages of a process have changed since they were last looked at.
//!
//! Three methods. [`Uffd`]: userfaultfd in its asynchronous write-protect mode with PAGEMAP_SCAN (Linux 6.7), exact to
//! the page, taken and cleared in one step while the target runs. [`SoftDirty`]: the soft-dirty bits of older kernels, which
//! can only be taken and cleared together while the target stands. [`Hashes`]: compares what is read with what was sent;
//! works everywhere and sees what the others cannot (writes that bypass the page tables: direct I/O into pinned pages,
//! writes to shared memory through its file), for the price of reading everything.
//!
//! A range is lost to tracking when the target replaces the mapping (munmap and mmap, mremap, exec); [`Tracker::scan`]
//! then says so, and the range has to be sent whole and tracked again.

#![forbid(unsafe_code)]

mod blocks;
mod hash;
mod softdirty;
mod uffd;

pub use blocks::{BLOCK, Room};
pub use hash::Hashes;
pub use softdirty::SoftDirty;
pub use uffd::Uffd;

use std::io;

/// A range of addresses `(start, end)`, whole pages.
pub type Range = (u64, u64);

/// A run of pages with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Written since it was last cleared.
    pub written: bool,
    /// Guard pages (`MADV_GUARD_INSTALL`), which have no content but must not be touched either.
    pub guard: bool,
    /// In a mapping that is tracked. Of others it is not known what was written.
    pub tracked: bool,
}

/// What kind of mapping is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Anonymous memory.
    Anonymous,
    /// A private mapping of a file: only pages that were written to differ from it.
    PrivateFile,
}

/// What was found in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The range is tracked throughout; its pages are in the answer.
    Tracked,
    /// Part of the range is not tracked: it is new, or the mapping was replaced. Nothing is known of its pages.
    Lost,
}

/// Errors of tracking.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// A kernel call failed.
    #[error("{what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks the method.
    #[error("this kernel cannot track by {0}")]
    Unsupported(&'static str),
    /// A remote system call failed.
    #[error(transparent)]
    Trace(#[from] pc_trace::TraceError),
}

/// A method that learns of writes from the kernel.
pub trait Tracker: std::fmt::Debug {
    /// Its name, as `--track` takes it.
    fn name(&self) -> &'static str;

    /// Whether [`Tracker::scan`] with `clear` loses writes unless the target stands.
    fn needs_pause(&self) -> bool;

    /// Whether the mapping that begins at `start` is tracked.
    fn tracks(&mut self, start: u64) -> Result<bool, TrackError>;

    /// Starts tracking all mappings in a range, which must begin and end with one. All that is present in them counts as
    /// written until it is cleared. False if one of them cannot be tracked by this method (another userfaultfd has it): it
    /// then needs [`Hashes`]. A mapping that is only partly in the range would be split, which the target may notice
    /// (mremap(2)): let it stand while ranges are looked up and tracked.
    fn track(&mut self, range: Range) -> Result<bool, TrackError>;

    /// The pages of a range that carry content, into `out` (appended, ascending), each run told to be written or not since
    /// it was last cleared. With `clear` the written ones count as unwritten from here on, in the same step: a write after
    /// it is found the next time. Pages that only show a private mapping's file, and the kernel's zero page, carry no
    /// content.
    fn scan(
        &mut self,
        range: Range,
        what: What,
        clear: bool,
        out: &mut Vec<Run>,
    ) -> Result<Found, TrackError>;

    /// The same for many mappings (ascending, with nothing else mapped between them) without clearing, in as few kernel calls as
    /// the method can do with. Where one is not tracked, its runs say so. They are not split where mappings meet.
    fn survey(&mut self, mappings: &[(Range, What)], out: &mut Vec<Run>) -> Result<(), TrackError> {
        for (range, what) in mappings {
            self.scan(*range, *what, false, out)?;
        }
        Ok(())
    }

    /// To be called after the scans with `clear` of a round, where the method can clear only everything at once. The
    /// target must stand from the first of these scans until then if [`Tracker::needs_pause`].
    fn clear_all(&mut self) -> Result<(), TrackError>;

    /// Ends tracking of a range, in small pieces, as each holds the address space's lock.
    fn untrack(&mut self, range: Range) -> Result<(), TrackError>;
}

pub(crate) fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> TrackError {
    move |source| TrackError::Kernel { what, source }
}
