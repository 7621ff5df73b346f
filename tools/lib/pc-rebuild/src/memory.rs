//! The address space: mappings made in the husk, and what is in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use pc_image::{Backing, FileId, MapChange, PAGE_SIZE, PageRun, Pages, SpaceId, Vma, prot, vma_flag};
use pc_sys::mem::{ProcMem, RemoteRange};
use pc_sys::pidfd::{pidfd_getfd, pidfd_open};
use pc_sys::uffd::{self, Filler};
use pc_trace::{Call, TraceError};

use crate::error::{Context, RebuildError, raw_ok};
use crate::fdtable::send;
use crate::image::Image;
use crate::newborn::Newborn;
use crate::writers::{How, Segment, Writers};
use crate::{file, layout};

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
const MADV_POPULATE_WRITE: u64 = 23;
const MADV_DONTNEED_LOCKED: u64 = 24;

/// Flags of a mapping that madvise(2) sets, and with which advice.
const ADVICE: [(u32, i32); 8] = [
    (vma_flag::DONTFORK, libc::MADV_DONTFORK),
    (vma_flag::DONTDUMP, libc::MADV_DONTDUMP),
    (vma_flag::WIPEONFORK, libc::MADV_WIPEONFORK),
    (vma_flag::MERGEABLE, libc::MADV_MERGEABLE),
    (vma_flag::HUGEPAGE, libc::MADV_HUGEPAGE),
    (vma_flag::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
    (vma_flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
    (vma_flag::RANDOM, libc::MADV_RANDOM),
];

/// Fills the address space of one husk.
#[derive(Debug)]
pub struct Memory {
    pub space: SpaceId,
    pub writers: Writers,
    /// Pages were written before, so that a page of zeroes can be one that has to be cleared.
    touched: bool,
    fillable: Fillable,
}

impl Memory {
    /// For the husk's address space, known in the stream as `space`.
    pub fn new(space: SpaceId, newborn: &mut Newborn) -> Result<Self, RebuildError> {
        let fillable = Fillable::begin(newborn)?;
        let writers = Writers::start(newborn.husk.pid(), fillable.filler.as_ref())?;
        Ok(Self { space, writers, touched: false, fillable })
    }

    /// Follows a mapping change. `image` knows it already.
    pub fn change(
        &mut self,
        newborn: &mut Newborn,
        image: &Image,
        change: &MapChange,
    ) -> Result<(), RebuildError> {
        self.settle()?;
        let pid = newborn.husk.pid();
        let unmap: Vec<Call> = change
            .unmap
            .iter()
            .map(|(start, end)| Call::new(libc::SYS_munmap, [*start, end - start]))
            .collect();
        newborn.husk.batch_ok(pid, &unmap).what("unmapping")?;
        let ours: Vec<&Vma> = change.map.iter().filter(|v| !by_kernel(&v.backing)).collect();
        for vma in &ours {
            refuse_odd(vma, newborn.reserved)?;
        }
        map_all(newborn, image, &ours)?;
        advise(newborn, ours.iter().copied())?;
        if !self.touched {
            self.fillable.add(&ours)?;
        }
        self.modify(newborn, &change.modify)
    }

    fn modify(&mut self, newborn: &mut Newborn, vmas: &[Vma]) -> Result<(), RebuildError> {
        let calls: Vec<Call> = vmas
            .iter()
            .filter(|v| !by_kernel(&v.backing))
            .map(|v| Call::new(libc::SYS_mprotect, [v.start, v.end - v.start, u64::from(v.prot)]))
            .collect();
        newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("changing the protection of mappings")?;
        advise(newborn, vmas.iter().filter(|v| !by_kernel(&v.backing)))
    }

    /// Drops pages: they read as zero, or as the file below.
    pub fn zap(&mut self, newborn: &mut Newborn, ranges: &[(u64, u64)]) -> Result<(), RebuildError> {
        self.settle()?;
        let calls: Vec<Call> = ranges
            .iter()
            .map(|(start, end)| Call::new(libc::SYS_madvise, [*start, end - start, MADV_DONTNEED_LOCKED]))
            .collect();
        newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("dropping pages")?;
        Ok(())
    }

    /// Pages that hold only zeroes.
    pub fn zero(
        &mut self,
        newborn: &mut Newborn,
        image: &Image,
        ranges: &[(u64, u64)],
    ) -> Result<(), RebuildError> {
        self.settle()?;
        let mut drop_them = Vec::new();
        let memory = ProcMem::open(newborn.husk.pid()).what("opening the memory of the process")?;
        for &(start, end) in ranges {
            for (vma, start, end) in pieces(image, start, end)? {
                if matches!(vma.backing, Backing::Anonymous) {
                    drop_them.push((start, end));
                } else {
                    let zeroes = vec![0; PAGE_SIZE as usize];
                    for page in (start..end).step_by(PAGE_SIZE as usize) {
                        memory.write(page, &zeroes).what("writing to the memory of the process")?;
                    }
                }
            }
        }
        if self.touched { self.zap(newborn, &drop_them) } else { Ok(()) }
    }

    /// Pages with their bytes.
    pub fn pages(&mut self, newborn: &mut Newborn, image: &Image, pages: Pages) -> Result<(), RebuildError> {
        let fillable = |vma: &Vma| !self.touched && self.fillable.takes(vma);
        let segments = split(image, &pages.runs, pages.data().len(), fillable)?;
        if !self.touched {
            populate(newborn, image, &pages.runs, fillable)?;
        }
        self.writers.write(pages, segments)
    }

    /// Waits until everything that came is in place.
    pub fn settle(&mut self) -> Result<(), RebuildError> {
        self.writers.settle()
    }

    /// A round has ended.
    pub fn round_done(&mut self) -> Result<(), RebuildError> {
        self.settle()?;
        self.touched = true;
        self.fillable.end()
    }
}

/// Memory that is filled without a fault for each page while it is untouched: that of private anonymous mappings, but
/// where huge pages are wanted, as filling makes small ones.
#[derive(Debug, Default)]
struct Fillable {
    filler: Option<Arc<Filler>>,
    ranges: Vec<(u64, u64)>,
}

impl Fillable {
    /// Has the husk make what it takes. Without the right to it (userfaultfd(2)), nothing is fillable, and pages are
    /// populated and written.
    fn begin(newborn: &mut Newborn) -> Result<Self, RebuildError> {
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

    fn takes(&self, vma: &Vma) -> bool {
        let huge = vma.flags & vma_flag::HUGEPAGE != 0;
        self.filler.is_some() && matches!(vma.backing, Backing::Anonymous) && !huge
    }

    fn add(&mut self, vmas: &[&Vma]) -> Result<(), RebuildError> {
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
    fn end(&mut self) -> Result<(), RebuildError> {
        let Some(filler) = self.filler.take() else { return Ok(()) };
        let mut ranges = self.ranges.drain(..);
        ranges.try_for_each(|(start, end)| match filler.unregister(start, end) {
            // Unmapped meanwhile.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done.what("ending the filling of memory"),
        })
    }
}

/// Mappings that every process has by birth.
fn by_kernel(backing: &Backing) -> bool {
    matches!(backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Vsyscall)
}

/// What cannot be mapped is refused by name.
fn refuse_odd(vma: &Vma, reserved: (u64, u64)) -> Result<(), RebuildError> {
    let at = format!("{:x}-{:x}", vma.start, vma.end);
    let refuse = |why: &str| Err(RebuildError::Unsupported(format!("mapping {at}: {why}")));
    if vma.start >= vma.end || !(vma.start | vma.end).is_multiple_of(PAGE_SIZE) || vma.end > layout::TASK_SIZE
    {
        return Err(RebuildError::Contradiction(format!("a mapping at {at}")));
    }
    if vma.start < reserved.1 && reserved.0 < vma.end {
        return refuse("it lies where the tools work in the process; restore with --no-pipeline");
    }
    if vma.pkey != 0 {
        return refuse("memory protection keys are not supported");
    }
    match vma.backing {
        Backing::Anonymous | Backing::Hugetlb { .. } if vma.flags & vma_flag::SHARED != 0 => {
            refuse("shared memory of this kind is not supported")
        }
        _ => Ok(()),
    }
}

/// Maps them all in one batch; their files are opened here and sent over.
fn map_all(newborn: &mut Newborn, image: &Image, vmas: &[&Vma]) -> Result<(), RebuildError> {
    let mut files: BTreeMap<(Shown, bool), usize> = BTreeMap::new();
    let mut opened: Vec<OwnedFd> = Vec::new();
    for vma in vmas {
        if let Some(key) = file_key(vma)
            && let std::collections::btree_map::Entry::Vacant(entry) = files.entry(key)
        {
            let flags = if key.1 { libc::O_RDWR } else { libc::O_RDONLY };
            entry.insert(opened.len());
            opened.push(match key.0 {
                Shown::File(file) => file::open(image.file(file)?, flags)?,
                Shown::Object(space) => image.objects.open(space, flags)?,
            });
        }
    }
    let pid = newborn.husk.pid();
    // In groups, so that few descriptors are open in the husk at a time.
    let fds = send(newborn, opened.iter().map(AsFd::as_fd))?;
    drop(opened);
    let fd_of = |vma: &Vma| file_key(vma).and_then(|key| Some(fds[*files.get(&key)?]));
    let groups = together(vmas);
    let whole: Vec<Vma> = groups.iter().filter_map(|group| as_one(group)).collect();
    let calls: Vec<Call> = whole.iter().map(|vma| mmap(vma, fd_of(vma).unwrap_or(-1))).collect();
    let results = newborn.husk.batch(pid, &calls)?;
    for (vma, result) in whole.iter().zip(results) {
        let got = raw_ok(result, || format!("mapping {:x}-{:x}", vma.start, vma.end))?;
        if got != vma.start {
            return Err(RebuildError::Contradiction(format!("{:x} was mapped at {got:x}", vma.start)));
        }
    }
    let close: Vec<Call> = fds.iter().map(|fd| Call::new(libc::SYS_close, [*fd as u64])).collect();
    newborn.husk.batch_ok(pid, &close)?;
    groups.iter().filter(|group| group.len() > 1).try_for_each(|group| take_apart(newborn, group))
}

/// Neighbours of private anonymous memory that differ in nothing but their protection: at the source they may have been
/// one mapping, and become one again when their protection is the same, so that mremap(2) takes them as one. The kernel
/// joins only what shares an `anon_vma` (mm/vma.c), so they are mapped as one, and taken apart when it has that.
fn together<'a, 'b>(vmas: &'b [&'a Vma]) -> Vec<&'b [&'a Vma]> {
    let plain = |v: &Vma| matches!(v.backing, Backing::Anonymous) && v.flags & vma_flag::GROWSDOWN == 0;
    let joined = |a: &&Vma, b: &&Vma| {
        a.end == b.start && plain(a) && plain(b) && (a.flags, a.pkey, &a.name) == (b.flags, b.pkey, &b.name)
    };
    vmas.chunk_by(joined).collect()
}

/// A group as one mapping; with several members, one that nobody may touch and that nothing is accounted for.
fn as_one(group: &[&Vma]) -> Option<Vma> {
    let (first, last) = (group.first()?, group.last()?);
    let prot = if group.len() > 1 { 0 } else { first.prot };
    Some(Vma { end: last.end, prot, ..(*first).clone() })
}

/// Gives the one mapping its `anon_vma`, by a page that is dropped again, and each part its protection.
fn take_apart(newborn: &mut Newborn, group: &[&Vma]) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let start = group[0].start;
    let memory = ProcMem::open(pid).what("opening the memory of the process")?;
    memory.write(start, &[0]).what("touching a mapping")?;
    let mut calls = vec![Call::new(libc::SYS_madvise, [start, PAGE_SIZE, libc::MADV_DONTNEED as u64])];
    let protect = |v: &&Vma| Call::new(libc::SYS_mprotect, [v.start, v.end - v.start, u64::from(v.prot)]);
    calls.extend(group.iter().filter(|v| v.prot != 0).map(protect));
    newborn.husk.batch_ok(pid, &calls).what("protecting mappings")?;
    Ok(())
}

/// What a mapping is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    File(FileId),
    Object(SpaceId),
}

