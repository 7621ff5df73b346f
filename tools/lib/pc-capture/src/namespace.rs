//! Namespaces of a process that are not ours: see namespaces(7).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use pc_image::{IdRange, Namespace, NamespaceKind, TaskNamespaces};

use crate::error::{Context, Result, Unsupported};
use crate::procfs::{self, Status};
use crate::report::Report;
use crate::task::TASK;

/// Those of which each thread may have its own: the others are only entered by a process of one thread, or go with the working
/// directory (unshare(2)).
const OF_THREADS: [NamespaceKind; 4] =
    [NamespaceKind::Net, NamespaceKind::Uts, NamespaceKind::Ipc, NamespaceKind::Cgroup];
/// CAP_SYS_ADMIN, without which nobody leaves those.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// What a restore gives as the source of the /proc that it mounts.
const MOUNTED_BY_RESTORE: &str = "pc-restore";

/// The number of a namespace of `who` (a pid, `PID/task/TID`, or `self`); `None` for a kind that this kernel lacks.
fn inode(who: impl std::fmt::Display, kind: NamespaceKind) -> io::Result<Option<u64>> {
    match fs::metadata(format!("/proc/{who}/ns/{}", kind.name())) {
        Ok(found) => Ok(Some(found.ino())),
        Err(err) if err.kind() == io::ErrorKind::NotFound && fs::exists(format!("/proc/{who}/ns"))? => {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// The namespaces of the process that are not ours; `None` if all are.
pub(crate) fn look(pid: i32) -> Result<Option<TaskNamespaces>> {
    let mut others = Vec::new();
    for kind in NamespaceKind::ALL {
        let of =
            |who: &str| inode(who, kind).of(pid, format_args!("looking at its {} namespace", kind.name()));
        let (its, ours) = (of(&pid.to_string())?, of("self")?);
        if let Some(inode) = its.filter(|_| its != ours) {
            let copied = kind == NamespaceKind::Mnt && is_copied(pid)?;
            others.push(Namespace { kind, inode, copied });
        }
    }
    if others.is_empty() {
        return Ok(None);
    }
    let map = |name: &str| -> Result<Vec<IdRange>> {
        if !others.iter().any(|other| other.kind == NamespaceKind::User) {
            return Ok(Vec::new());
        }
        let text = procfs::read(pid, name).of(pid, format_args!("reading its {name}"))?;
        Ok(id_map(&text))
    };
    let (uid_map, gid_map) = (map("uid_map")?, map("gid_map")?);
    Ok(Some(TaskNamespaces { task: TASK, others, uid_map, gid_map }))
}

fn id_map(text: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.parse().ok());
        let mut next = || words.next().flatten();
        Some(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().filter_map(range).collect()
}

/// Whether a restore made the mount namespace: its /proc says so, and nothing was mounted since. (mountinfo lists mounts in
/// the order in which they were made: fs/namespace.c.)
fn is_copied(pid: i32) -> Result<bool> {
    let mounts = procfs::read(pid, "mountinfo").of(pid, "reading its mounts")?;
    Ok(mounts.lines().last().is_some_and(is_proc_of_restore))
}

fn is_proc_of_restore(line: &str) -> bool {
    let Some((mount, file_system)) = line.split_once(" - ") else { return false };
    let at = mount.split(' ').nth(4);
    let mut words = file_system.split(' ');
    (at, words.next(), words.next()) == (Some("/proc"), Some("proc"), Some(MOUNTED_BY_RESTORE))
}

/// Names the thread's namespaces that are not its process's. A thread without CAP_SYS_ADMIN cannot leave them: with
/// `status` at hand it is not looked at then.
pub(crate) fn apart(pid: i32, tid: i32, status: Option<&Status>) -> io::Result<Vec<Unsupported>> {
    if status.is_some_and(|status| status.caps[1] & CAP_SYS_ADMIN == 0) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for kind in OF_THREADS {
        if inode(format_args!("{pid}/task/{tid}"), kind)? != inode(pid, kind)? {
            let what = format!(
                "its thread {tid} is in another {} namespace than its first thread, which cannot be moved yet",
                kind.name()
            );
            found.push(Unsupported::new(pid, None, what));
        }
    }
    Ok(found)
}

/// Says what the destination will ask for: an option for each namespace that is not ours.
pub(crate) fn needs(namespaces: &TaskNamespaces, report: &mut Report) {
    for other in namespaces.others.iter().filter(|other| !other.copied) {
        let kind = other.kind.name();
        let places = if other.kind == NamespaceKind::User { "pid:N|own" } else { "PATH|pid:N|own" };
        report.need(
            format!("pc-restore --join {kind}={places}"),
            format!("it is in a {kind} namespace that is not pc-dump's own"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proc_that_a_restore_mounted_makes_a_copied_mount_namespace() {
        let line =
            |at: &str, source: &str| format!("61 40 0:50 / {at} rw,nosuid master:1 - proc {source} rw");
        assert!(is_proc_of_restore(&line("/proc", "pc-restore")));
        assert!(!is_proc_of_restore(&line("/proc", "proc")));
        assert!(!is_proc_of_restore(&line("/mnt", "pc-restore")));
        assert!(!is_proc_of_restore("nonsense"));
    }

    #[test]
    fn maps_of_ids_are_read() {
        let map = id_map("         0     100000      65536\n     65536          0          1\n");
        let range = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(map, [range(0, 100_000, 65_536), range(65_536, 0, 1)]);
    }
}
