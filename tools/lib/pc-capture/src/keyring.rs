//! Keyrings of a thread or a process: see keyrings(7). Keys cannot be read by who may not, so they cannot be moved.

use pc_trace::Call;

use crate::error::Unsupported;

const KEYCTL_GET_KEYRING_ID: u64 = 0;
/// `KEY_SPEC_THREAD_KEYRING` and `KEY_SPEC_PROCESS_KEYRING`, and what they are called. (Asking for the session's would give
/// the thread one.)
const KEYRINGS: [(i64, &str); 2] = [(-1, "a keyring of its own"), (-2, "a keyring of its process")];

/// The calls by which a thread tells whether it has any. None is made by asking.
pub(crate) fn calls() -> impl Iterator<Item = Call> {
    let ask = |(which, _): (i64, &str)| Call::new(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, which as u64, 0]);
    KEYRINGS.into_iter().map(ask)
}

/// Names the keyrings that a thread has, by the answers to [`calls`]. Without one the kernel answers ENOKEY, and ENOSYS where
/// it has none at all; EPERM is that of a seccomp filter.
pub(crate) fn refused(pid: i32, tid: i32, answers: &[i64]) -> Vec<Unsupported> {
    let none = [libc::ENOKEY, libc::ENOSYS, libc::EPERM].map(|errno| -i64::from(errno));
    let found = KEYRINGS.iter().zip(answers).filter(|(_, answer)| !none.contains(answer));
    let what = |name: &str| format!("its thread {tid} has {name}, and keys cannot be moved");
    found.map(|((_, name), _)| Unsupported::new(pid, None, what(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_is_refused_and_none_is_not() {
        let (none, absent) = (-i64::from(libc::ENOKEY), -i64::from(libc::ENOSYS));
        assert!(refused(1, 1, &[none, none]).is_empty() && refused(1, 1, &[absent, absent]).is_empty());
        assert!(refused(1, 1, &[none, 77])[0].to_string().contains("keyring of its process"));
        assert_eq!(refused(1, 1, &[5, -i64::from(libc::EKEYREVOKED)]).len(), 2);
    }
}
