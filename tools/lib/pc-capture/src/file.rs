//! Files by path: what the destination must have, announced once each.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File as OsFile, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::PROC_SUPER_MAGIC;
use pc_image::{File, FileId, FileNeed};

use crate::error::{Context, Result, unsupported};
use crate::openfile::Descriptor;
use crate::procfs::{Area, shown};
use crate::shm::Objects;

/// Name, device and inode of a line of /proc/PID/maps.
type MapsName = (Vec<u8>, (u32, u32), u64);

/// The files of one process that were named so far.
#[derive(Debug)]
pub(crate) struct Files {
    pid: i32,
    /// Where the process's paths begin as we see them: nothing in our own mount namespace.
    prefix: PathBuf,
    /// By path, need, device and inode.
    known: HashMap<(Vec<u8>, FileNeed, u64, u64), FileId>,
    /// Files that are mapped, as /proc/PID/maps names them.
    mapped: HashMap<MapsName, FileId>,
    fresh: Vec<File>,
    /// Devices that were asked about, and whether each is a procfs.
    procfs: HashMap<u64, bool>,
    /// Files without a path: shared memory.
    pub objects: Objects,
}

impl Files {
    /// None named yet.
    pub fn new(pid: i32) -> Self {
        let ns = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
        let same = ns("self") == ns(&pid.to_string());
        let prefix = if same { PathBuf::new() } else { format!("/proc/{pid}/root").into() };
        Self {
            pid,
            prefix,
            known: HashMap::new(),
            mapped: HashMap::new(),
            fresh: Vec::new(),
            procfs: HashMap::new(),
            objects: Objects::new(pid),
        }
    }

    /// The same with no path named yet.
    pub fn anew(self) -> Self {
        Self { known: HashMap::new(), mapped: HashMap::new(), fresh: Vec::new(), ..self }
    }

    /// Whether a descriptor is open on a procfs. Each has a device of its own.
    pub fn is_procfs(&mut self, d: &Descriptor) -> bool {
        let at = || format!("/proc/{}/fd/{}", self.pid, d.fd);
        *self.procfs.entry(d.meta.dev()).or_insert_with(|| is_procfs(Path::new(&at())))
    }

    /// The number of a mapped file that was named before.
    pub fn mapped(&self, area: &Area) -> Option<FileId> {
        self.mapped.get(&(area.name.clone(), area.dev, area.inode)).copied()
    }

    /// The number of a mapped file that has this path and is `found`.
    pub fn name_mapped(
        &mut self,
        area: &Area,
        path: &[u8],
        found: &Metadata,
    ) -> std::result::Result<FileId, String> {
        let id = self.name(path, found, FileNeed::Same, true)?;
        self.mapped.insert((area.name.clone(), area.dev, area.inode), id);
        Ok(id)
    }

    /// A path of the process as this one can open it.
    pub fn reach(&self, path: &[u8]) -> PathBuf {
        let mut full = self.prefix.as_os_str().to_owned();
        full.push(OsStr::from_bytes(path));
        full.into()
    }

    /// The number of a file that the process reaches by `path` and that is `found`.
    /// `what` names it in a refusal if the path leads elsewhere; `build_id` if its contents are mapped.
    pub fn name(
        &mut self,
        path: &[u8],
        found: &Metadata,
        need: FileNeed,
        build_id: bool,
    ) -> std::result::Result<FileId, String> {
        let key = (path.to_vec(), need, found.dev(), found.ino());
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        let shown = shown(path);
        if found.nlink() == 0 {
            return Err(removed(&shown));
        }
        let there = self.reach(path);
        let same = std::fs::symlink_metadata(&there)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (found.dev(), found.ino()));
        if !same {
            return Err(format!("{shown}, which cannot be moved yet as its path leads to another file now"));
        }
        if is_procfs(&there)
            && let Some(why) = by_process(path)
        {
            return Err(why);
        }
        let id = FileId(self.known.len() as u32);
        self.fresh.push(File {
            id,
            path: path.to_vec(),
            mode: found.mode(),
            size: found.size(),
            mtime: found.mtime() * 1_000_000_000 + found.mtime_nsec(),
            rdev: found.rdev(),
            build_id: if build_id { elf_build_id(&there) } else { None },
            need,
        });
        self.known.insert(key, id);
        Ok(id)
    }

    /// A directory or executable behind a link of /proc/PID (`cwd`, `root`, `exe`).
    pub fn link(&mut self, link: &str, need: FileNeed) -> Result<FileId> {
        let at = format!("/proc/{}/{link}", self.pid);
        let path = std::fs::read_link(&at).of(self.pid, format_args!("reading {at}"))?;
        let found = std::fs::metadata(&at).of(self.pid, format_args!("looking at {at}"))?;
        self.name(path.as_os_str().as_bytes(), &found, need, link == "exe")
            .or_else(|why| unsupported(self.pid, None, format!("its {link} is {why}")))
    }

    /// The files named since the last call, to be sent.
    pub fn take_fresh(&mut self) -> Vec<File> {
        std::mem::take(&mut self.fresh)
    }
}

