//! Files by path: judged, and opened.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use pc_image::{File, FileNeed};

use crate::error::{Context, RebuildError};
use crate::place::Place;

const KIND: u32 = libc::S_IFMT;

/// Its path.
pub fn path_of(file: &File) -> &Path {
    Path::new(OsStr::from_bytes(&file.path))
}

/// Refuses a file that is not what the process needs.
pub fn judge(place: &Place, file: &File) -> Result<(), RebuildError> {
    let path = path_of(file);
    let refuse = |why: String| Err(RebuildError::Unsupported(format!("{}: {why}", path.display())));
    if !path.is_absolute() {
        return refuse("the path is not absolute".into());
    }
    match look_at(place, file) {
        Ok(meta) => judge_found(place, file, &meta),
        Err(err) => refuse(format!("{err} (the process uses it)")),
    }
}

/// A link that was opened itself (`O_PATH`) is not followed.
fn look_at(place: &Place, file: &File) -> io::Result<Metadata> {
    let path = path_of(file);
    if is_link(file) {
        return fs::File::from(place.open(path, libc::O_PATH | libc::O_NOFOLLOW, 0)?).metadata();
    }
    place.metadata(path)
}

fn is_link(file: &File) -> bool {
    file.mode & KIND == libc::S_IFLNK
}

/// The same of one that is mapped or executed: not even longer than it was.
pub fn judge_mapped(place: &Place, file: &File) -> Result<(), RebuildError> {
    if file.need != FileNeed::Same || file.build_id.is_some() {
        return Ok(());
    }
    let meta = look_at(place, file).what_of(|| format!("looking at {}", path_of(file).display()))?;
    match (meta.size() == file.size, mtime(&meta) == file.mtime) {
        (true, true) => Ok(()),
        (false, _) => Err(other_size(file, &meta)),
        _ => Err(other_time(file)),
    }
}

/// The same of one that was found at its path.
pub fn judge_found(place: &Place, file: &File, meta: &Metadata) -> Result<(), RebuildError> {
    let path = path_of(file);
    let refuse = |why: String| Err(RebuildError::Unsupported(format!("{}: {why}", path.display())));
    if meta.mode() & KIND != file.mode & KIND {
        return refuse("it is of another kind here".into());
    }
    match file.need {
        FileNeed::Same => same(place, file, path, meta),
        FileNeed::Exists => Ok(()),
        FileNeed::Kind if is_device(file.mode) && meta.rdev() != file.rdev => {
            refuse("it is another device here".into())
        }
        FileNeed::Kind => Ok(()),
    }
}

fn is_device(mode: u32) -> bool {
    matches!(mode & KIND, libc::S_IFCHR | libc::S_IFBLK)
}

fn same(place: &Place, file: &File, path: &Path, meta: &Metadata) -> Result<(), RebuildError> {
    let refuse = |why: String| Err(RebuildError::Unsupported(format!("{}: {why}", path.display())));
    if let Some(wanted) = &file.build_id {
        let here = build_id(place, path).what_of(|| format!("reading {}", path.display()))?;
        return if here.as_ref() == Some(wanted) {
            Ok(())
        } else {
            refuse("it has another build id here".into())
        };
    }
    // A log that is read may have grown meanwhile; what is mapped is judged once more.
    let grown = meta.size() > file.size && mtime(meta) >= file.mtime;
    if meta.size() != file.size && !grown {
        return Err(other_size(file, meta));
    }
    if mtime(meta) != file.mtime && !grown {
        return Err(other_time(file));
    }
    Ok(())
}

fn other_size(file: &File, meta: &Metadata) -> RebuildError {
    let (path, here, there) = (path_of(file).display(), meta.size(), file.size);
    RebuildError::Unsupported(format!("{path}: it has {here} bytes here, {there} at the source"))
}

fn other_time(file: &File) -> RebuildError {
    let path = path_of(file).display();
    RebuildError::Unsupported(format!("{path}: it was modified at another time than at the source"))
}

fn mtime(meta: &Metadata) -> i64 {
    meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
}

/// A writable file has to reach at least to the offset that a descriptor has.
pub fn judge_offset(file: &File, meta: &Metadata, offset: u64) -> Result<(), RebuildError> {
    let path = path_of(file);
    if meta.mode() & KIND == libc::S_IFREG && meta.size() < offset.min(file.size) {
        return Err(RebuildError::Unsupported(format!(
            "{}: it has only {} bytes here, and the process is at {offset}",
            path.display(),
            meta.size()
        )));
    }
    Ok(())
}

/// Opens it with these flags of open(2), never becoming anybody's controlling terminal, never creating anything.
pub fn open(place: &Place, file: &File, flags: i32) -> Result<OwnedFd, RebuildError> {
    let path = path_of(file);
    let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
    // Beside O_PATH openat2(2) takes no flag that has no meaning then.
    const BESIDE_PATH: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let flags = if flags & libc::O_PATH != 0 { flags & BESIDE_PATH } else { flags | libc::O_NOCTTY };
    let flags = if is_link(file) { flags | libc::O_NOFOLLOW } else { flags };
    place.open(path, flags, 0).what_of(|| format!("opening {}", path.display()))
}

/// The GNU build id of an ELF file.
fn build_id(place: &Place, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let elf = fs::File::from(place.open(path, libc::O_RDONLY, 0)?);
    let mut header = [0u8; 64];
    if elf.read_exact_at(&mut header, 0).is_err() || header[..4] != *b"\x7fELF" || header[4] != 2 {
        return Ok(None);
    }
    let phoff = word(&header, 32, 8);
    let (phentsize, phnum) = (word(&header, 54, 2), word(&header, 56, 2));
    if phentsize != 56 {
        return Ok(None);
    }
    let mut programs = vec![0u8; (phentsize * phnum) as usize];
    if elf.read_exact_at(&mut programs, phoff).is_err() {
        return Ok(None);
    }
    const PT_NOTE: u64 = 4;
    for program in programs.chunks_exact(56).filter(|p| word(p, 0, 4) == PT_NOTE) {
        let mut notes = vec![0u8; word(program, 32, 8).min(1 << 16) as usize];
        if elf.read_exact_at(&mut notes, word(program, 8, 8)).is_err() {
            continue;
        }
        if let Some(id) = find_note(&notes) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// A little-endian word of `len` bytes; the caller has the bytes.
fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))
}

fn find_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u64 = 3;
    while notes.len() >= 12 {
        let (namesz, descsz, kind) = (word(notes, 0, 4), word(notes, 4, 4), word(notes, 8, 4));
        let desc = 12 + namesz.next_multiple_of(4) as usize;
        let end = desc + descsz as usize;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return notes.get(desc..end).map(<[u8]>::to_vec);
        }
        notes = notes.get(end.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (kind, desc) in [(1u32, vec![1u8; 16]), (3, vec![7; 20])] {
            notes.extend(4u32.to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"GNU\0");
            notes.extend(desc);
        }
        assert_eq!(find_note(&notes), Some(vec![7; 20]));
        assert_eq!(find_note(&notes[..40]), None);
    }

    #[test]
    fn another_size_is_refused_by_name() {
        let file = File {
            id: pc_image::FileId(1),
            path: b"/proc/self/exe".to_vec(),
            mode: libc::S_IFREG,
            size: 1 << 60, // one that is read may have grown, not shrunk
            mtime: 0,
            rdev: 0,
            build_id: None,
            need: FileNeed::Same,
        };
        let error = judge(&Place::Ours, &file).unwrap_err().to_string();
        assert!(
            error.contains("/proc/self/exe") && error.contains("1152921504606846976 at the source"),
            "{error}"
        );
    }
}
