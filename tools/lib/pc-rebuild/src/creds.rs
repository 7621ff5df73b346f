//! Credentials of a thread, in an order in which each step still may do the next.

use std::fs;

use pc_image::{Creds, Seccomp};
use pc_sys::ids::Ids;
use pc_trace::{Call, Husk};

use crate::error::{Context, RebuildError};
use crate::fdtable::words;

const CAP_SETPCAP: u64 = 1 << 8;
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What a husk has, by birth or in the user namespace that it has entered.
pub fn of(pid: i32) -> Result<Creds, RebuildError> {
    let status = fs::read(format!("/proc/{pid}/status"));
    let text = status.what("reading the credentials of the new process")?;
    Ok(parse(&String::from_utf8_lossy(&text))) // its name need not be text
}

/// The effective ids of a process.
pub fn effective(pid: i32) -> Result<Ids, RebuildError> {
    let Creds { uids, gids, groups, .. } = of(pid)?;
    Ok(Ids { user: uids[1], group: gids[1], groups })
}

fn parse(text: &str) -> Creds {
    let line = |key: &str| -> &str {
        let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        found.map_or("", str::trim)
    };
    let four = |key| {
        let mut all = [0u32; 4];
        for (slot, word) in all.iter_mut().zip(line(key).split_whitespace()) {
            *slot = word.parse().unwrap_or(u32::MAX);
        }
        all
    };
    let hex = |key| u64::from_str_radix(line(key), 16).unwrap_or(0);
    Creds {
        uids: four("Uid"),
        gids: four("Gid"),
        groups: line("Groups").split_whitespace().filter_map(|w| w.parse().ok()).collect(),
        cap_inheritable: hex("CapInh"),
        cap_permitted: hex("CapPrm"),
        cap_effective: hex("CapEff"),
        cap_bounding: hex("CapBnd"),
        cap_ambient: hex("CapAmb"),
        securebits: 0,
        no_new_privs: line("NoNewPrivs") == "1",
    }
}

/// Refuses what cannot be given from here.
pub fn judge(own: &Creds, wanted: &Creds) -> Result<(), RebuildError> {
    let lacking = wanted.cap_permitted & !own.cap_permitted;
    if lacking != 0 {
        return Err(RebuildError::Unsupported(format!(
            "it has capabilities that we lack (mask {lacking:#x})"
        )));
    }
    let lacking = wanted.cap_bounding & !own.cap_bounding;
    if lacking != 0 {
        let why = format!("its capability bounding set is larger than ours (mask {lacking:#x})");
        return Err(RebuildError::Unsupported(why));
    }
    for (name, set, within) in [
        ("effective", wanted.cap_effective, wanted.cap_permitted),
        ("inheritable", wanted.cap_inheritable, own.cap_inheritable | own.cap_permitted),
        ("ambient", wanted.cap_ambient, wanted.cap_permitted & wanted.cap_inheritable),
    ] {
        if set & !within != 0 {
            let lacking = set & !within;
            return Err(RebuildError::Unsupported(format!(
                "its {name} capabilities are more than it could have here (mask {lacking:#x})"
            )));
        }
    }
    if own.no_new_privs && !wanted.no_new_privs {
        return Err(RebuildError::Unsupported("we run with no_new_privs, it did not".into()));
    }
    Ok(())
}

/// The calls by which a thread gets its credentials; none where it has them by birth.
pub fn calls(husk: &mut Husk, own: &Creds, wanted: &Creds) -> Result<Vec<Call>, RebuildError> {
    if own == wanted {
        return Ok(Vec::new());
    }
    let prctl = |option: i32, a: u64, b: u64| Call::new(libc::SYS_prctl, [option as u64, a, b, 0, 0]);
    let same_ids = (own.uids, own.gids, &own.groups) == (wanted.uids, wanted.gids, &wanted.groups);
    let mut calls = match same_ids {
        true => vec![keep_capabilities()],
        false => ids(husk, wanted)?,
    };
    let dropped = own.cap_bounding & !wanted.cap_bounding;
    calls.extend(bits(dropped).map(|cap| prctl(libc::PR_CAPBSET_DROP, cap, 0)));
    let still = wanted.cap_permitted | own.cap_permitted & CAP_SETPCAP;
    calls.push(capset(husk, still, still, wanted.cap_inheritable)?);
    calls.push(prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0));
    let raise = libc::PR_CAP_AMBIENT_RAISE as u64;
    calls.extend(bits(wanted.cap_ambient).map(|cap| prctl(libc::PR_CAP_AMBIENT, raise, cap)));
    calls.push(prctl(libc::PR_SET_SECUREBITS, u64::from(wanted.securebits), 0));
    calls.push(capset(husk, wanted.cap_effective, wanted.cap_permitted, wanted.cap_inheritable)?);
    if wanted.no_new_privs {
        calls.push(prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0));
    }
    Ok(calls)
}