/// Why a file without a name cannot be moved.
pub(crate) fn removed(shown: &str) -> String {
    format!("{shown}, which cannot be moved yet as the file has been removed")
}

fn is_procfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC)
}

/// A path in a procfs that means a process, or may.
fn by_process(path: &[u8]) -> Option<String> {
    let inside = path.strip_prefix(b"/proc/");
    let plain = path == b"/proc"
        || inside.is_some_and(|inside| inside.first().is_none_or(|byte| !byte.is_ascii_digit()));
    (!plain).then(|| {
        format!("{}, which means a process, and cannot be moved by its path", String::from_utf8_lossy(path))
    })
}

/// The GNU build id of an ELF file (elf(5), `NT_GNU_BUILD_ID`).
fn elf_build_id(path: &Path) -> Option<Vec<u8>> {
    let file = OsFile::open(path).ok()?;
    let mut head = vec![0; 4096];
    let n = file.read_at(&mut head, 0).ok()?;
    head.truncate(n);
    let (offset, len) = note_segments(&head)?.into_iter().find_map(|(offset, len)| {
        let mut notes = vec![0; len];
        file.read_exact_at(&mut notes, offset).ok()?;
        find_build_id(&notes).map(|(at, len)| (offset + at as u64, len))
    })?;
    let mut id = vec![0; len];
    file.read_exact_at(&mut id, offset).ok()?;
    Some(id)
}

fn word(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Offsets and lengths of the `PT_NOTE` segments of a 64-bit ELF file.
fn note_segments(head: &[u8]) -> Option<Vec<(u64, usize)>> {
    const PT_NOTE: u64 = 4;
    const MOST: u64 = 64 << 10;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (word(head, 32, 8)?, word(head, 54, 2)?, word(head, 56, 2)?);
    let mut notes = Vec::new();
    for i in 0..count {
        let at = usize::try_from(table.checked_add(i * size)?).ok()?;
        let Some(kind) = word(head, at, 4) else { break };
        let len = word(head, at + 32, 8)?;
        if kind == PT_NOTE && len <= MOST {
            notes.push((word(head, at + 8, 8)?, len as usize));
        }
    }
    Some(notes)
}

/// Offset and length of the build id in a note segment.
fn find_build_id(notes: &[u8]) -> Option<(usize, usize)> {
    const NT_GNU_BUILD_ID: u64 = 3;
    let mut at = 0;
    loop {
        let (names, descs, kind) = (word(notes, at, 4)?, word(notes, at + 4, 4)?, word(notes, at + 8, 4)?);
        let (names, descs) = (names as usize, descs as usize);
        let name = at + 12;
        let desc = name.checked_add(names.next_multiple_of(4))?;
        if kind == NT_GNU_BUILD_ID && notes.get(name..name + names)? == b"GNU\0" {
            return (desc + descs <= notes.len()).then_some((desc, descs));
        }
        at = desc.checked_add(descs.next_multiple_of(4))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_found_behind_another_note() {
        let mut notes = Vec::new();
        for (kind, desc) in [(5u32, &b"12345678"[..]), (3, b"abcdef")] {
            notes.extend(4u32.to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"GNU\0");
            notes.extend(desc);
        }
        let (at, len) = find_build_id(&notes).unwrap();
        assert_eq!(&notes[at..at + len], b"abcdef");
        assert_eq!(find_build_id(&notes[..20]), None);
        assert_eq!(find_build_id(&[0xff; 40]), None);
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_build_id() {
        assert_eq!(elf_build_id(Path::new("/etc/passwd")), None);
        assert!(note_segments(b"\x7fELF\x02\x01").is_none());
    }
}
