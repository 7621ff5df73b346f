//! Neighbours that are one mapping at the source and came in different rounds.
//!
//! The kernel joins equal anonymous neighbours if they share an `anon_vma` or one of them has none yet (mm/vma.c), which
//! at the source depends on what became of them. In the husk two parts that were filled apart, with a hole between,
//! stay apart for good when the hole closes; mremap(2) over both would then fail. So such a part is moved out of the way, mapped anew beside its
//! neighbour, which joins them, and its pages are put back.

use pc_image::{Backing, MapChange, PAGE_SIZE, Vma, vma_flag};
use pc_sys::mem::ProcMem;
use pc_sys::pagemap::{PageIs, Pagemap, Query};
use pc_trace::Call;

use crate::error::{Context, RebuildError};
use crate::image::Image;
use crate::layout::mappings_of;
use crate::mapping::{advise, mmap};
use crate::newborn::Newborn;

/// Bytes that are moved at a time.
const PIECE: usize = 1 << 20;

/// Equal anonymous neighbours are one mapping each, as far as the change reaches. `image` knows it already.
pub fn neighbours(newborn: &mut Newborn, image: &Image, change: &MapChange) -> Result<(), RebuildError> {
    let runs = runs(image, change);
    if runs.is_empty() {
        return Ok(());
    }
    let lines = mappings_of(newborn.husk.pid()).what("reading the mappings of the process")?;
    for run in &runs {
        let from = lines.partition_point(|line| line.end <= run.start);
        let inside = lines[from..].iter().take_while(|line| line.start < run.end);
        let parts: Vec<_> = inside.map(|line| (line.start.max(run.start), line.end.min(run.end))).collect();
        if parts.len() > 1 {
            join(newborn, run, &parts)?;
        }
    }
    Ok(())
}

/// What should be one mapping where something was mapped or became like its neighbour.
fn runs(image: &Image, change: &MapChange) -> Vec<Vma> {
    let plain = |v: &Vma| matches!(v.backing, Backing::Anonymous) && v.flags & vma_flag::GROWSDOWN == 0;
    let mut touched: Vec<(u64, u64)> =
        change.map.iter().chain(&change.modify).filter(|v| plain(v)).map(|v| (v.start, v.end)).collect();
    if touched.is_empty() {
        return Vec::new();
    }
    touched.sort_unstable();
    let vmas: Vec<&Vma> = image.vmas.values().filter(|v| plain(v)).collect();
    let equal = |a: &&Vma, b: &&Vma| {
        a.end == b.start && (a.prot, a.flags, a.pkey, &a.name) == (b.prot, b.flags, b.pkey, &b.name)
    };
    let whole = |run: &[&Vma]| Vma { end: run[run.len() - 1].end, ..run[0].clone() };
    let runs = vmas.chunk_by(equal).map(whole);
    runs.filter(|run| {
        let first = touched.partition_point(|(_, end)| *end <= run.start);
        touched.get(first).is_some_and(|(start, _)| *start < run.end)
    })
    .collect()
}

/// Makes one of the parts of a mapping: the largest stays where it is.
fn join(newborn: &mut Newborn, run: &Vma, parts: &[(u64, u64)]) -> Result<(), RebuildError> {
    let Some(&stays) = parts.iter().max_by_key(|(start, end)| end - start) else { return Ok(()) };
    let moving: Vec<_> = parts.iter().copied().filter(|part| *part != stays).collect();
    let mut away = Vec::with_capacity(moving.len());
    for &(start, end) in &moving {
        away.push((start, end, move_away(newborn, start, end - start)?));
    }
    let pid = newborn.husk.pid();
    let sides = [(run.start, stays.0), (stays.1, run.end)];
    let sides: Vec<Vma> = sides
        .into_iter()
        .filter(|(start, end)| start < end)
        .map(|(start, end)| Vma { start, end, ..run.clone() })
        .collect();
    let calls: Vec<Call> = sides.iter().map(|vma| mmap(vma, -1)).collect();
    newborn.husk.batch_ok(pid, &calls).what("joining mappings")?;
    advise(newborn, sides.iter())?;
    for (start, end, at) in away {
        copy(pid, (at, at + (end - start)), start)?;
        newborn.husk.call(pid, Call::new(libc::SYS_munmap, [at, end - start])).what("unmapping")?;
    }
    Ok(())
}

/// Moves a mapping to where there is room, and tells where.
fn move_away(newborn: &mut Newborn, start: u64, len: u64) -> Result<u64, RebuildError> {
    let pid = newborn.husk.pid();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let room = [0, len, libc::PROT_NONE as u64, flags as u64, u64::MAX, 0];
    let to = newborn.husk.call(pid, Call::new(libc::SYS_mmap, room)).what("finding room")?;
    let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let call = Call::new(libc::SYS_mremap, [start, len, len, how, to]);
    newborn.husk.call(pid, call).what("moving a mapping")?;
    Ok(to)
}

/// Copies the pages of a range that are there to `to`.
fn copy(pid: i32, (start, end): (u64, u64), to: u64) -> Result<(), RebuildError> {
    let mut regions = Vec::new();
    let there = Query::any_of(PageIs::PRESENT | PageIs::SWAPPED, PageIs::empty()).without(PageIs::PFNZERO);
    let pagemap = Pagemap::open(pid).what("opening the page map of the process")?;
    pagemap.scan(start, end, there, &mut regions).what("scanning pages")?;
    let ranges = regions.iter().map(|region| (region.start, region.end));
    let memory = ProcMem::open(pid).what("opening the memory of the process")?;
    let mut buffer = vec![0; PIECE];
    for (from, until) in ranges {
        for at in (from..until).step_by(PIECE) {
            let bytes = &mut buffer[..(until - at).min(PIECE as u64) as usize];
            memory.read(at, bytes).what("reading the memory of the process")?;
            for (page, bytes) in
                (at - start + to..).step_by(PAGE_SIZE as usize).zip(bytes.chunks(PAGE_SIZE as usize))
            {
                if bytes.iter().any(|byte| *byte != 0) {
                    memory.write(page, bytes).what("writing to the memory of the process")?;
                }
            }
        }
    }
    Ok(())
}