/// Capabilities stay when ids change.
fn keep_capabilities() -> Call {
    Call::new(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, SECBIT_NO_SETUID_FIXUP])
}

/// The calls by which a thread gets its ids and groups, and keeps its capabilities.
pub fn ids(husk: &mut Husk, wanted: &Creds) -> Result<Vec<Call>, RebuildError> {
    let groups: Vec<u8> = wanted.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let groups = husk.put(&groups)?;
    let three = |nr, ids: [u32; 4]| Call::new(nr, [u64::from(ids[0]), u64::from(ids[1]), u64::from(ids[2])]);
    Ok(vec![
        keep_capabilities(),
        Call::new(libc::SYS_setgroups, [wanted.groups.len() as u64, groups]),
        three(libc::SYS_setresgid, wanted.gids),
        three(libc::SYS_setresuid, wanted.uids),
    ])
}

/// The file system ids, which setresuid(2) takes along, where they differ. These calls answer the old id.
pub fn fs_ids(wanted: &Creds) -> Vec<Call> {
    let mut calls = Vec::new();
    if wanted.gids[3] != wanted.gids[1] {
        calls.push(Call::new(libc::SYS_setfsgid, [u64::from(wanted.gids[3])]));
    }
    if wanted.uids[3] != wanted.uids[1] {
        calls.push(Call::new(libc::SYS_setfsuid, [u64::from(wanted.uids[3])]));
    }
    calls
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| mask & 1 << bit != 0)
}

/// The call that sets these capabilities.
pub fn capset(
    husk: &mut Husk,
    effective: u64,
    permitted: u64,
    inheritable: u64,
) -> Result<Call, RebuildError> {
    let header = husk.put(&words(&[u64::from(CAPABILITY_VERSION_3)]))?;
    let data: Vec<u8> = [0, 32]
        .into_iter()
        .flat_map(|shift| [effective, permitted, inheritable].map(|set| (set >> shift) as u32))
        .flat_map(u32::to_le_bytes)
        .collect();
    Ok(Call::new(libc::SYS_capset, [header, husk.put(&data)?]))
}

/// The calls that install a thread's seccomp filters, the oldest first.
pub fn seccomp(husk: &mut Husk, seccomp: &Seccomp) -> Result<Vec<Call>, RebuildError> {
    const SET_MODE_STRICT: u64 = 0;
    const SET_MODE_FILTER: u64 = 1;
    match seccomp {
        Seccomp::Disabled => Ok(Vec::new()),
        Seccomp::Strict => Ok(vec![Call::new(libc::SYS_seccomp, [SET_MODE_STRICT, 0, 0])]),
        Seccomp::Filter(filters) => filters
            .iter()
            .map(|filter| {
                let program = husk.put(&filter.insns)?;
                let program = husk.put(&words(&[(filter.insns.len() / 8) as u64, program]))?;
                Ok(Call::new(libc::SYS_seccomp, [SET_MODE_FILTER, filter.flags, program]))
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_what_we_lack_is_refused() {
        let text = "Uid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\nGroups:\t7 8 \nNoNewPrivs:\t0\nCapInh:\t0\n\
                    CapPrm:\t00000000000000ff\nCapEff:\t1\nCapBnd:\t00000000000001ff\nCapAmb:\t0\n";
        let own = parse(text);
        assert_eq!((own.uids, own.groups.as_slice(), own.cap_bounding), ([1, 2, 3, 4], &[7, 8][..], 0x1ff));
        let mut wanted = own.clone();
        judge(&own, &wanted).unwrap();
        wanted.cap_permitted = 0x100;
        assert!(judge(&own, &wanted).unwrap_err().to_string().contains("0x100"));
    }
}
