//! System V semaphores: semctl(2).

use std::io;

use crate::check;

/// `struct seminfo`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Seminfo {
    semmap: i32,
    semmni: i32,
    semmns: i32,
    semmnu: i32,
    semmsl: i32,
    semopm: i32,
    semume: i32,
    semusz: i32,
    semvmx: i32,
    semaem: i32,
}

const _: () = assert!(size_of::<Seminfo>() == 40);

/// Whether a process was the last to operate on a semaphore of our IPC namespace (`GETPID`), as far as we may read them.
pub fn operated_last(pid: i32) -> io::Result<bool> {
    const SEM_STAT_ANY: i32 = 20;
    let mut info = Seminfo::default();
    // SAFETY: the kernel writes a `seminfo` to `info`; the result is the highest index in use.
    let highest = check(unsafe { libc::semctl(0, 0, libc::SEM_INFO, &raw mut info) }.into())?;
    if info.semusz == 0 {
        return Ok(false); // no set at all
    }
    for index in 0..=highest as i32 {
        // SAFETY: all-zero bytes are a `semid_ds`.
        let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a `semid_ds` to `set`; the result is the set's id.
        let id = unsafe { libc::semctl(index, 0, SEM_STAT_ANY, &raw mut set) };
        // SAFETY: GETPID takes integers only.
        let last = |number: u64| unsafe { libc::semctl(id, number as i32, libc::GETPID) };
        if id >= 0 && (0..set.sem_nsems).any(|number| last(number) == pid) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_operate_on_a_semaphore_is_told() {
        let pid = std::process::id() as i32;
        assert!(!operated_last(pid).unwrap());
        // SAFETY: a new set of ours, operated on once, and removed.
        let told = unsafe {
            let id = libc::semget(libc::IPC_PRIVATE, 2, 0o600);
            let mut up = libc::sembuf { sem_num: 1, sem_op: 1, sem_flg: 0 };
            assert_eq!(libc::semop(id, &raw mut up, 1), 0);
            let told = operated_last(pid);
            libc::semctl(id, 0, libc::IPC_RMID);
            told
        };
        assert!(told.unwrap());
    }
}
