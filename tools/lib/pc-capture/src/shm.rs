//! Shared memory that the process alone has: memfds and shared anonymous memory.
//!
//! An object is opened from outside, and its content read through the file rather than through a mapping: it may be
//! mapped twice, in part or not at all, and what is written through the file (pwrite(2), ftruncate(2), punched holes) no
//! tracking of mappings sees. So its pages are hashed, and compared in every round and at the stop. While it is held open
//! its inode number is nobody else's.
//!
//! Not carried: bytes that were written through a mapping after the end of the object, in its last page.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use pc_image::{
    Backing, OpenFileKind, PAGE_SIZE, Ranges, Record, ShmFile, ShmState, Space, SpaceId, SpaceKind, Zap,
};
use pc_track::{Hashes, Room};

use crate::error::{CaptureError, Context, Result, Unsupported};
use crate::figures::micros;
use crate::memory::{How, Span};
use crate::openfile::{Descriptor, Fds};
use crate::pages::{self, Copied, CopyPlan, Patching};
use crate::procfs::{Area, parse_maps, shown};
use crate::regular::device;
use crate::rounds::{Left, seed};
use crate::session::Session;
use crate::task::SPACE;

/// What the kernel adds to the path of a file without a name.
const DELETED: &[u8] = b" (deleted)";

/// One object.
#[derive(Debug)]
struct Object {
    id: SpaceId,
    /// As /proc/PID/maps shows it.
    name: String,
    file: File,
    /// The descriptor or the mapping at which it was found first.
    found: Place,
    /// Nobody else has it, as far as can be seen.
    alone: bool,
    /// It was found in the look that is being taken.
    seen: bool,
    /// What the destination knows.
    told: Option<ShmState>,
    state: ShmState,
    /// Where the object has content.
    content: Vec<(u64, u64)>,
    /// What the destination holds and the object no longer has.
    zaps: Vec<(u64, u64)>,
    sent: Ranges,
    hashes: Hashes,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Descriptor(i32),
    Mapping(u64),
}

/// The objects of one process.
#[derive(Debug)]
pub(crate) struct Objects {
    pid: i32,
    /// The device on which the kernel makes all of them.
    device: Option<(u32, u32)>,
    /// By inode number.
    known: BTreeMap<u64, Object>,
    next: u32,
    /// Pages that the last pass sent or patched, and the bytes that these took.
    last_sent: (u64, u64),
    /// For hashes of blocks.
    pub room: Room,
}

impl Objects {
    /// None found yet.
    pub fn new(pid: i32) -> Self {
        let own = memfd_create(c"pc-dump", MFdFlags::MFD_CLOEXEC).map(File::from);
        let device = own.ok().and_then(|own| own.metadata().ok()).map(|meta| device(meta.dev()));
        Self {
            pid,
            device,
            known: BTreeMap::new(),
            next: SPACE.0 + 1,
            last_sent: (0, 0),
            room: Room::default(),
        }
    }

    fn takes(&self, device: (u32, u32), name: &[u8]) -> bool {
        self.device == Some(device) && (name.starts_with(b"/memfd:") || name == b"/dev/zero (deleted)")
    }

    /// Whether a mapping shows such an object.
    pub fn is_mapped_by(&self, area: &Area) -> bool {
        self.takes(area.dev, &area.name)
    }

    /// Whether a descriptor is of such an object.
    pub fn is_open_as(&self, d: &Descriptor) -> bool {
        self.takes(device(d.meta.dev()), &d.link)
    }

