//! Doing something with the ids of somebody else, in a thread of its own: setresuid(2), setresgid(2), setgroups(2).

use std::io;
use std::thread;

use crate::check;

/// Effective ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Does something by a thread that has these effective ids, and no capabilities if the user is not 0. The other threads
/// keep theirs: the system calls are made here, as the C library's functions set the ids of all threads (nptl(7)).
/// `EPERM`: the caller may not have these ids.
pub fn with<T: Send>(ids: &Ids, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // SAFETY: prctl with these arguments takes integers, and changes nothing.
    let was_dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) } == 1;
    let done = thread::scope(|scope| {
        let working = scope.spawn(|| {
            take(ids)?;
            work()
        });
        working.join()
    });
    if was_dumpable {
        // Other ids of one thread make the whole process one that is not (PR_SET_DUMPABLE(2const)).
        // SAFETY: prctl with these arguments takes integers, and changes nothing but that. It cannot fail with this value.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    }
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn take(ids: &Ids) -> io::Result<()> {
    const SAME: u32 = u32::MAX;
    // SAFETY: the kernel reads as many groups as there are, and changes nothing but this thread's.
    check(unsafe { libc::syscall(libc::SYS_setgroups, ids.groups.len(), ids.groups.as_ptr()) })?;
    // SAFETY: it takes three integers, and changes nothing but this thread's ids.
    check(unsafe { libc::syscall(libc::SYS_setresgid, SAME, ids.group, SAME) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, SAME, ids.user, SAME) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_works_has_the_ids() {
        let status = |of: &str| std::fs::read_to_string(format!("/proc/{of}/status")).unwrap();
        let ids = |text: &str| {
            let of = |key: &str| {
                let line = text.lines().find(|line| line.starts_with(key)).unwrap();
                line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
            };
            (of("Uid:")[1].clone(), of("Gid:")[1].clone(), of("Groups:"))
        };
        let before = ids(&status("thread-self"));
        let wanted = Ids { user: 4711, group: 4712, groups: vec![5, 4713] };
        let seen = with(&wanted, || Ok((ids(&status("thread-self")), ids(&status("self"))))).unwrap();
        assert_eq!(seen.0, ("4711".into(), "4712".into(), vec!["5".to_owned(), "4713".to_owned()]));
        assert_eq!(seen.1, before);
        assert_eq!(ids(&status("thread-self")), before);
        // SAFETY: it takes integers.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 1);
        assert!(with(&wanted, || Err::<(), _>(io::Error::other("no"))).is_err());
    }
}
