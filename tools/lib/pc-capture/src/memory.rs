//! Mappings of an address space, and which of their pages travel.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use pc_image::{Backing, Vma, prot, rules, vma_flag};
use pc_sys::pagemap::{PageIs, PageRegion, Pagemap, Query};

use crate::error::{CaptureError, Context, Result, Unsupported};
use crate::file::Files;
use crate::procfs::{self, Area, Smaps, parse_maps, parse_smaps};
use crate::vm_flags;

/// Mappings with what only smaps shows, by start address.
pub(crate) type Known = HashMap<u64, (Area, Smaps)>;

/// A process with less memory has its smaps read while it is stopped, too (9 ms a GiB).
const CHEAP: u64 = 32 << 20;

/// Of mappings it has this many at the most (4 µs a mapping).
const FEW: usize = 500;

/// Reads smaps, which takes time in proportion to the resident memory.
pub(crate) fn read_known(pid: i32) -> Result<Known> {
    let text = procfs::read_bytes(pid, "smaps").of(pid, "reading its smaps")?;
    let all = parse_smaps(&text).ok_or(ErrorKind::InvalidData).of(pid, "reading its smaps")?;
    Ok(all.into_iter().map(|(area, smaps)| (area.start, (area, smaps))).collect())
}

/// The mappings of a running process: as far as `known` has them just the same, else from smaps.
///
/// The kernel does not say them all at once, so what changes meanwhile may be listed twice. Of two that overlap the first
/// is taken: a later look finds what became of the other.
pub(crate) fn read_running(pid: i32, known: &mut Known) -> Result<Vec<Area>> {
    let mut areas = read_maps(pid)?;
    if !areas.iter().all(|area| is_known(known, area)) {
        *known = read_known(pid)?;
        areas = known.values().map(|(area, _)| area.clone()).collect();
        areas.sort_unstable_by_key(|area| area.start);
    }
    let mut behind = 0;
    areas.retain(|area| {
        let apart = area.start >= behind;
        behind = behind.max(area.end);
        apart
    });
    Ok(areas)
}

/// The mappings of a process that stands still. What smaps shows of those that `known` has just the same, or had before
/// they grew or shrank, is taken from there, unless reading it again costs next to nothing.
pub(crate) fn read_standing(pid: i32, known: &mut Known, memory: u64) -> Result<Vec<Area>> {
    let areas = read_maps(pid)?;
    if memory < CHEAP && areas.len() < FEW {
        *known = read_known(pid)?;
        return Ok(areas);
    }
    for area in &areas {
        if is_known(known, area) {
            continue;
        }
        let Some((_, smaps)) = known.get(&area.start).filter(|(old, _)| same_but_length(old, area)) else {
            *known = read_known(pid)?;
            break;
        };
        let smaps = smaps.clone();
        known.insert(area.start, (area.clone(), smaps));
    }
    Ok(areas)
}

fn read_maps(pid: i32) -> Result<Vec<Area>> {
    let text = procfs::read_bytes(pid, "maps").of(pid, "reading its maps")?;
    parse_maps(&text).ok_or(ErrorKind::InvalidData).of(pid, "reading its maps")
}

/// The ranges of private mappings whose pages may travel, ascending; what lies between and never does is announced as
/// `(None, end)`.
pub(crate) fn private_ranges(pid: i32) -> Result<Vec<(Option<u64>, u64)>> {
    let travels = |area: &Area| !area.shared && !area.name.starts_with(b"[v");
    let areas = read_maps(pid)?;
    Ok(areas.into_iter().map(|area| (travels(&area).then_some(area.start), area.end)).collect())
}

fn is_known(known: &Known, area: &Area) -> bool {
    known.get(&area.start).is_some_and(|(old, _)| old == area)
}

fn same_but_length(old: &Area, new: &Area) -> bool {
    Area { end: new.end, ..old.clone() } == *new
}

/// Turns mappings into records; refuses by name what cannot be rebuilt.
pub(crate) fn vmas(pid: i32, areas: &[Area], known: &Known, files: &mut Files) -> Result<Vec<Vma>> {
    areas.iter().map(|area| vma(pid, area, known, files)).collect()
}

/// Turns one mapping into a record.
pub(crate) fn vma(pid: i32, area: &Area, known: &Known, files: &mut Files) -> Result<Vma> {
    let Some((_, smaps)) = known.get(&area.start).filter(|(old, _)| old == area) else {
        let gone = std::io::Error::other("the mapping changed while it was looked at");
        return Err(gone).of(pid, format_args!("reading the mapping at {:#x}", area.start));
    };
    let object = files.objects.is_mapped_by(area);
    if let Some(why) = unmovable(area, smaps, object) {
        return refuse(pid, area, &why);
    }
    let backing = match object {
        true => files.objects.mapped(area)?,
        false => backing(pid, area, smaps, files).or_else(|why| refuse(pid, area, &why))?,
    };
    let name = area.name.strip_prefix(b"[anon:").and_then(|name| name.strip_suffix(b"]"));
    let vma = Vma {
        start: area.start,
        end: area.end,
        prot: area.prot,
        flags: flags(area, smaps),
        pkey: smaps.pkey,
        backing,
        name: name.map(|name| String::from_utf8_lossy(name).into_owned()),
    };
    match rules::mapping(&vma) {
        None => Ok(vma),
        Some(why) => refuse(pid, area, &why),
    }
}

