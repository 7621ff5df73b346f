//! clone3(2): making a child with a chosen pid, without pthread's hooks.

use std::io;

use crate::check;

/// `struct clone_args` of clone3(2), as of Linux 5.7 (88 bytes).
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the fields are those of clone3(2)
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);

impl CloneArgs {
    /// The structure as bytes, to be placed in another process.
    pub fn to_bytes(self) -> [u8; 88] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        let mut bytes = [0; 88];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Which side of the fork we are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The parent; the child's pid as the caller's pid namespace sees it.
    Parent(i32),
    /// The child.
    Child,
}

/// Forks with clone3(2): `flags` as `CLONE_NEW*`, SIGCHLD at its end, and, if `set_tid` is not empty, with those pids
/// (innermost pid namespace first). `EEXIST` where the pid is taken, `EPERM` without `CAP_CHECKPOINT_RESTORE`.
///
/// # Safety
/// As after fork(2) in a program with threads, the child may only make raw system calls: no allocation, no locks.
/// `flags` must not contain `CLONE_VM`.
pub unsafe fn clone3_fork(flags: u64, set_tid: &[i32]) -> io::Result<Forked> {
    let args = CloneArgs {
        flags,
        // A child beside the caller has the caller's own, and may name none (clone(2)).
        exit_signal: if flags & libc::CLONE_PARENT as u64 != 0 { 0 } else { libc::SIGCHLD as u64 },
        set_tid: if set_tid.is_empty() { 0 } else { set_tid.as_ptr() as u64 },
        set_tid_size: set_tid.len() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` and `set_tid` live across the call; without CLONE_VM the child runs on its own copy of the stack.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    match check(ret)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as i32)),
    }
}
