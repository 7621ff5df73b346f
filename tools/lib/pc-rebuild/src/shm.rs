//! Shared memory: memfds and shared anonymous memory, made here, filled as pages come, and mapped in the husk from
//! descriptors of ours. Pages go where they belong at once even while rounds are only kept: nothing is mapped then, and
//! of each page the latest word is all there is.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use pc_image::{Item, OpenFile, OpenFileKind, PAGE_SIZE, Pages, Patches, Record, ShmFile, ShmState, SpaceId};

use crate::error::{Context, RebuildError, missing};
use crate::image::Image;

/// What the kernel adds to the path of a file without a name.
const DELETED: &str = " (deleted)";

/// An object.
#[derive(Debug)]
struct Object {
    name: String,
    file: File,
    state: Option<ShmState>,
}

/// The objects of the image.
#[derive(Debug, Default)]
pub struct Objects {
    all: BTreeMap<SpaceId, Object>,
    /// Pages that came for them.
    pub pages: u64,
    /// Pages of which changed bytes came.
    pub patched: u64,
}

impl Objects {
    /// Makes an object of `size` bytes.
    pub fn born(&mut self, id: SpaceId, size: u64, name: &str) -> Result<(), RebuildError> {
        let file = make(size, name)?;
        self.all.insert(id, Object { name: name.to_owned(), file, state: None });
        Ok(())
    }

    /// It is no more. What is mapped of it stays until it is unmapped.
    pub fn gone(&mut self, id: SpaceId) {
        self.all.remove(&id);
    }

    /// Its length from here on, and what it is to be at the end.
    pub fn state(&mut self, state: ShmState) -> Result<(), RebuildError> {
        let object = self.all.get_mut(&state.space).ok_or_else(|| missing("space", state.space.0))?;
        object.resize(state.size)?;
        object.state = Some(state);
        Ok(())
    }

    /// Takes what is said of pages of an object; gives everything else back.
    pub fn take(&mut self, item: Item) -> Result<Option<Item>, RebuildError> {
        let space = match &item {
            Item::Pages(pages) => pages.space,
            Item::Patches(patches) => patches.space,
            Item::Record(record) => match &**record {
                Record::Zap(zap) => zap.space,
                Record::ZeroPages(zero) => zero.space,
                _ => return Ok(Some(item)),
            },
        };
        let Some(object) = self.all.get(&space) else { return Ok(Some(item)) };
        match item {
            Item::Patches(patches) => {
                object.patch(&patches)?;
                self.patched += patches.page_count();
            }
            Item::Pages(pages) => {
                object.write(&pages)?;
                self.pages += pages.runs.iter().map(|run| run.pages).sum::<u64>();
            }
            Item::Record(record) => match *record {
                Record::Zap(zap) => object.clear(&zap.ranges)?,
                Record::ZeroPages(zero) => object.clear(&zero.ranges)?,
                _ => {}
            },
        }
        Ok(None)
    }

    /// A description of its own of an object: with `flags` of open(2).
    pub fn open(&self, id: SpaceId, flags: i32) -> Result<OwnedFd, RebuildError> {
        let object = self.all.get(&id).ok_or_else(|| missing("shared memory", id.0))?;
        let access = flags & libc::O_ACCMODE;
        let rest = flags & !(libc::O_ACCMODE | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
        let opened = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(rest | libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", object.file.as_raw_fd()));
        Ok(opened.what_of(|| format!("opening {}", object.name))?.into())
    }

    /// The description with which it was made. It does not count as one that may write, so that the object can be executed
    /// (fexecve(3)): so it is what a program has that opened the object no second time.
    pub fn first(&self, id: SpaceId) -> Result<OwnedFd, RebuildError> {
        let object = self.all.get(&id).ok_or_else(|| missing("shared memory", id.0))?;
        Ok(object.file.try_clone().what_of(|| format!("opening {}", object.name))?.into())
    }

    /// Owners, permissions and seals, once everything is mapped, opened and filled.
    pub fn finish(&self) -> Result<(), RebuildError> {
        self.all.values().try_for_each(Object::finish)
    }
}

/// Makes it, by what its name says it is.
fn make(size: u64, name: &str) -> Result<File, RebuildError> {
    let what = || format!("making the shared memory {name}");
    if let Some(own) = name.strip_prefix("/memfd:") {
        let own = own.strip_suffix(DELETED).unwrap_or(own);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(own, flags).what_of(what)?);
        file.set_len(size).what_of(what)?;
        return Ok(file);
    }
    if name.strip_suffix(DELETED) == Some("/dev/zero") {
        return pc_sys::shm::shared_anonymous(size).what_of(what);
    }
    Err(RebuildError::Unsupported(format!("shared memory of this kind ({name}) is not supported")))
}

impl Object {
    fn resize(&self, size: u64) -> Result<(), RebuildError> {
        let what = || format!("setting the length of {}", self.name);
        if self.len()? != size { self.file.set_len(size).what_of(what) } else { Ok(()) }
    }