/// `why` says what it does: "is sealed", or "shows" what cannot be moved by itself.
fn refuse<T>(pid: i32, area: &Area, why: &str) -> Result<T> {
    let label = if area.name.is_empty() { "anonymous memory".to_owned() } else { area.label() };
    let what = match why.strip_prefix("shows ") {
        Some(shown) if shown.starts_with('/') => shown.to_owned(),
        _ => format!("{label} {why}"),
    };
    Err(CaptureError::Unsupported(vec![Unsupported::mapping(pid, area.start, what)]))
}

/// Why a mapping cannot be moved, whatever it shows; `object` if that is shared memory.
fn unmovable(area: &Area, smaps: &Smaps, object: bool) -> Option<String> {
    let name = area.name.as_slice();
    let why = if matches!(name, b"[vdso]" | b"[vvar]" | b"[vvar_vclock]" | b"[vsyscall]") {
        return None;
    } else if name.starts_with(b"/[aio]") || name == b"[aio]" {
        "is a context of aio, which cannot be moved yet"
    } else if name.starts_with(b"anon_inode:[io_uring]") {
        "is an io_uring's, which cannot be moved yet"
    } else if name == b"[uprobes]" {
        "is where the kernel steps over its probes (uprobes): it can be moved once nobody probes it any more"
    } else if name.starts_with(SECRET) && area.dev.0 == 0 {
        "is secret memory (memfd_secret), which nobody but the process itself can read"
    } else if let Some(why) = vm_flags::refusal(smaps) {
        return Some(why);
    } else if area.shared && !object && (smaps.has(b"mw") || area.prot & prot::WRITE != 0) {
        "is shared and may be written, which cannot be moved yet"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// How maps and descriptors show secret memory.
pub(crate) const SECRET: &[u8] = b"/secretmem";

fn flags(area: &Area, smaps: &Smaps) -> u32 {
    const TABLE: [(&[u8; 2], u32); 14] = [
        (b"gd", vma_flag::GROWSDOWN),
        (b"nr", vma_flag::NORESERVE),
        (b"lo", vma_flag::LOCKED),
        (b"lf", vma_flag::LOCKED_ONFAULT),
        (b"mw", vma_flag::MAYWRITE),
        (b"dc", vma_flag::DONTFORK),
        (b"dd", vma_flag::DONTDUMP),
        (b"wf", vma_flag::WIPEONFORK),
        (b"mg", vma_flag::MERGEABLE),
        (b"hg", vma_flag::HUGEPAGE),
        (b"nh", vma_flag::NOHUGEPAGE),
        (b"sr", vma_flag::SEQUENTIAL),
        (b"rr", vma_flag::RANDOM),
        (b"dp", vma_flag::DROPPABLE),
    ];
    let shared = if area.shared { vma_flag::SHARED } else { 0 };
    TABLE.iter().filter(|(word, _)| smaps.has(word)).fold(shared, |flags, (_, flag)| flags | flag)
}

fn backing(pid: i32, area: &Area, smaps: &Smaps, files: &mut Files) -> std::result::Result<Backing, String> {
    let name = area.name.as_slice();
    if smaps.has(b"ht") {
        if area.inode != 0 && !name.starts_with(b"/anon_hugepage") {
            return Err("shows a file of huge pages, which cannot be moved yet".to_owned());
        }
        return Ok(Backing::Hugetlb { shift: smaps.page_size.trailing_zeros() as u8 });
    }
    match name {
        b"[vdso]" => Ok(Backing::Vdso),
        b"[vvar]" => Ok(Backing::Vvar),
        b"[vvar_vclock]" => Ok(Backing::VvarVclock),
        b"[vsyscall]" => Ok(Backing::Vsyscall),
        b"" | b"[heap]" | b"[stack]" => Ok(Backing::Anonymous),
        // A private mapping of /dev/zero is anonymous memory.
        b"/dev/zero" if !area.shared => Ok(Backing::Anonymous),
        _ if name.starts_with(b"[anon:") => Ok(Backing::Anonymous),
        _ if area.dev.0 == 0 && name.starts_with(b"/memfd:") => {
            Err("is a memfd of huge pages, which cannot be moved yet".to_owned())
        }
        _ if area.dev.0 == 0 && name.starts_with(b"/SYSV") => {
            Err("is System V shared memory, which cannot be moved yet".to_owned())
        }
        _ if area.inode == 0 || !name.starts_with(b"/") => {
            Err("is of a kind that cannot be moved yet".to_owned())
        }
        _ => file(pid, area, files),
    }
}

fn file(pid: i32, area: &Area, files: &mut Files) -> std::result::Result<Backing, String> {
    let file = match files.mapped(area) {
        Some(file) => file,
        None => {
            let path = path(pid, area, files);
            let found = mapped_file(pid, area, &path, files)?;
            files.name_mapped(area, &path, &found).map_err(|why| format!("shows {why}"))?
        }
    };
    Ok(Backing::File { file, offset: area.offset })
}

/// Looks at the mapped file itself where the kernel lets us, else at what has its path now.
fn mapped_file(pid: i32, area: &Area, path: &[u8], files: &Files) -> std::result::Result<Metadata, String> {
    if let Ok(found) = std::fs::metadata(map_file(pid, area)) {
        return Ok(found);
    }
    match std::fs::metadata(files.reach(path)) {
        Ok(found) if found.ino() == area.inode => Ok(found),
        _ => Err("shows a file that has been removed or replaced, which cannot be moved yet".to_owned()),
    }
}

/// The path of a mapped file. What maps has is ambiguous where there is a backslash: it may stand for a newline, or be one.
fn path(pid: i32, area: &Area, files: &Files) -> Vec<u8> {
    if !area.name.contains(&b'\\') {
        return area.name.clone();
    }
    // To follow or read it takes CAP_CHECKPOINT_RESTORE.
    if let Ok(link) = std::fs::read_link(map_file(pid, area)) {
        return link.into_os_string().into_vec();
    }
    let is = |path: &[u8]| std::fs::metadata(files.reach(path)).is_ok_and(|meta| meta.ino() == area.inode);
    if is(&area.name) { area.name.clone() } else { procfs::unescape(&area.name) }
}

fn map_file(pid: i32, area: &Area) -> String {
    format!("/proc/{pid}/map_files/{:x}-{:x}", area.start, area.end)
}

/// A range of pages to be sent, all from one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// The process itself may read them; else they are read as a debugger does.
    pub readable: bool,
    /// What to do with them.
    pub how: How,
}

/// What is to be done with pages once they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// They are sent.
    Send,
    /// They are sent, and their hashes noted.
    Note,
    /// They are sent if their hashes differ from those noted before.
    Compare,
}

