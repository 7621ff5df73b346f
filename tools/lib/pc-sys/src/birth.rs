//! Children that never return: a husk that waits to be filled from outside, and the init of a new pid namespace.
//!
//! Both are forks of a program that may have threads, so they make raw system calls only: no allocation, no locks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;
use crate::clone::{Forked, clone3_fork};

/// Where a husk finds its end of the socket pair: out of the way of the low numbers that descriptors get.
pub const HUSK_SOCKET: i32 = 900;

/// The name of a husk until it gets its own.
const HUSK_NAME: &[u8; 8] = b"pc-husk\0";
/// The name of a namespace's init.
const INIT_NAME: &[u8; 8] = b"pc-init\0";

/// What the child needs to begin.
#[derive(Debug, Clone, Copy)]
pub struct Birth<'a> {
    /// Pids to get, innermost pid namespace first.
    pub set_tid: &'a [i32],
    /// Its end of a socket pair, the only descriptor that it keeps, as [`HUSK_SOCKET`].
    pub socket: BorrowedFd<'a>,
    /// A session of its own.
    pub new_session: bool,
}

/// Forks a child that keeps nothing but its socket and its memory, says one byte through it, and pauses for ever. It
/// dies with its parent until somebody takes hold of it. Gives its pid; `EEXIST` where the pid is taken.
pub fn fork_husk(birth: Birth<'_>) -> io::Result<i32> {
    // SAFETY: the child runs `husk` alone, which makes only raw system calls and never returns.
    match unsafe { clone3_fork(0, birth.set_tid) }? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => husk(birth.socket.as_raw_fd(), birth.new_session),
    }
}

/// Makes a raw system call whose result does not matter or is checked by the caller.
fn raw(nr: libc::c_long, args: [u64; 5]) -> i64 {
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4]) }
}

fn exit(code: i32) -> ! {
    loop {
        raw(libc::SYS_exit_group, [code as u64, 0, 0, 0, 0]);
    }
}

/// Keeps descriptor `fd` alone, as number `at`.
fn keep_only(fd: i32, at: i32) {
    if fd != at && raw(libc::SYS_dup3, [fd as u64, at as u64, 0, 0, 0]) < 0 {
        exit(1);
    }
    let closed = raw(libc::SYS_close_range, [0, at as u64 - 1, 0, 0, 0])
        | raw(libc::SYS_close_range, [at as u64 + 1, u64::from(u32::MAX), 0, 0, 0]);
    if closed < 0 {
        exit(1);
    }
}

fn block_all_signals() {
    let all = u64::MAX;
    let set = std::ptr::from_ref(&all) as u64;
    raw(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, set, 0, 8, 0]);
}

fn set_name(name: &[u8; 8]) {
    raw(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.as_ptr() as u64, 0, 0, 0]);
}

fn husk(socket: i32, new_session: bool) -> ! {
    raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0]);
    block_all_signals();
    keep_only(socket, HUSK_SOCKET);
    set_name(HUSK_NAME);
    if new_session {
        raw(libc::SYS_setsid, [0; 5]);
    }
    let ready = 1u8;
    // A parent that has died before the death signal was asked for has closed its end by then.
    if raw(libc::SYS_write, [HUSK_SOCKET as u64, std::ptr::from_ref(&ready) as u64, 1, 0, 0]) != 1 {
        exit(1);
    }
    loop {
        raw(libc::SYS_pause, [0; 5]);
    }
}

/// Forks the init of a new pid namespace with a mount namespace of its own, which mounts its own /proc, forks a husk as
/// [`fork_husk`] does (with `set_tid` inside), reaps what ends, passes signals on to the husk, and lives as long as
/// anything else does in its namespace. It then ends with the husk's exit status, or 128 + the signal that ended it.
///
/// It dies with its parent until it gets a byte through the socket's other end, `control`. Gives its pid. If it could
/// not begin, it ends with [`INIT_FAILED`] and writes an `errno` (4 bytes) to `control`.
pub fn fork_init(birth: Birth<'_>, control: BorrowedFd<'_>) -> io::Result<i32> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    // SAFETY: the child runs `init` alone, which makes only raw system calls and never returns.
    match unsafe { clone3_fork(flags as u64, &[]) }? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => init(birth, control.as_raw_fd()),
    }
}

