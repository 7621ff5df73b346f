//! What of a running process's address space stands in the way of moving it, beside its mappings.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use crate::check::Target;
use crate::error::{Context, Result, Unsupported};
use crate::procfs::{self, Area, Smaps, Status};
use crate::task;

/// Mappings that holding or building a process takes beside its own: see mremap(2) in mm/mremap.c, which wants some free.
const SPARE_MAPPINGS: usize = 16;
/// Bytes of address space that remote calls take in the process, and what they take more for each of its threads.
const SCRATCH: u64 = 320 << 10;
const SCRATCH_PER_THREAD: u64 = 16 << 10;

/// Names all of it.
pub(crate) fn obstacles<'a>(
    pid: i32,
    status: &Status,
    mappings: impl Iterator<Item = &'a (Area, Smaps)>,
) -> Result<Vec<Unsupported>> {
    let (mut watched, mut count) = (Vec::new(), 0);
    for (area, smaps) in mappings {
        count += 1;
        // Nobody tracks it yet: it is not our own.
        if smaps.has(b"uw") {
            let label = area.label();
            watched.push(format!(
                "its mapping at {:#x} ({label}) is watched by a userfaultfd, which cannot be moved yet",
                area.start
            ));
        }
    }
    let found = [executable(pid)?, tags(status), address_space(pid, status, count)?, map_count(count)];
    let all = found.into_iter().flatten().chain(watched);
    Ok(all.map(|what| Unsupported::new(pid, None, what)).collect())
}

/// A program that may no longer be executed: the copy could not have it as its executable.
fn executable(pid: i32) -> Result<Option<String>> {
    let exe = format!("/proc/{pid}/exe");
    let mode = std::fs::metadata(&exe).of(pid, "looking at its executable")?.mode();
    Ok((mode & 0o111 == 0).then(|| {
        let path = std::fs::read_link(&exe).map_or(exe, |path| procfs::shown(path.as_os_str().as_bytes()));
        format!(
            "its executable {path} may no longer be executed (mode {:o}), so that no copy could have it: chmod +x it first",
            mode & 0o7777
        )
    }))
}

fn tags(status: &Status) -> Option<String> {
    let what = if status.shadow_stack {
        "it has shadow stacks"
    } else if status.untag_mask != u64::MAX {
        "it has tags in its addresses (ARCH_ENABLE_TAGGED_ADDR)"
    } else {
        return None;
    };
    Some(format!("{what}, which cannot be moved yet"))
}

/// Remote calls need a mapping of their own in the process.
fn address_space(pid: i32, status: &Status, mappings: usize) -> Result<Option<String>> {
    let limits = task::rlimits(&procfs::read(pid, "limits").of(pid, "reading its limits")?);
    let limit = limits.get(libc::RLIMIT_AS as usize).map_or(u64::MAX, |(soft, _)| *soft);
    let needed = SCRATCH + SCRATCH_PER_THREAD * u64::from(status.threads) + 4 * mappings as u64;
    let room = limit.saturating_sub(status.vm_size);
    Ok((room < needed).then(|| {
        format!(
            "its address space is nearly as large as its RLIMIT_AS allows ({limit} bytes, {room} free), and holding it takes \
             {needed} more: raise that first (prlimit --pid {pid} --as)"
        )
    }))
}

fn map_count(count: usize) -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let most: usize = text.trim().parse().ok()?;
    (count + SPARE_MAPPINGS > most).then(|| {
        format!(
            "it has {count} mappings of the {most} that a process may have here, and moving it takes {SPARE_MAPPINGS} more: \
             raise vm.max_map_count first"
        )
    })
}

impl Target {
    /// The mappings that are sealed, as far as was known when they were last looked at.
    pub fn sealed(&self, vmas: &[pc_image::Vma]) -> Vec<(u64, u64)> {
        let is = |vma: &&pc_image::Vma| {
            let known = self.known.get(&vma.start).filter(|(area, _)| area.end == vma.end);
            !by_kernel(vma) && known.is_some_and(|(_, smaps)| smaps.has(b"sl"))
        };
        vmas.iter().filter(is).map(|vma| (vma.start, vma.end)).collect()
    }
}

/// A kernel may seal its own mappings in every process, the copy too.
fn by_kernel(vma: &pc_image::Vma) -> bool {
    use pc_image::Backing::{Vdso, Vsyscall, Vvar, VvarVclock};
    matches!(vma.backing, Vdso | Vvar | VvarVclock | Vsyscall)
}