/// The pages of mappings that carry content, and guard pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// Present or swapped pages that differ from what the mapping shows by itself, ascending.
    pub spans: Vec<Span>,
    /// Guard pages, ascending.
    pub guards: Vec<(u64, u64)>,
    /// Pages looked at.
    pub scanned: u64,
}

/// Whether pages of a mapping travel at all.
pub(crate) fn carries_pages(vma: &Vma) -> bool {
    match vma.backing {
        Backing::Anonymous | Backing::Hugetlb { .. } => true,
        Backing::File { .. } | Backing::Shm { .. } => vma.flags & vma_flag::SHARED == 0,
        Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Vsyscall => false,
    }
}

/// Finds the pages that must be sent if nothing of the mappings was sent before.
pub fn present(pid: i32, pagemap: &Pagemap, vmas: &[Vma]) -> Result<Present> {
    let mut found = Present::default();
    let mut regions = Vec::new();
    for vma in vmas.iter().filter(|vma| carries_pages(vma)) {
        found.scanned += (vma.end - vma.start) / pc_image::PAGE_SIZE;
        scan(pagemap, vma, &mut regions).of(pid, format_args!("scanning the mapping at {:#x}", vma.start))?;
        for region in &regions {
            if region.categories & PageIs::GUARD.bits() != 0 {
                found.guards.push((region.start, region.end));
            } else {
                let readable = vma.prot & prot::READ != 0;
                found.spans.push(Span { start: region.start, end: region.end, readable, how: How::Send });
            }
        }
    }
    Ok(found)
}

fn scan(pagemap: &Pagemap, vma: &Vma, regions: &mut Vec<PageRegion>) -> std::io::Result<()> {
    let content = PageIs::PRESENT | PageIs::SWAPPED;
    let narrow = |query: Query| match vma.backing {
        Backing::File { .. } | Backing::Shm { .. } => query.without(PageIs::PFNZERO | PageIs::FILE),
        Backing::Hugetlb { .. } => query,
        _ => query.without(PageIs::PFNZERO),
    };
    let query = narrow(Query::any_of(content | PageIs::GUARD, PageIs::GUARD));
    match pagemap.scan(vma.start, vma.end, query, regions) {
        // A kernel before 6.15 knows no guard pages.
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
            pagemap.scan(vma.start, vma.end, narrow(Query::any_of(content, PageIs::empty())), regions)
        }
        done => done,
    }
}
