//! Namespaces that the process enters, and what its ids and capabilities are worth there: see setns(2) and
//! user_namespaces(7).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use pc_image::{Creds, IdRange, NamespaceKind, TaskNamespaces, Thread, id_inside, id_outside};
use pc_sys::pidfd;
use pc_trace::Call;

use crate::error::{Context, RebuildError};
use crate::fdtable::send;
use crate::newborn::Newborn;
use crate::settings::{Notices, Settings};
use crate::{creds, fdtable};

/// A namespace that the copy is to have.
#[derive(Debug, Clone)]
pub enum Join {
    /// Ours.
    Own,
    /// This one.
    Into(Arc<Entry>),
}

/// A namespace to enter.
#[derive(Debug)]
pub struct Entry {
    namespace: OwnedFd,
    /// Of a user namespace: its users and groups, as ours are.
    ids: [Vec<IdRange>; 2],
}

impl Join {
    /// That of a process, which is looked up now and never again.
    pub fn of_process(kind: NamespaceKind, pid: i32) -> io::Result<Self> {
        let process = pidfd::pidfd_open(pid)?;
        let namespace = File::open(format!("/proc/{pid}/ns/{}", kind.name()))?.into();
        let map = |name: &str| match kind {
            NamespaceKind::User => Ok(id_map(&fs::read_to_string(format!("/proc/{pid}/{name}"))?)),
            _ => Ok(Vec::new()),
        };
        let ids = [map("uid_map"), map("gid_map")];
        // Had it ended, its number might be another's by now.
        pidfd::pidfd_send_signal(process.as_fd(), 0)?;
        let [users, groups]: [io::Result<_>; 2] = ids;
        Ok(Self::Into(Arc::new(Entry { namespace, ids: [users?, groups?] })))
    }

    /// That of a file such as /run/netns/NAME. None can tell the ids of a user namespace in this way.
    pub fn of_path(kind: NamespaceKind, path: &Path) -> io::Result<Self> {
        if kind == NamespaceKind::User {
            return Err(io::Error::other("a user namespace is given by a process in it: pid:N"));
        }
        let namespace = File::open(path)?.into();
        Ok(Self::Into(Arc::new(Entry { namespace, ids: [Vec::new(), Vec::new()] })))
    }
}

fn id_map(text: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.parse().ok());
        let mut next = || words.next().flatten();
        Some(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().filter_map(range).collect()
}

/// The namespaces that were asked for, by kind.
pub type Joins = BTreeMap<NamespaceKind, Join>;

/// The namespace of a kind that is to be entered, if it is not ours.
pub fn entry(joins: &Joins, kind: NamespaceKind) -> Option<BorrowedFd<'_>> {
    match joins.get(&kind) {
        Some(Join::Into(entry)) => Some(entry.namespace.as_fd()),
        Some(Join::Own) | None => None,
    }
}

/// Refuses a process that was in other namespaces than its pc-dump, unless it is said for each which one it is to have.
pub fn judge(namespaces: &TaskNamespaces, settings: &Settings) -> Result<(), RebuildError> {
    let missing: Vec<&str> = namespaces
        .others
        .iter()
        .filter(|other| !other.copied && !settings.join.contains_key(&other.kind))
        .map(|other| other.kind.name())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let options: Vec<String> = missing.iter().map(|kind| format!("--join {kind}={}", places(kind))).collect();
    Err(RebuildError::Unsupported(format!(
        "it was in a namespace of its own ({}): say which one it is to have with {}",
        missing.join(", "),
        options.join(" ")
    )))
}

fn places(kind: &str) -> &'static str {
    if kind == NamespaceKind::User.name() { "pid:N|own" } else { "PATH|pid:N|own" }
}

/// Refuses to enter a user namespace with what cannot be done there.
pub fn judge_user(
    namespaces: Option<&TaskNamespaces>,
    threads: usize,
    settings: &Settings,
) -> Result<(), RebuildError> {
    if entry(&settings.join, NamespaceKind::User).is_none() {
        return Ok(());
    }
    if !was_in_another(namespaces, NamespaceKind::User) {
        return Err(RebuildError::Unsupported(
            "it was in no user namespace of its own, and its ids mean nothing in the one of --join user"
                .into(),
        ));
    }
    // The kernel lets a process of one thread alone enter it, and lets nobody choose the id of a thread in it.
    if threads > 1 {
        return Err(RebuildError::Unsupported(format!(
            "it has {threads} threads, and only a process of one thread can enter a user namespace (--join user=own)"
        )));
    }
    Ok(())
}

