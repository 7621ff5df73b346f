//! userfaultfd(2), as far as two uses need it: tracking by asynchronous write-protection (Linux 6.7), and filling memory
//! that was never touched without a fault for each page (`UFFDIO_COPY`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::check;

/// `UFFD_USER_MODE_ONLY`: all that a process without `CAP_SYS_PTRACE` may ask for.
pub const USER_MODE_ONLY: u64 = 1;

/// Arguments for a (remote) userfaultfd(2): close-on-exec, non-blocking, user mode only.
pub const OPEN_FLAGS: u64 = libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | USER_MODE_ONLY;

const UFFD_API: u64 = 0xaa;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;

/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

const _: () = assert!(size_of::<UffdioCopy>() == 0x28);

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

const _: () = assert!(size_of::<UffdioApi>() == 0x18);
const _: () = assert!(size_of::<UffdioRegister>() == 0x20);
const _: () = assert!(size_of::<UffdioRange>() == 0x10);

/// A userfaultfd of some process (perhaps another one), set up for asynchronous write-protect tracking.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

fn agree(fd: &OwnedFd, features: u64) -> io::Result<()> {
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: `api` is the structure that UFFDIO_API reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) }.into()).map(drop)
}

fn register(fd: &OwnedFd, (start, end): (u64, u64), mode: u64) -> io::Result<()> {
    let range = UffdioRange { start, len: end - start };
    let mut arg = UffdioRegister { range, mode, ioctls: 0 };
    // SAFETY: `arg` is the structure that UFFDIO_REGISTER reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &mut arg) }.into()).map(drop)
}

fn unregister(fd: &OwnedFd, (start, end): (u64, u64)) -> io::Result<()> {
    let arg = UffdioRange { start, len: end - start };
    // SAFETY: `arg` is the structure that UFFDIO_UNREGISTER reads.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_UNREGISTER, &arg) }.into()).map(drop)
}

impl Uffd {
    /// Agrees on the API with a new userfaultfd: asynchronous write-protection of anonymous, shared and huge pages, and
    /// of pages not populated yet. `EINVAL` where the kernel lacks one of these.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        agree(&fd, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM)?;
        Ok(Self(fd))
    }

    /// Starts tracking `[start, end)`, which must be mapped throughout. `EBUSY` where another userfaultfd has it,
    /// `EPERM` for a shared mapping that cannot be made writable.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        register(&self.0, (start, end), REGISTER_MODE_WP)
    }

    /// Ends tracking of `[start, end)`. Holds the address space's lock for a time that grows with the range.
    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        unregister(&self.0, (start, end))
    }
}

/// A userfaultfd of a process that does not run, to fill its untouched private anonymous memory. Whoever touches such
/// memory in a registered range before it is filled is stuck.
#[derive(Debug)]
pub struct Filler(OwnedFd);

impl Filler {
    /// Agrees on the API with a new userfaultfd.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        agree(&fd, 0)?;
        Ok(Self(fd))
    }

    /// Makes `[start, end)` fillable.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        register(&self.0, (start, end), REGISTER_MODE_MISSING)
    }

    /// Makes it ordinary memory again.
    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        unregister(&self.0, (start, end))
    }

    /// Puts whole pages of `bytes` at `addr`, up to the first page that is there already. Gives how many bytes were put.
    pub fn fill(&self, addr: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let mut arg = UffdioCopy {
                dst: addr + done as u64,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the kernel reads `len` bytes at `src`, which are those of `rest`; it checks the destination itself.
            let result = check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &mut arg) }.into());
            if arg.copy > 0 {
                done += arg.copy as usize;
                continue; // if that was not all, the next attempt says why
            }
            match result {
                Ok(_) => return Ok(done),
                Err(err) => match err.raw_os_error() {
                    Some(libc::EEXIST) => return Ok(done),
                    Some(libc::EAGAIN) => {}
                    _ => return Err(err),
                },
            }
        }
        Ok(done)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