    fn len(&self) -> Result<u64, RebuildError> {
        Ok(self.file.metadata().what_of(|| format!("looking at {}", self.name))?.len())
    }

    /// Writes pages. The last may reach beyond the end, where nothing is.
    fn write(&self, pages: &Pages) -> Result<(), RebuildError> {
        let size = self.len()?;
        let mut data = pages.data();
        for run in &pages.runs {
            let len = run.pages.checked_mul(PAGE_SIZE).and_then(|len| usize::try_from(len).ok());
            let Some((bytes, rest)) = len.and_then(|len| data.split_at_checked(len)) else {
                return Err(self.no_room(run.addr, size));
            };
            self.write_at(run.addr, bytes, size)?;
            data = rest;
        }
        Ok(())
    }

    /// Writes changed bytes of pages.
    fn patch(&self, patches: &Patches) -> Result<(), RebuildError> {
        let size = self.len()?;
        patches.iter().try_for_each(|(patch, bytes)| self.write_at(patch.addr, bytes, size))
    }

    /// Writes bytes as far as the object goes, in whose pages they have to lie.
    fn write_at(&self, addr: u64, bytes: &[u8], size: u64) -> Result<(), RebuildError> {
        if addr / PAGE_SIZE * PAGE_SIZE >= size {
            return Err(self.no_room(addr, size));
        }
        let room = bytes.len().min(size.saturating_sub(addr) as usize);
        self.file.write_all_at(&bytes[..room], addr).what_of(|| format!("writing to {}", self.name))
    }

    fn no_room(&self, addr: u64, size: u64) -> RebuildError {
        RebuildError::Contradiction(format!("pages at {addr:#x} of {}, which has {size} bytes", self.name))
    }

    /// Has pages read as zero. Mappings of them show it.
    fn clear(&self, ranges: &[(u64, u64)]) -> Result<(), RebuildError> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for &(start, end) in ranges {
            let (Ok(at), Ok(len)) = (i64::try_from(start), i64::try_from(end.saturating_sub(start))) else {
                return Err(RebuildError::Contradiction(format!("pages at {start:#x} of {}", self.name)));
            };
            fallocate(&self.file, flags, at, len).what_of(|| format!("clearing pages of {}", self.name))?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), RebuildError> {
        let what = || format!("finishing {}", self.name);
        let state = self.state.as_ref().ok_or_else(|| {
            RebuildError::Contradiction(format!("the state of {} was never sent", self.name))
        })?;
        let meta = self.file.metadata().what_of(what)?;
        if (meta.uid(), meta.gid()) != (state.uid, state.gid) {
            fchown(&self.file, Some(state.uid), Some(state.gid)).what_of(what)?;
        }
        if meta.mode() & !libc::S_IFMT != state.mode {
            let mode = Permissions::from_mode(state.mode & !libc::S_IFMT);
            self.file.set_permissions(mode).what_of(what)?;
        }
        let seals = fcntl(self.file.as_fd(), FcntlArg::F_GET_SEALS).what_of(what)? as u32;
        if seals != state.seals {
            let seals = SealFlag::from_bits_retain(state.seals as i32);
            fcntl(self.file.as_fd(), FcntlArg::F_ADD_SEALS(seals))
                .what_of(|| format!("sealing {}", self.name))?;
        }
        Ok(())
    }
}

/// A descriptor as it was, at its offset.
pub fn build(image: &Image, open: &OpenFile, shm: &ShmFile) -> Result<OwnedFd, RebuildError> {
    let fd = if is_first(image, open, shm) {
        let first = image.objects.first(shm.space)?;
        let settable = OFlag::from_bits_truncate(open.flags as i32 & SETTABLE);
        fcntl(&first, FcntlArg::F_SETFL(settable)).what("setting the flags of shared memory")?;
        first
    } else {
        image.objects.open(shm.space, open.flags as i32)?
    };
    if shm.offset != 0 && open.flags as i32 & libc::O_PATH == 0 {
        let offset = i64::try_from(shm.offset).unwrap_or(i64::MAX);
        lseek(&fd, offset, Whence::SeekSet).what("seeking in shared memory")?;
    }
    Ok(fd)
}

/// Status flags that fcntl(2) can set.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;

/// Whether this is to be the description with which the object was made: the first that can be it.
fn is_first(image: &Image, open: &OpenFile, shm: &ShmFile) -> bool {
    const TELLING: i32 = libc::O_ACCMODE | libc::O_PATH | libc::O_DIRECT | libc::O_SYNC | libc::O_ASYNC;
    let can = |open: &&OpenFile| {
        let of = matches!(&open.kind, OpenFileKind::Shm(other) if other.space == shm.space);
        of && open.flags as i32 & TELLING == libc::O_RDWR
    };
    image.open_files.values().find(can).is_some_and(|first| first.id == open.id)
}

#[cfg(test)]
mod tests {
    use pc_image::PageRun;