/// What a mapping shows that has to be opened, and whether for writing.
fn file_key(vma: &Vma) -> Option<(Shown, bool)> {
    let shown = match vma.backing {
        Backing::File { file, .. } => Shown::File(file),
        Backing::Shm { space, .. } => Shown::Object(space),
        _ => return None,
    };
    let writable = vma.flags & vma_flag::SHARED != 0
        && (vma.flags & vma_flag::MAYWRITE != 0 || vma.prot & prot::WRITE != 0);
    Some((shown, writable))
}

fn mmap(vma: &Vma, fd: i32) -> Call {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    let mut offset = 0;
    flags |= if vma.flags & vma_flag::SHARED != 0 { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if vma.flags & vma_flag::GROWSDOWN != 0 {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.flags & vma_flag::NORESERVE != 0 {
        flags |= libc::MAP_NORESERVE;
    }
    match vma.backing {
        Backing::File { offset: at, .. } | Backing::Shm { offset: at, .. } => offset = at,
        Backing::Hugetlb { shift } => {
            flags |= libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | i32::from(shift) << libc::MAP_HUGE_SHIFT;
        }
        _ => flags |= libc::MAP_ANONYMOUS,
    }
    let len = vma.end - vma.start;
    Call::new(libc::SYS_mmap, [vma.start, len, u64::from(vma.prot), flags as u64, fd as i64 as u64, offset])
}

/// Sets what madvise(2) and names set.
fn advise<'a>(newborn: &mut Newborn, vmas: impl Iterator<Item = &'a Vma>) -> Result<(), RebuildError> {
    let mut calls = Vec::new();
    for vma in vmas {
        let len = vma.end - vma.start;
        for (_, advice) in ADVICE.iter().filter(|(flag, _)| vma.flags & flag != 0) {
            calls.push(Call::new(libc::SYS_madvise, [vma.start, len, *advice as u64]));
        }
        if let Some(name) = &vma.name {
            let name = newborn.husk.put(&[name.as_bytes(), b"\0"].concat())?;
            calls.push(Call::new(libc::SYS_prctl, [PR_SET_VMA, PR_SET_VMA_ANON_NAME, vma.start, len, name]));
        }
    }
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("advising the kernel about mappings")?;
    newborn.husk.reset();
    Ok(())
}

/// Locks what was locked, once everything is in place.
pub fn lock(newborn: &mut Newborn, image: &Image) -> Result<(), RebuildError> {
    const MLOCK_ONFAULT: u64 = 1;
    let locked = vma_flag::LOCKED | vma_flag::LOCKED_ONFAULT;
    let calls: Vec<Call> = image
        .vmas
        .values()
        .filter(|v| v.flags & locked != 0 && !by_kernel(&v.backing))
        .map(|v| {
            let flags = if v.flags & vma_flag::LOCKED_ONFAULT != 0 { MLOCK_ONFAULT } else { 0 };
            Call::new(libc::SYS_mlock2, [v.start, v.end - v.start, flags])
        })
        .collect();
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("locking memory")?;
    Ok(())
}

/// Guard pages, at whose touch the process gets SIGSEGV (madvise(2), `MADV_GUARD_INSTALL`, Linux 6.13).
pub fn guard(newborn: &mut Newborn, image: &Image, guards: &[(u64, u64)]) -> Result<(), RebuildError> {
    const MADV_GUARD_INSTALL: u64 = 102;
    let mut calls = Vec::new();
    for &(start, end) in guards {
        for (_, start, end) in pieces(image, start, end)? {
            calls.push(Call::new(libc::SYS_madvise, [start, end - start, MADV_GUARD_INSTALL]));
        }
    }
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("making guard pages")?;
    Ok(())
}

/// The parts of a range by mapping. A page outside every mapping contradicts the stream.
pub fn pieces(image: &Image, start: u64, end: u64) -> Result<Vec<(&Vma, u64, u64)>, RebuildError> {
    let mut pieces = Vec::new();
    let mut at = start;
    while at < end {
        let vma = image.vma_at(at).ok_or_else(|| {
            RebuildError::Contradiction(format!("a page at {at:#x}, where nothing is mapped"))
        })?;
        let stop = vma.end.min(end);
        pieces.push((vma, at, stop));
        at = stop;
    }
    Ok(pieces)
}

fn run_end(run: &PageRun) -> Result<u64, RebuildError> {
    let len = run.pages.checked_mul(PAGE_SIZE);
    let end = len.and_then(|len| run.addr.checked_add(len)).filter(|end| *end <= layout::TASK_SIZE);
    end.ok_or_else(|| RebuildError::Contradiction(format!("pages at {:#x}", run.addr)))
}

/// Sorts the runs of a page record by how they are to be written.
pub fn split(
    image: &Image,
    runs: &[PageRun],
    len: usize,
    fillable: impl Fn(&Vma) -> bool,
) -> Result<Vec<Segment>, RebuildError> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut offset = 0;
    for run in runs {
        for (vma, start, end) in pieces(image, run.addr, run_end(run)?)? {
            let how = match vma.prot & prot::WRITE {
                _ if fillable(vma) => How::Fill,
                0 => How::Force,
                _ => How::Write,
            };
            let range = RemoteRange { addr: start, len: (end - start) as usize };
            match segments.last_mut() {
                Some(last) if last.how == how => last.ranges.push(range),
                _ => segments.push(Segment { ranges: vec![range], offset, how }),
            }
            offset += range.len;
        }
    }
    if offset != len {
        let why = format!("a record of {offset} bytes of pages with {len} bytes");
        return Err(RebuildError::Contradiction(why));
    }
    Ok(segments)
}

/// Has the husk make large runs present before they are written, which is cheaper than a fault for each page.
fn populate(
    newborn: &mut Newborn,
    image: &Image,
    runs: &[PageRun],
    fillable: impl Fn(&Vma) -> bool,
) -> Result<(), RebuildError> {
    const LARGE: u64 = 16;
    let mut calls = Vec::new();
    for run in runs.iter().filter(|r| r.pages >= LARGE) {
        for (vma, start, end) in pieces(image, run.addr, run_end(run)?)? {
            if vma.prot & prot::WRITE != 0 && matches!(vma.backing, Backing::Anonymous) && !fillable(vma) {
                calls.push(Call::new(libc::SYS_madvise, [start, end - start, MADV_POPULATE_WRITE]));
            }
        }
    }
    if calls.is_empty() {
        return Ok(());
    }
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("making room in the memory of the process")?;
    Ok(())
}