    /// What such a mapping shows.
    pub fn mapped(&mut self, area: &Area) -> Result<Backing> {
        let path = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, area.start, area.end);
        let space = self.find(area.inode, &area.name, &path, Place::Mapping(area.start))?;
        Ok(Backing::Shm { space, offset: area.offset })
    }

    fn find(&mut self, inode: u64, name: &[u8], path: &str, found: Place) -> Result<SpaceId> {
        if let Some(object) = self.known.get_mut(&inode) {
            object.seen = true;
            return Ok(object.id);
        }
        let object = self.open(inode, name, path, found)?;
        let id = object.id;
        self.next += 1;
        self.known.insert(inode, object);
        Ok(id)
    }

    fn open(&self, inode: u64, name: &[u8], path: &str, found: Place) -> Result<Object> {
        let pid = self.pid;
        let what = || format!("opening its shared memory by {path}");
        let file = File::open(path).of(pid, what())?;
        let meta = file.metadata().of(pid, what())?;
        if meta.ino() != inode || self.device != Some(device(meta.dev())) {
            return Err(io::Error::from(ErrorKind::NotFound)).of(pid, what());
        }
        let id = SpaceId(self.next);
        // What maps has is ambiguous where there is a backslash.
        let link = fs::read_link(path).map(|link| link.into_os_string().into_vec());
        let Ok(name) = String::from_utf8(link.unwrap_or_else(|_| name.to_vec())) else {
            return refuse(pid, found, &shown(name), "has a name that is no text, which cannot be moved yet");
        };
        let state = state(&file, id).of(pid, what())?;
        Ok(Object {
            id,
            name,
            file,
            found,
            alone: false,
            seen: true,
            told: None,
            state,
            content: Vec::new(),
            zaps: Vec::new(),
            sent: Ranges::default(),
            hashes: Hashes::new(seed(), &self.room),
        })
    }

    /// A look at mappings and descriptors begins: what it does not find is gone.
    pub fn begin_look(&mut self) {
        self.known.values_mut().for_each(|object| object.seen = false);
    }

    /// Looks for objects that are only open.
    fn look_at_descriptors(&mut self, all: &[Descriptor]) -> Result<()> {
        for d in all.iter().filter(|d| d.link.ends_with(DELETED)) {
            if self.is_open_as(d) {
                let path = format!("/proc/{}/fd/{}", self.pid, d.fd);
                match self.find(d.meta.ino(), &d.link, &path, Place::Descriptor(d.fd)) {
                    Err(err) if is_gone(&err) => {} // closed meanwhile
                    found => drop(found?),
                }
            }
        }
        Ok(())
    }

    /// Names the objects that other processes have, too. Each is judged once: later nobody can come by it unseen but from
    /// the process itself.
    pub fn judge(&mut self) -> Result<Vec<Unsupported>> {
        let mut fresh: Vec<_> = self.known.iter_mut().filter(|(_, object)| !object.alone).collect();
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let pid = self.pid;
        let mut bad = Vec::new();
        for other in fs::read_dir("/proc").of(pid, "looking for who shares its memory")?.flatten() {
            let other = other.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(other) = other.filter(|other| ![pid, std::process::id() as i32].contains(other)) else {
                continue;
            };
            let theirs = objects_of(other, self.device);
            for (_, object) in fresh.iter().filter(|(inode, _)| theirs.contains(inode)) {
                let why = format!("is shared with process {other}, which cannot be moved yet");
                bad.push(refusal(pid, object.found, &object.name, &why));
            }
        }
        if bad.is_empty() {
            fresh.iter_mut().for_each(|(_, object)| object.alone = true);
        }
        Ok(bad)
    }

    /// The spaces that they are.
    pub fn spaces(&self) -> impl Iterator<Item = Space> {
        self.known.values().map(Object::space)
    }

    /// Bytes that they hold.
    pub fn bytes(&self) -> u64 {
        let held = self.known.values().filter_map(|object| object.file.metadata().ok());
        held.map(|meta| meta.blocks() * 512).sum()
    }

    /// Bytes that a stop would have to read.
    pub fn compared(&self) -> u64 {
        let sent = self.known.values().flat_map(|object| object.sent.ranges());
        sent.map(|(start, end)| end - start).sum()
    }

    /// As much as in the last pass will have to be sent again.
    pub fn left(&self) -> Left {
        let (pages, to_send) = self.last_sent;
        Left { written: pages * PAGE_SIZE, to_send }
    }

    /// Reads what the objects are now. Gives those that are no more and that the destination knows.
    fn refresh(&mut self) -> Result<Vec<SpaceId>> {
        let pid = self.pid;
        let gone = self.known.values().filter(|object| !object.seen && object.told.is_some());
        let gone = gone.map(|object| object.id).collect();
        self.known.retain(|_, object| object.seen);
        for object in self.known.values_mut() {
            object.refresh().of(pid, format_args!("looking at its shared memory {}", object.name))?;
        }
        Ok(gone)
    }
}

impl Object {
    fn space(&self) -> Space {
        Space { id: self.id, kind: SpaceKind::Shm { size: self.state.size, name: self.name.clone() } }
    }

