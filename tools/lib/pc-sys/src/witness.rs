//! A child that waits for ever and may be looked into by whoever has its ids: it shows what others may do.

use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::clone::{Forked, clone3_fork};

/// Such a child. Dropped, it is killed and reaped: a zombie would keep the pid namespace that it is in from ending. It dies with the
/// thread that made it.
#[derive(Debug)]
pub struct Witness {
    pid: i32,
}

/// What the child needs, all of it made before the fork.
struct Wanted {
    uid: u32,
    gid: u32,
    /// A pidfd of a process in whose pid namespace it is to be.
    pid_namespace: Option<i32>,
    ready: i32,
}

fn raw(nr: libc::c_long, args: [u64; 5]) -> i64 {
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4]) }
}

fn exit(code: u64) -> ! {
    loop {
        raw(libc::SYS_exit_group, [code, 0, 0, 0, 0]);
    }
}

impl Witness {
    /// Makes it with these ids, without capabilities, and in the pid namespace of the process that a pidfd means, if one is given.
    pub fn new(uid: u32, gid: u32, pid_namespace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let (mut from, to) = io::pipe()?;
        let pid_namespace = pid_namespace.map(|fd| fd.as_raw_fd());
        let wanted = Wanted { uid, gid, pid_namespace, ready: to.as_raw_fd() };
        // SAFETY: the child makes only raw system calls and never returns.
        let child = match unsafe { clone3_fork(0, &[]) }? {
            Forked::Parent(pid) => pid,
            Forked::Child => begin(&wanted),
        };
        drop(to);
        if pid_namespace.is_none() {
            let witness = Self { pid: child };
            word(&mut from)?;
            return Ok(witness);
        }
        // It enters the namespace, makes the witness beside itself, says its pid, and ends; the witness says 0.
        let words = [word(&mut from).ok(), word(&mut from).ok()];
        reap(child);
        let witness = words.into_iter().flatten().find(|pid| *pid != 0).map(|pid| Self { pid });
        let both = words.iter().all(Option::is_some);
        witness.filter(|_| both).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
    }

    /// Its pid as the caller sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // SAFETY: kill takes two integers; the pid is that of our own, unreaped child.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        reap(self.pid);
    }
}

fn reap(pid: i32) {
    let mut status = 0;
    // SAFETY: `status` is writable.
    unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
}

/// One word that a child says.
fn word(from: &mut io::PipeReader) -> io::Result<i32> {
    let mut word = [0u8; 4];
    from.read_exact(&mut word)?;
    Ok(i32::from_ne_bytes(word))
}

fn begin(wanted: &Wanted) -> ! {
    let Some(namespace) = wanted.pid_namespace else { wait(wanted) };
    raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0]);
    if raw(libc::SYS_setns, [namespace as u64, libc::CLONE_NEWPID as u64, 0, 0, 0]) < 0 {
        exit(1);
    }
    // SAFETY: as in `Witness::new`.
    match unsafe { clone3_fork(libc::CLONE_PARENT as u64, &[]) } {
        Ok(Forked::Child) => wait(wanted),
        Ok(Forked::Parent(pid)) => {
            tell(wanted.ready, pid);
            exit(0)
        }
        Err(_) => exit(1),
    }
}

fn tell(ready: i32, pid: i32) {
    if raw(libc::SYS_write, [ready as u64, std::ptr::from_ref(&pid) as u64, 4, 0, 0]) != 4 {
        exit(1);
    }
}

/// Takes the ids on and waits. Ids first: they take the death signal away, and dumpability.
fn wait(wanted: &Wanted) -> ! {
    let (uid, gid) = (u64::from(wanted.uid), u64::from(wanted.gid));
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    let caps = [std::ptr::from_ref(&header) as u64, std::ptr::from_ref(&none) as u64, 0, 0, 0];
    let done = raw(libc::SYS_setresgid, [gid, gid, gid, 0, 0])
        | raw(libc::SYS_setresuid, [uid, uid, uid, 0, 0])
        | raw(libc::SYS_capset, caps)
        | raw(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0])
        | raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0]);
    if done < 0 {
        exit(1);
    }
    tell(wanted.ready, 0);
    raw(libc::SYS_prctl, [libc::PR_SET_NAME as u64, c"pc-witness".as_ptr() as u64, 0, 0, 0]);
    // Others wait for the end of what we have open.
    raw(libc::SYS_close_range, [0, u64::from(u32::MAX), 0, 0, 0]);
    loop {
        raw(libc::SYS_pause, [0; 5]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_may_be_looked_into_by_whoever_has_its_ids() {
        // SAFETY: takes nothing.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let witness = Witness::new(uid, gid, None).unwrap();
        crate::sched::get_robust_list(witness.pid()).unwrap();
        let pid = witness.pid();
        drop(witness);
        assert!(crate::sched::get_robust_list(pid).is_err());
    }

    #[test]
    fn it_can_be_in_the_namespace_of_another_process() {
        let own = crate::pidfd::pidfd_open(std::process::id() as i32).unwrap();
        // SAFETY: takes nothing.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let witness = Witness::new(uid, gid, Some(std::os::fd::AsFd::as_fd(&own))).unwrap();
        assert!(
            std::fs::read_to_string(format!("/proc/{}/status", witness.pid())).unwrap().contains("NSpid")
        );
    }
}
