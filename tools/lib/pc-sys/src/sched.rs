//! Scheduling of another thread, and its robust list: sched_getattr(2), ioprio_get(2), get_robust_list(2).

use std::io;

use crate::check;

/// `struct sched_attr`, as of Linux 5.3.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedAttr {
    /// Bytes of this structure.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// `SCHED_DEADLINE`, in nanoseconds.
    pub runtime: u64,
    /// `SCHED_DEADLINE`, in nanoseconds.
    pub deadline: u64,
    /// `SCHED_DEADLINE`, in nanoseconds.
    pub period: u64,
    /// Least utilization asked for, 0 to 1024.
    pub util_min: u32,
    /// Greatest utilization asked for, 0 to 1024; 0 where the kernel has no such clamps.
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);
const IOPRIO_WHO_PROCESS: i32 = 1;

/// Scheduling policy and its figures.
pub fn sched_getattr(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes to `attr`.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) })?;
    Ok(attr)
}

/// CPU affinity as a mask: bit N of byte N/8 for CPU N.
pub fn sched_getaffinity(tid: i32) -> io::Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: the kernel writes at most `mask.len()` bytes, and returns how many.
    let n = check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(n as usize);
    Ok(mask)
}

/// I/O priority as it was set, 0 = none.
pub fn ioprio_get(tid: i32) -> io::Result<u32> {
    // SAFETY: ioprio_get takes two integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) }).map(|p| p as u32)
}

/// Head and length of a thread's robust futex list.
pub fn get_robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both results are words of our own.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_scheduling_can_be_read() {
        assert_eq!(sched_getattr(0).unwrap().size, 56);
        assert!(sched_getaffinity(0).unwrap().iter().any(|b| *b != 0));
        assert_eq!(get_robust_list(0).unwrap().1, 24);
        ioprio_get(0).unwrap();
    }
}