    fn refresh(&mut self) -> io::Result<()> {
        self.state = state(&self.file, self.id)?;
        let room = self.state.size.next_multiple_of(PAGE_SIZE);
        // Cutting it off at the destination clears the rest of the last page,
        if self.told.as_ref().is_some_and(|told| told.size > self.state.size) {
            self.hashes.forget((self.state.size / PAGE_SIZE * PAGE_SIZE, room));
        }
        // and takes these pages away.
        for range in self.sent.within(room, u64::MAX) {
            self.sent.remove(range.0, range.1);
            self.hashes.forget(range);
        }
        self.content = content(&self.file, room)?;
        self.zaps = self.sent.take_missing(self.content.iter().copied());
        self.zaps.iter().for_each(|range| self.hashes.forget(*range));
        Ok(())
    }
}

fn state(file: &File, space: SpaceId) -> io::Result<ShmState> {
    let meta = file.metadata()?;
    let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS)? as u32;
    let mode = meta.mode() & !libc::S_IFMT;
    Ok(ShmState { space, size: meta.size(), seals, mode, uid: meta.uid(), gid: meta.gid() })
}

/// The pages below `room` that have content: lseek(2) with `SEEK_DATA`.
fn content(file: &File, room: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |from: u64, whence: Whence| match lseek(file, from as i64, whence) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(err) => Err(io::Error::from(err)),
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, Whence::SeekData)?.filter(|start| *start < room) {
        // It may have been cut off meanwhile.
        let Some(hole) = seek(start, Whence::SeekHole)? else { break };
        at = hole.next_multiple_of(PAGE_SIZE).min(room);
        ranges.push((start / PAGE_SIZE * PAGE_SIZE, at));
        if at == room {
            break;
        }
    }
    Ok(ranges)
}

/// Inode numbers of the objects that a process has mapped or open; none of one that may not be looked at.
fn objects_of(pid: i32, on: Option<(u32, u32)>) -> Vec<u64> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let lines = maps.split(|b| *b == b'\n').filter(|line| line.ends_with(DELETED));
    let areas = lines.filter_map(parse_maps).flatten().filter(|area| Some(area.dev) == on);
    let mut found: Vec<u64> = areas.map(|area| area.inode).collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let nameless = |link: std::path::PathBuf| link.as_os_str().as_bytes().ends_with(DELETED);
        if fs::read_link(entry.path()).is_ok_and(nameless)
            && let Ok(meta) = fs::metadata(entry.path())
            && Some(device(meta.dev())) == on
        {
            found.push(meta.ino());
        }
    }
    found
}

fn refusal(pid: i32, found: Place, name: &str, why: &str) -> Unsupported {
    match found {
        Place::Descriptor(fd) => Unsupported::new(pid, Some(fd), format!("{name}, which {why}")),
        Place::Mapping(start) => Unsupported::mapping(pid, start, format!("{name}, which {why}")),
    }
}

fn refuse<T>(pid: i32, found: Place, name: &str, why: &str) -> Result<T> {
    Err(CaptureError::Unsupported(vec![refusal(pid, found, name, why)]))
}

