//! Keyrings of a thread, a process or a session: see keyrings(7). Keys cannot be read by who may not, so they cannot be moved.

use pc_trace::{Call, Remote};

use crate::error::{Result, Unsupported};

const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEYCTL_DESCRIBE: u64 = 6;
const KEYCTL_READ: u64 = 11;
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

/// A notice of the keys in the session keyring of the process, if there are any but those that every session has.
///
/// Asking for the keyring itself would give a process one that has none. So it is searched for by the name of all that
/// were made without one, as every login and every service of systemd has it; one with a name of its own is not found.
pub(crate) fn session(remote: &mut Remote<'_>) -> Result<Option<String>> {
    const MOST: usize = 64;
    let tid = remote.tracees().pid();
    remote.reset();
    let (kind, name) = (remote.put(b"keyring\0")?, remote.put(b"_ses\0")?);
    let (serials, room) = (remote.space(4 * MOST)?, remote.space(ROOM)?);
    let mut ask = |number, args: [u64; 4]| -> Result<i64> {
        let answers = remote.batch(tid, &[Call::new(number, args)])?;
        Ok(answers.first().copied().unwrap_or(-1))
    };
    let keyring = ask(libc::SYS_request_key, [kind, name, 0, 0])?;
    if keyring <= 0 {
        return Ok(None);
    }
    // What it may not read it can use, perhaps.
    let len = ask(libc::SYS_keyctl, [KEYCTL_READ, keyring as u64, serials, 4 * MOST as u64])?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0).min(4 * MOST)];
    remote.read(serials, &mut bytes)?;
    let mut keys = Vec::new();
    for serial in bytes.chunks_exact(4) {
        let serial = u64::from(u32::from_le_bytes(serial.try_into().unwrap_or_default()));
        let describe = Call::new(libc::SYS_keyctl, [KEYCTL_DESCRIBE, serial, room, ROOM as u64]);
        let len = remote.batch(tid, &[describe])?.first().copied().unwrap_or(-1);
        let mut text = vec![0; usize::try_from(len).unwrap_or(0).min(ROOM)];
        remote.read(room, &mut text)?;
        keys.extend(own_key(&text));
    }
    Ok(notice(&keys))
}

/// Room for the description of a key.
const ROOM: usize = 512;

/// What a key is called, by what the kernel says of it, `user;1000;1000;3f010000;name`; `None` of one that every session has.
fn own_key(description: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(description);
    let mut fields = text.trim_end_matches('\0').splitn(5, ';');
    let (kind, name) = (fields.next().unwrap_or_default(), fields.nth(3).unwrap_or_default());
    let of_user = kind == "keyring" && name.starts_with("_uid");
    let of_systemd = kind == "user" && name == "invocation_id";
    (!of_user && !of_systemd).then(|| match kind {
        "" => "a key that it may not look at".to_owned(),
        _ => format!("{kind} {}", crate::procfs::shown(name.as_bytes())),
    })
}

fn notice(keys: &[String]) -> Option<String> {
    let all = keys.join(", ");
    (!keys.is_empty()).then(|| {
        format!("its session keyring has keys that the copy is without, which gets pc-restore's session keyring: {all}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_session_are_not_worth_a_notice_and_others_are() {
        assert_eq!(own_key(b"keyring;0;65534;1f3f0000;_uid.0\0"), None);
        assert_eq!(own_key(b"user;0;0;3f1f0000;invocation_id\0"), None);
        let mine = own_key(b"user;0;0;3f010000;a;b\0").unwrap();
        assert_eq!(mine, "user a;b");
        assert!(own_key(b"").unwrap().contains("may not look"));
        assert!(notice(&[]).is_none() && notice(&[mine]).unwrap().ends_with(": user a;b"));
    }

    #[test]
    fn a_keyring_is_refused_and_none_is_not() {
        let (none, absent) = (-i64::from(libc::ENOKEY), -i64::from(libc::ENOSYS));
        assert!(refused(1, 1, &[none, none]).is_empty() && refused(1, 1, &[absent, absent]).is_empty());
        assert!(refused(1, 1, &[none, 77])[0].to_string().contains("keyring of its process"));
        assert_eq!(refused(1, 1, &[5, -i64::from(libc::EKEYREVOKED)]).len(), 2);
    }
}