    use super::*;

    const ID: SpaceId = SpaceId(3);

    fn object(size: u64) -> Objects {
        let mut objects = Objects::default();
        objects.born(ID, size, "/memfd:x (deleted)").unwrap();
        objects
    }

    fn pages(addr: u64, byte: u8) -> Item {
        let runs = vec![PageRun { addr, pages: 1 }];
        Item::Pages(Pages { space: ID, runs, payload: vec![byte; PAGE_SIZE as usize], data_offset: 0 })
    }

    fn bytes(objects: &Objects) -> Vec<u8> {
        let mut all = Vec::new();
        let mut file = File::from(objects.open(ID, libc::O_RDONLY).unwrap());
        std::io::Read::read_to_end(&mut file, &mut all).unwrap();
        all
    }

    #[test]
    fn the_last_page_ends_with_the_object_and_none_lies_behind() {
        let mut objects = object(PAGE_SIZE + 3);
        assert!(objects.take(pages(PAGE_SIZE, 7)).unwrap().is_none());
        assert_eq!(bytes(&objects), [vec![0; PAGE_SIZE as usize], vec![7; 3]].concat());
        assert!(matches!(objects.take(pages(2 * PAGE_SIZE, 7)), Err(RebuildError::Contradiction(_))));
    }

    #[test]
    fn patches_change_their_bytes_as_far_as_the_object_goes() {
        let mut objects = object(PAGE_SIZE + 3);
        objects.take(pages(0, 7)).unwrap();
        let patch = |addr| pc_image::Patch { addr, len: 2 };
        let patches = [1, PAGE_SIZE + 2, PAGE_SIZE + 90].map(patch).to_vec();
        let patches = Patches { space: ID, patches, payload: b"abcdef".to_vec(), data_offset: 0 };
        assert!(objects.take(Item::Patches(patches)).unwrap().is_none());
        let all = bytes(&objects);
        assert_eq!((&all[..4], &all[PAGE_SIZE as usize..]), (&b"\x07ab\x07"[..], &b"\0\0c"[..]));
        assert_eq!(objects.patched, 2);
    }

    #[test]
    fn what_is_cut_off_and_what_is_zapped_reads_as_zero() {
        let mut objects = object(3 * PAGE_SIZE);
        for at in 0..3 {
            objects.take(pages(at * PAGE_SIZE, 9)).unwrap();
        }
        let state = |size| ShmState { space: ID, size, seals: 0, mode: 0o777, uid: 0, gid: 0 };
        objects.state(state(PAGE_SIZE)).unwrap();
        objects.state(state(3 * PAGE_SIZE)).unwrap();
        let zap = pc_image::Zap { space: ID, ranges: vec![(0, PAGE_SIZE)] };
        objects.take(Item::Record(Box::new(Record::Zap(zap)))).unwrap();
        assert!(bytes(&objects).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_object_of_an_unknown_kind_is_refused() {
        let refused = Objects::default().born(ID, 4096, "/SYSV00000000 (deleted)");
        assert!(matches!(refused, Err(RebuildError::Unsupported(_))));
    }
}
