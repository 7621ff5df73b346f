//! Mappings made in the husk, with what mmap(2), mprotect(2) and madvise(2) say of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use pc_image::{Backing, FileId, PAGE_SIZE, SpaceId, Vma, prot, vma_flag};
use pc_sys::mem::ProcMem;
use pc_trace::Call;

use crate::error::{Context, RebuildError, raw_ok};
use crate::fdtable::send;
use crate::image::Image;
use crate::newborn::Newborn;
use crate::{file, layout};

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
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

/// `MAP_DROPPABLE` of Linux 6.11, in place of `MAP_PRIVATE`.
const MAP_DROPPABLE: i32 = 8;

/// Mappings that every process has by birth.
pub fn by_kernel(backing: &Backing) -> bool {
    matches!(backing, Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Vsyscall)
}

/// What cannot be mapped here is refused by name; what could be nowhere was refused by [`pc_image::rules`].
pub fn refuse_odd(vma: &Vma, reserved: (u64, u64)) -> Result<(), RebuildError> {
    let at = format!("{:x}-{:x}", vma.start, vma.end);
    if vma.start >= vma.end || !(vma.start | vma.end).is_multiple_of(PAGE_SIZE) || vma.end > layout::TASK_SIZE
    {
        return Err(RebuildError::Contradiction(format!("a mapping at {at}")));
    }
    if vma.start < reserved.1 && reserved.0 < vma.end {
        let why = "it lies where the tools work in the process; restore with --no-pipeline";
        return Err(RebuildError::Unsupported(format!("mapping {at}: {why}")));
    }
    Ok(())
}

/// Maps them all in one batch; their files are opened here and sent over.
pub fn map_all(newborn: &mut Newborn, image: &Image, vmas: &[&Vma]) -> Result<(), RebuildError> {
    let mut files: BTreeMap<(Shown, bool), usize> = BTreeMap::new();
    let mut opened: Vec<OwnedFd> = Vec::new();
    for vma in vmas {
        if let Some(key) = file_key(vma)
            && let std::collections::btree_map::Entry::Vacant(entry) = files.entry(key)
        {
            let flags = if key.1 { libc::O_RDWR } else { libc::O_RDONLY };
            entry.insert(opened.len());
            opened.push(match key.0 {
                Shown::File(file) => {
                    let file = image.file(file)?;
                    file::judge_mapped(&image.place, file)?;
                    file::open(&image.place, file, flags)?
                }
                Shown::Object(space) if key.1 => image.objects.first(space)?,
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
        if vma.flags & vma_flag::DROPPABLE != 0 && -result == i64::from(libc::EINVAL) {
            let why =
                "it has memory that may be dropped (MAP_DROPPABLE), which the kernel here does not have";
            return Err(RebuildError::Unsupported(why.into()));
        }
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
    calls.extend(group.iter().filter(|v| v.prot != 0).map(|v| protect(v)));
    newborn.husk.batch_ok(pid, &calls).what("protecting mappings")?;
    Ok(())
}

/// Sets the protection of a mapping, as far as that is done before the end.
pub fn protect(vma: &Vma) -> Call {
    Call::new(libc::SYS_mprotect, [vma.start, vma.end - vma.start, early_prot(vma)])
}

/// What may only be executed may be read, too, until protection keys are set: the kernel would take one for it.
fn early_prot(vma: &Vma) -> u64 {
    u64::from(if vma.prot == prot::EXEC { prot::READ | prot::EXEC } else { vma.prot })
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

pub fn mmap(vma: &Vma, fd: i32) -> Call {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    let mut offset = 0;
    flags |= match vma.flags {
        flags if flags & vma_flag::SHARED != 0 => libc::MAP_SHARED,
        flags if flags & vma_flag::DROPPABLE != 0 => MAP_DROPPABLE,
        _ => libc::MAP_PRIVATE,
    };
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
    Call::new(libc::SYS_mmap, [vma.start, len, early_prot(vma), flags as u64, fd as i64 as u64, offset])
}

/// Sets what madvise(2) and names set.
pub fn advise<'a>(newborn: &mut Newborn, vmas: impl Iterator<Item = &'a Vma>) -> Result<(), RebuildError> {
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
