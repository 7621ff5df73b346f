//! Memory of another process: process_vm_readv(2) and /proc/PID/mem (proc_pid_mem(5)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::check;

/// A run of bytes in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    /// Address in the other process.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
}

/// The kernel takes at most this many ranges at once (`UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

fn remote_iovs(ranges: &[RemoteRange]) -> Vec<libc::iovec> {
    ranges.iter().map(|r| libc::iovec { iov_base: r.addr as *mut libc::c_void, iov_len: r.len }).collect()
}

/// Reads `buf.len()` bytes at `addr` of process `pid`; a short read is an error (`EFAULT`).
pub fn read_remote(pid: i32, addr: u64, buf: &mut [u8]) -> io::Result<()> {
    let want = buf.len();
    let got = read_remote_ranges(pid, &[RemoteRange { addr, len: want }], buf)?;
    if got == want { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Reads several ranges into one buffer, one after the other; at most [`IOV_MAX`] ranges.
/// Gives the number of bytes read, which is short where a page of a range cannot be read.
pub fn read_remote_ranges(pid: i32, ranges: &[RemoteRange], buf: &mut [u8]) -> io::Result<usize> {
    let total: usize = ranges.iter().map(|r| r.len).sum();
    if ranges.len() > IOV_MAX || total > buf.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: total };
    let remote = remote_iovs(ranges);
    // SAFETY: `local` describes `buf`, which is writable for `total` bytes; the remote side is checked by the kernel.
    let n =
        unsafe { libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
    check(n as libc::c_long).map(|n| n as usize)
}

/// Writes `buf` at `addr` of process `pid`; a short write is an error (`EFAULT`).
pub fn write_remote(pid: i32, addr: u64, buf: &[u8]) -> io::Result<()> {
    let want = buf.len();
    let got = write_remote_ranges(pid, &[RemoteRange { addr, len: want }], buf)?;
    if got == want { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Writes one buffer into several ranges, one after the other; at most [`IOV_MAX`] ranges.
/// Gives the number of bytes written, which is short where a page of a range cannot be written.
pub fn write_remote_ranges(pid: i32, ranges: &[RemoteRange], buf: &[u8]) -> io::Result<usize> {
    let total: usize = ranges.iter().map(|r| r.len).sum();
    if ranges.len() > IOV_MAX || total > buf.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: total };
    let remote = remote_iovs(ranges);
    // SAFETY: `local` describes `buf`, which is only read, for `total` bytes; the kernel checks the remote side.
    let n =
        unsafe { libc::process_vm_writev(pid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
    check(n as libc::c_long).map(|n| n as usize)
}

/// /proc/PID/mem, opened for reading and writing. Also reaches what the process itself may not read or write
/// (`PROT_NONE`, read-only private mappings), as a debugger's breakpoints do.
#[derive(Debug)]
pub struct ProcMem(File);

impl ProcMem {
    /// Opens the memory of process (or thread) `pid`. Needs the rights of `PTRACE_MODE_ATTACH`.
    pub fn open(pid: i32) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).map(Self)
    }

    /// Reads exactly `buf.len()` bytes at `addr`.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, addr)
    }

    /// Writes all of `buf` at `addr`.
    pub fn write(&self, addr: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(buf, addr)
    }
}