/// Whether a running process has unmapped or closed an object before it could be opened.
pub(crate) fn is_gone(err: &CaptureError) -> bool {
    matches!(err, CaptureError::Kernel { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// A descriptor.
pub(crate) fn capture(fds: &mut Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    let path = format!("/proc/{}/fd/{}", fds.pid, d.fd);
    let space = fds.files.objects.find(d.meta.ino(), &d.link, &path, Place::Descriptor(d.fd))?;
    Ok(OpenFileKind::Shm(ShmFile { space, offset: d.info.pos }))
}

impl Session<'_> {
    /// Ends the look at objects that [`Objects::begin_look`] began, after the look at mappings.
    pub(crate) fn look_at_objects(&mut self, descriptors: &[Descriptor]) -> Result<()> {
        let objects = &mut self.target.files.objects;
        objects.look_at_descriptors(descriptors)?;
        let bad = objects.judge()?;
        if !bad.is_empty() {
            return Err(CaptureError::Unsupported(bad));
        }
        let gone = objects.refresh()?;
        self.gone_objects.extend(gone);
        Ok(())
    }

    /// Says which objects are gone, new, or have another length or seals.
    pub(crate) fn object_births(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.gone_objects) {
            self.sink.record(&Record::SpaceGone(id))?;
        }
        for object in self.target.files.objects.known.values_mut() {
            if object.told.as_ref() == Some(&object.state) {
                continue;
            }
            if object.told.is_none() {
                self.sink.record(&Record::Space(object.space()))?;
            }
            self.sink.record(&Record::ShmState(object.state.clone()))?;
            object.told = Some(object.state.clone());
        }
        Ok(())
    }

    /// Says which pages are gone.
    pub(crate) fn object_zaps(&mut self) -> Result<()> {
        for object in self.target.files.objects.known.values_mut() {
            let ranges = std::mem::take(&mut object.zaps);
            if !ranges.is_empty() {
                self.counts.zapped_pages += pages_of(&ranges);
                self.sink.record(&Record::Zap(Zap { space: object.id, ranges }))?;
            }
        }
        Ok(())
    }

    /// Sends the pages that differ from those sent before.
    pub(crate) fn copy_objects(&mut self, running: bool, patching: Patching) -> Result<()> {
        let pid = self.target.pid;
        let how = if self.tracking.0.is_some() { How::Compare } else { How::Send };
        let mut all = Vec::new();
        let began = Instant::now();
        for object in self.target.files.objects.known.values_mut() {
            let content = std::mem::take(&mut object.content);
            self.figures.pages_scanned += pages_of(&content);
            content.iter().for_each(|(start, end)| object.sent.insert(*start, *end));
            let spans: Vec<Span> =
                content.iter().map(|&(start, end)| Span { start, end, readable: true, how }).collect();
            let plan = CopyPlan { pid, space: object.id, running, patching, cancel: self.cancel };
            let file = (&object.file, object.state.size);
            all.push(pages::copy_file(plan, file, &spans, &mut object.hashes, &mut self.sink)?);
        }
        all.iter().for_each(|copied| self.account(copied));
        self.figures.memdump_time += micros(began);
        if !running {
            self.figures.stop.copy += micros(began);
        }
        let sum = |of: fn(&Copied) -> u64| all.iter().map(of).sum::<u64>();
        let pages = sum(|copied| copied.counts.pages + copied.counts.patched_pages);
        let bytes = sum(|copied| copied.counts.pages * PAGE_SIZE + copied.patched.bytes);
        self.target.files.objects.last_sent = (pages, bytes);
        Ok(())
    }
}

fn pages_of(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// It is cut off, which is announced to the destination, and is as before when it is read.
    #[test]
    fn the_last_page_of_an_object_that_was_cut_off_counts_as_changed() {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(2 * PAGE_SIZE).unwrap();
        file.write_all_at(&[7; 2 * PAGE_SIZE as usize], 0).unwrap();
        let told = state(&file, SpaceId(1)).unwrap();
        let mut object = Object {
            id: SpaceId(1),
            name: "/memfd:test".to_owned(),
            file,
            found: Place::Descriptor(3),
            alone: true,
            seen: true,
            told: Some(told.clone()),
            state: told,
            content: Vec::new(),
            zaps: Vec::new(),
            sent: Ranges::default(),
            hashes: Hashes::new(seed(), &Room::default()),
        };
        let page = [7; PAGE_SIZE as usize];
        for addr in [0, PAGE_SIZE] {
            object.sent.insert(addr, addr + PAGE_SIZE);
            assert!(object.hashes.changed(addr, &page));
            object.hashes.changed_blocks(addr, &page, true);
        }
        object.file.set_len(PAGE_SIZE + 9).unwrap();
        object.refresh().unwrap();
        assert!(!object.hashes.changed(0, &page) && object.hashes.changed(PAGE_SIZE, &page));
        assert_eq!(object.hashes.changed_blocks(PAGE_SIZE, &page, false), None);
    }

    #[test]
    fn content_is_told_in_whole_pages_and_without_holes() {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(40 * PAGE_SIZE + 5).unwrap();
        assert_eq!(content(&file, 41 * PAGE_SIZE).unwrap(), []);
        file.write_all_at(b"x", 3 * PAGE_SIZE + 7).unwrap();
        file.write_all_at(b"xyz", 40 * PAGE_SIZE + 2).unwrap();
        let expected = [(3, 4), (40, 41)].map(|(start, end)| (start * PAGE_SIZE, end * PAGE_SIZE));
        assert_eq!(content(&file, 41 * PAGE_SIZE).unwrap(), expected);
        assert_eq!(content(&file, 20 * PAGE_SIZE).unwrap(), expected[..1]);
    }
}