/// Exit status of an init that could not begin.
pub const INIT_FAILED: i32 = 125;

fn fail(control: i32) -> ! {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    raw(libc::SYS_write, [control as u64, std::ptr::from_ref(&errno) as u64, 4, 0, 0]);
    exit(INIT_FAILED)
}

fn init(birth: Birth<'_>, control: i32) -> ! {
    raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0]);
    block_all_signals();
    set_name(INIT_NAME);
    if birth.new_session {
        raw(libc::SYS_setsid, [0; 5]);
    }
    mount_proc(control);
    // SAFETY: as in `fork_husk`.
    let child = match unsafe { clone3_fork(0, birth.set_tid) } {
        Ok(Forked::Child) => husk(birth.socket.as_raw_fd(), false),
        Ok(Forked::Parent(child)) => child,
        Err(_) => fail(control),
    };
    keep_only(control, HUSK_SOCKET);
    let zero = 0i32;
    raw(libc::SYS_write, [HUSK_SOCKET as u64, std::ptr::from_ref(&zero) as u64, 4, 0, 0]);
    // Either a byte comes, and we live on our own, or the parent dies, and so do we.
    let mut byte = 0u8;
    if raw(libc::SYS_read, [HUSK_SOCKET as u64, std::ptr::from_mut(&mut byte) as u64, 1, 0, 0]) != 1 {
        exit(INIT_FAILED);
    }
    if byte == b'd' {
        raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0]);
    }
    raw(libc::SYS_close, [HUSK_SOCKET as u64, 0, 0, 0, 0]);
    serve(child)
}

/// The source of that /proc: it tells that the mount namespace is a copy that a restore made.
const MADE_BY: &std::ffi::CStr = c"pc-restore";

fn mount_proc(control: i32) {
    let (root, proc, none) = (c"/".as_ptr() as u64, c"/proc".as_ptr() as u64, c"none".as_ptr() as u64);
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    if raw(libc::SYS_mount, [none, root, none, private, 0]) < 0
        || raw(libc::SYS_mount, [MADE_BY.as_ptr() as u64, proc, c"proc".as_ptr() as u64, flags, 0]) < 0
    {
        fail(control);
    }
}

/// Reaps and passes on signals until nothing else is left.
fn serve(child: i32) -> ! {
    let all = u64::MAX;
    let mut code = 0;
    loop {
        loop {
            let mut status = 0i32;
            let at = std::ptr::from_mut(&mut status) as u64;
            let flags = (libc::WNOHANG | libc::__WALL) as u64;
            let got = raw(libc::SYS_wait4, [u64::MAX, at, flags, 0, 0]);
            if got == 0 {
                break;
            }
            if got < 0 {
                exit(code); // ECHILD: nobody is left
            }
            if got == i64::from(child) {
                code = exit_code(status);
            }
        }
        let signal = raw(libc::SYS_rt_sigtimedwait, [std::ptr::from_ref(&all) as u64, 0, 0, 8, 0]);
        if signal > 0 && signal != i64::from(libc::SIGCHLD) {
            raw(libc::SYS_kill, [child as u64, signal as u64, 0, 0, 0]);
        }
    }
}

/// Lets a child do what nobody waits for, while the caller goes on and may end. The child holds none of the standard
/// streams, no terminal's signals reach it, it runs when no other process wants its CPU (`SCHED_IDLE`), and it ends with its work.
pub fn leave_behind(work: impl FnOnce()) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: fork(3) of the C library leaves a heap that works, and no other lock of ours is taken in the child, which does
    // its work on this copy of the stack and never returns.
    if check(unsafe { libc::fork() }.into())? != 0 {
        return Ok(());
    }
    for stream in 0..3 {
        // SAFETY: both are numbers of descriptors.
        unsafe { libc::dup2(null.as_raw_fd(), stream) };
    }
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the first takes nothing, the second reads the structure; a child that may not stand back does its work all the same.
    unsafe {
        libc::setsid();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param);
    }
    // Nobody reports what panics in it, as nobody waits for it.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    // SAFETY: ends the process without running what belongs to its parent.
    unsafe { libc::_exit(0) }
}

/// What a shell would say of a wait status.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}