fn was_in_another(namespaces: Option<&TaskNamespaces>, kind: NamespaceKind) -> bool {
    namespaces.is_some_and(|all| all.others.iter().any(|other| other.kind == kind))
}

/// Says which namespaces are not what they were.
pub fn notices(namespaces: &TaskNamespaces, settings: &Settings, notices: Notices<'_>) {
    for other in &namespaces.others {
        let kind = other.kind.name();
        match settings.join.get(&other.kind) {
            Some(Join::Own) if other.kind == NamespaceKind::User => notices(
                "its user namespace becomes ours: it has no capabilities, can gain none (no_new_privs), and has the ids that it \
                 had outside",
            ),
            Some(Join::Own) => notices(&format!("its {kind} namespace becomes ours")),
            None if other.copied && !settings.new_pid_ns => {
                notices(&format!("its {kind} namespace, which a restore made, becomes ours"));
            }
            _ => {}
        }
    }
}

/// The order in which they are entered: that of mounts last, as it is the one that takes ways to files away.
const ORDER: [(NamespaceKind, i32); 5] = [
    (NamespaceKind::Cgroup, libc::CLONE_NEWCGROUP),
    (NamespaceKind::Ipc, libc::CLONE_NEWIPC),
    (NamespaceKind::Uts, libc::CLONE_NEWUTS),
    (NamespaceKind::Net, libc::CLONE_NEWNET),
    (NamespaceKind::Mnt, libc::CLONE_NEWNS),
];

/// A husk of one thread enters all that is asked for, but for a user namespace, where it could do little for itself.
pub fn enter(newborn: &mut Newborn, joins: &Joins) -> Result<(), RebuildError> {
    for (kind, flag) in ORDER {
        let Some(namespace) = entry(joins, kind) else { continue };
        let fd = send(newborn, std::iter::once(namespace))?[0] as u64;
        let calls = [Call::new(libc::SYS_setns, [fd, flag as u64]), Call::new(libc::SYS_close, [fd])];
        let what = || format!("entering the {} namespace of --join", kind.name());
        newborn.husk.batch_ok(newborn.husk.pid(), &calls).what_of(what)?;
    }
    Ok(())
}

/// Does something in the network namespace of --join, if there is one: sockets that are made meanwhile belong there. Only the
/// calling thread goes there, and it comes back.
pub fn in_network<T>(
    joins: &Joins,
    work: impl FnOnce() -> Result<T, RebuildError>,
) -> Result<T, RebuildError> {
    let Some(namespace) = entry(joins, NamespaceKind::Net) else { return work() };
    let own = File::open("/proc/thread-self/ns/net").what("opening our network namespace")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).what("entering the net namespace of --join")?;
    let done = work();
    setns(own, CloneFlags::CLONE_NEWNET).what("coming back from the net namespace of --join")?;
    done
}

/// What threads are to have in the user namespace where they will be, in ids of ours.
pub fn credentials(
    namespaces: Option<&TaskNamespaces>,
    joins: &Joins,
    mut threads: BTreeMap<u32, Thread>,
) -> Result<BTreeMap<u32, Thread>, RebuildError> {
    let Some(namespaces) = namespaces.filter(|all| was_in_another(Some(all), NamespaceKind::User)) else {
        return Ok(threads);
    };
    for thread in threads.values_mut() {
        thread.creds = match joins.get(&NamespaceKind::User) {
            Some(Join::Into(entry)) => mapped(namespaces, entry, &thread.creds)?,
            _ => powerless(&thread.creds),
        };
    }
    Ok(threads)
}

/// What the kernel grants outside of a user namespace to who has everything inside: its ids, and nothing by them that it did
/// not have. By execve(2) a process gains nothing outside either, so it must not here.
fn powerless(creds: &Creds) -> Creds {
    Creds {
        cap_inheritable: 0,
        cap_permitted: 0,
        cap_effective: 0,
        cap_bounding: 0,
        cap_ambient: 0,
        no_new_privs: true,
        ..creds.clone()
    }
}

