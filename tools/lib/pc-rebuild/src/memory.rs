//! The address space: what is in the mappings of the husk.

use pc_image::{Backing, MapChange, PAGE_SIZE, PageRun, Patch, Patches, Vma, prot, vma_flag};
use pc_sys::mem::{ProcMem, RemoteRange};
use pc_trace::Call;

use crate::error::{Context, RebuildError};
use crate::fillable::Fillable;
use crate::image::Image;
use crate::kept::Part;
use crate::mapping::{advise, by_kernel, map_all, protect, refuse_odd};
use crate::newborn::Newborn;
use crate::writers::{How, Segment, Writers};
use crate::{join, layout};

const MADV_POPULATE_WRITE: u64 = 23;
const MADV_DONTNEED_LOCKED: u64 = 24;

/// Fills the address space of one husk.
#[derive(Debug)]
pub struct Memory {
    pub writers: Writers,
    /// Pages were written before, so that a page of zeroes can be one that has to be cleared.
    touched: bool,
    fillable: Fillable,
}

impl Memory {
    /// For the husk's address space.
    pub fn new(newborn: &mut Newborn) -> Result<Self, RebuildError> {
        let fillable = Fillable::begin(newborn)?;
        let writers = Writers::start(newborn.husk.pid(), fillable.filler.as_ref())?;
        Ok(Self { writers, touched: false, fillable })
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
        enough_mappings(image.vmas.len())?;
        for vma in &ours {
            refuse_odd(vma, newborn.reserved)?;
        }
        map_all(newborn, image, &ours)?;
        advise(newborn, ours.iter().copied())?;
        if !self.touched {
            self.fillable.add(&ours)?;
        }
        self.modify(newborn, &change.modify)?;
        if self.touched { join::neighbours(newborn, image, change) } else { Ok(()) }
    }

    fn modify(&mut self, newborn: &mut Newborn, vmas: &[Vma]) -> Result<(), RebuildError> {
        let calls: Vec<Call> = vmas.iter().filter(|v| !by_kernel(&v.backing)).map(protect).collect();
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
    pub fn pages(&mut self, newborn: &mut Newborn, image: &Image, part: Part) -> Result<(), RebuildError> {
        let fillable = |vma: &Vma| !self.touched && self.fillable.takes(vma);
        let segments = split(image, &part.runs, part.len, fillable)?;
        if !self.touched {
            populate(newborn, image, &part.runs, fillable)?;
        }
        self.writers.write(part, segments)
    }

    /// Changed bytes of pages that came in rounds before.
    pub fn patches(&mut self, image: &Image, patches: Patches) -> Result<(), RebuildError> {
        let segments = split_patches(image, &patches.patches)?;
        self.writers.write(Part::patches(patches), segments)
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

/// Refuses more mappings than a process may have here, with those that building it takes (mremap(2) wants some free).
fn enough_mappings(count: usize) -> Result<(), RebuildError> {
    const SPARE: usize = 8;
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    match text.trim().parse::<usize>() {
        Ok(most) if count + SPARE > most => Err(RebuildError::Unsupported(format!(
            "it has {count} mappings, and {most} are allowed here (vm.max_map_count), {SPARE} of which it takes to build it"
        ))),
        _ => Ok(()),
    }
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
    let mut segments = Segments::default();
    for run in runs {
        for (vma, start, end) in pieces(image, run.addr, run_end(run)?)? {
            segments.push(vma, start, end, fillable(vma));
        }
    }
    if segments.len != len {
        let why = format!("a record of {} bytes of pages with {len} bytes", segments.len);
        return Err(RebuildError::Contradiction(why));
    }
    Ok(segments.all)
}

/// The same of patches, whose pages are there.
pub fn split_patches(image: &Image, patches: &[Patch]) -> Result<Vec<Segment>, RebuildError> {
    let mut segments = Segments::default();
    for patch in patches {
        // It lies within a page, so in one mapping.
        for (vma, start, end) in pieces(image, patch.addr, patch.addr + u64::from(patch.len))? {
            segments.push(vma, start, end, false);
        }
    }
    Ok(segments.all)
}

/// Segments, and the bytes of all of them.
#[derive(Debug, Default)]
struct Segments {
    all: Vec<Segment>,
    len: usize,
}

impl Segments {
    fn push(&mut self, vma: &Vma, start: u64, end: u64, fill: bool) {
        let how = match vma.prot & prot::WRITE {
            _ if fill => How::Fill,
            0 => How::Force,
            _ => How::Write,
        };
        let range = RemoteRange { addr: start, len: (end - start) as usize };
        match self.all.last_mut() {
            Some(last) if last.how == how => last.ranges.push(range),
            _ => self.all.push(Segment { ranges: vec![range], offset: self.len, how }),
        }
        self.len += range.len;
    }
}

/// Makes the husk bring large runs into memory before they are written, which is cheaper than a fault for each page.
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
