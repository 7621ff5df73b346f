//! userfaultfd(2) as far as asynchronous write-protect tracking needs it (Linux 6.7).

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
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;

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

impl Uffd {
    /// Agrees on the API with a new userfaultfd: asynchronous write-protection of anonymous, shared and huge pages, and
    /// of pages not populated yet. `EINVAL` where the kernel lacks one of these.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        // SAFETY: `api` is the structure that UFFDIO_API reads and writes.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) }.into())?;
        Ok(Self(fd))
    }

    /// Starts tracking `[start, end)`, which must be mapped throughout. `EBUSY` where another userfaultfd has it,
    /// `EPERM` for a shared mapping that cannot be made writable.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        let range = UffdioRange { start, len: end - start };
        let mut arg = UffdioRegister { range, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `arg` is the structure that UFFDIO_REGISTER reads and writes.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &mut arg) }.into()).map(drop)
    }

    /// Ends tracking of `[start, end)`. Holds the address space's lock for a time that grows with the range.
    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        let arg = UffdioRange { start, len: end - start };
        // SAFETY: `arg` is the structure that UFFDIO_UNREGISTER reads.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &arg) }.into()).map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