/// Ids that inside are what they were inside. One that had no meaning inside must not get any.
fn mapped(namespaces: &TaskNamespaces, entry: &Entry, creds: &Creds) -> Result<Creds, RebuildError> {
    let map = |what: &str, from: &[IdRange], to: &[IdRange], id: u32| {
        let refuse = |why: &str| Err(RebuildError::Unsupported(format!("{what} id {id} {why}")));
        match id_inside(from, id) {
            Some(inside) => match id_outside(to, inside) {
                Some(outside) => Ok(outside),
                None => refuse(&format!(
                    "was {inside} in its user namespace, and there is none in that of --join"
                )),
            },
            None if id_inside(to, id).is_some() => {
                refuse("meant nothing in its user namespace, and is somebody's in that of --join")
            }
            None => Ok(id),
        }
    };
    let user = |id| map("user", &namespaces.uid_map, &entry.ids[0], id);
    let group = |id| map("group", &namespaces.gid_map, &entry.ids[1], id);
    let four =
        |ids: [u32; 4], of: &dyn Fn(u32) -> Result<u32, RebuildError>| -> Result<[u32; 4], RebuildError> {
            let [a, b, c, d] = ids;
            Ok([of(a)?, of(b)?, of(c)?, of(d)?])
        };
    let (uids, gids) = (four(creds.uids, &user)?, four(creds.gids, &group)?);
    if uids[3] != uids[1] || gids[3] != gids[1] {
        let why = "file system ids of its own, which cannot be set in a user namespace that is joined";
        return Err(RebuildError::Unsupported(why.into()));
    }
    let groups = creds.groups.iter().map(|id| group(*id)).collect::<Result<_, _>>()?;
    Ok(Creds { uids, gids, groups, ..creds.clone() })
}

/// The way into a user namespace, in a husk that has its descriptors and its ids still to come.
pub struct Door(u64);

/// Brings the user namespace of --join, if there is one, into the husk.
pub fn bring_user(newborn: &mut Newborn, joins: &Joins) -> Result<Option<Door>, RebuildError> {
    let Some(namespace) = entry(joins, NamespaceKind::User) else { return Ok(None) };
    fdtable::another_channel(newborn)?;
    let fd = send(newborn, std::iter::once(namespace))?[0];
    let socket = newborn.husk_socket as u64;
    newborn.husk.call(newborn.husk.pid(), Call::new(libc::SYS_close, [socket]))?;
    Ok(Some(Door(fd as u64)))
}

/// Enters it, with the ids of `wanted` (whose capabilities come later): they need no meaning inside.
pub fn enter_user(newborn: &mut Newborn, Door(fd): Door, wanted: &Creds) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let calls = creds::ids(&mut newborn.husk, wanted)?;
    newborn.husk.batch_ok(pid, &calls).what("setting the ids of the process")?;
    let calls =
        [Call::new(libc::SYS_setns, [fd, libc::CLONE_NEWUSER as u64]), Call::new(libc::SYS_close, [fd])];
    newborn.husk.batch_ok(pid, &calls).what("entering the user namespace of --join")?;
    newborn.husk.reset();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pc_image::TaskId;

    fn creds() -> Creds {
        Creds {
            uids: [100_000; 4],
            gids: [100_000; 4],
            groups: vec![5],
            cap_inheritable: 1,
            cap_permitted: u64::MAX,
            cap_effective: u64::MAX,
            cap_bounding: u64::MAX,
            cap_ambient: 1,
            securebits: 0,
            no_new_privs: false,
        }
    }

    fn ranges(inside: u32, outside: u32) -> Vec<IdRange> {
        vec![IdRange { inside, outside, count: 65_536 }]
    }

    fn entry_of(outside: u32) -> Entry {
        let namespace = File::open("/proc/self/ns/user").unwrap().into();
        Entry { namespace, ids: [ranges(0, outside), ranges(0, outside)] }
    }

    fn namespaces() -> TaskNamespaces {
        let map = ranges(0, 100_000);
        TaskNamespaces { task: TaskId(0), others: Vec::new(), uid_map: map.clone(), gid_map: map }
    }

    #[test]
    fn ids_are_what_they_were_inside_and_nobody_comes_to_be_somebody() {
        let there = mapped(&namespaces(), &entry_of(300_000), &creds()).unwrap();
        assert_eq!((there.uids, there.gids, there.groups), ([300_000; 4], [300_000; 4], vec![5]));
        let refused = mapped(&namespaces(), &entry_of(0), &creds()).unwrap_err().to_string();
        assert!(refused.contains("group id 5 meant nothing"), "{refused}");
    }

    #[test]
    fn outside_of_its_user_namespace_it_has_no_capability_and_can_gain_none() {
        let outside = powerless(&creds());
        let all =
            [outside.cap_permitted, outside.cap_effective, outside.cap_bounding, outside.cap_inheritable];
        assert_eq!((all, outside.cap_ambient, outside.no_new_privs), ([0; 4], 0, true));
    }
}
