//! What prctl(2) reports of another thread or of ourselves.

use std::io;

use crate::check;

/// Whether a thread has a cookie of core scheduling (`PR_SCHED_CORE_GET`): it shares a core with none but those that have the
/// same. `false` where the kernel has no such cookies.
pub fn has_core_cookie(tid: i32) -> io::Result<bool> {
    const PR_SCHED_CORE: i32 = 62;
    const PR_SCHED_CORE_GET: u64 = 0;
    const THIS_THREAD: u64 = 0;
    let mut cookie = 0u64;
    let at = &raw mut cookie;
    // SAFETY: the kernel writes one word to `cookie`.
    let got = unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid as u64, THIS_THREAD, at) };
    match check(got.into()) {
        Err(err) if matches!(err.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Ok(false),
        done => done.map(|_| cookie != 0),
    }
}

/// Our own state of a speculation control (`PR_GET_SPECULATION_CTRL`), `None` where the kernel does not know it.
pub fn speculation(feature: u32) -> Option<u32> {
    const PR_GET_SPECULATION_CTRL: i32 = 52;
    // SAFETY: takes integers only.
    let got = unsafe { libc::prctl(PR_GET_SPECULATION_CTRL, u64::from(feature), 0u64, 0u64, 0u64) };
    u32::try_from(got).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_have_no_core_cookie_and_a_state_of_speculation() {
        assert!(!has_core_cookie(std::process::id() as i32).unwrap());
        assert!(speculation(0).is_some());
        assert_eq!(speculation(1000), None);
    }
}
