//! Memory that is filled by userfaultfd, without a fault for each page.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

use pc_image::{Backing, Vma, vma_flag};
use pc_sys::pidfd::{pidfd_getfd, pidfd_open};
use pc_sys::uffd::{self, Filler};
use pc_trace::{Call, TraceError};

use crate::error::{Context, RebuildError};
use crate::newborn::Newborn;

/// Memory that is filled without a fault for each page while it is untouched: that of private anonymous mappings, but
/// where huge pages are wanted, as filling makes small ones.
#[derive(Debug, Default)]
pub struct Fillable {
    pub filler: Option<Arc<Filler>>,
    ranges: Vec<(u64, u64)>,
}

impl Fillable {
    /// Makes the husk do what it takes. Without the right to it (userfaultfd(2)), nothing is fillable, and pages are
    /// populated and written.
    pub fn begin(newborn: &mut Newborn) -> Result<Self, RebuildError> {
        let everywhere = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if everywhere.is_ok_and(|text| text.contains("[always]")) {
            return Ok(Self::default());
        }
        let pid = newborn.husk.pid();
        let made = newborn.husk.call(pid, Call::new(libc::SYS_userfaultfd, [uffd::OPEN_FLAGS]));
        let theirs = match made {
            Err(TraceError::Remote { errno: libc::EPERM | libc::ENOSYS, .. }) => return Ok(Self::default()),
            made => made.what("making a userfaultfd")?,
        };
        let taken = pidfd_open(pid).and_then(|pidfd| pidfd_getfd(pidfd.as_fd(), theirs as i32));
        newborn.husk.call(pid, Call::new(libc::SYS_close, [theirs]))?;
        let filler = taken.and_then(Filler::new).what("taking the userfaultfd")?;
        Ok(Self { filler: Some(Arc::new(filler)), ranges: Vec::new() })
    }

    pub fn takes(&self, vma: &Vma) -> bool {
        // Nor can a userfaultfd have what may be dropped.
        let other = vma.flags & (vma_flag::HUGEPAGE | vma_flag::DROPPABLE) != 0;
        self.filler.is_some() && matches!(vma.backing, Backing::Anonymous) && !other
    }

    pub fn add(&mut self, vmas: &[&Vma]) -> Result<(), RebuildError> {
        let Some(filler) = &self.filler else { return Ok(()) };
        let ours: Vec<_> =
            vmas.iter().filter(|vma| self.takes(vma)).map(|vma| (vma.start, vma.end)).collect();
        for (start, end) in &ours {
            filler.register(*start, *end).what("making memory fillable")?;
        }
        self.ranges.extend(ours);
        Ok(())
    }

    /// All of it is ordinary memory again.
    pub fn end(&mut self) -> Result<(), RebuildError> {
        let Some(filler) = self.filler.take() else { return Ok(()) };
        let mut ranges = self.ranges.drain(..);
        ranges.try_for_each(|(start, end)| match filler.unregister(start, end) {
            // Unmapped meanwhile.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done.what("ending the filling of memory"),
        })
    }
}
