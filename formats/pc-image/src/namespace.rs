//! Namespaces of a task that are not those of the tool that captured it: see namespaces(7), user_namespaces(7).

use bincode::{Decode, Encode};

use crate::TaskId;

/// A kind of namespace. Pid and time namespaces are described elsewhere: by pids, and by clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum NamespaceKind {
    /// Ids and capabilities.
    User,
    /// Network devices, addresses, rules, and abstract Unix sockets.
    Net,
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mnt,
    /// What is shown as the root of cgroups.
    Cgroup,
}

impl NamespaceKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::User, Self::Net, Self::Uts, Self::Ipc, Self::Mnt, Self::Cgroup];

    /// Its name in /proc/PID/ns.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Mnt => "mnt",
            Self::Cgroup => "cgroup",
        }
    }

    /// That of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Namespace {
    /// What it separates.
    pub kind: NamespaceKind,
    /// Its number, as /proc/PID/ns has it: `net:[4026531840]`.
    pub inode: u64,
    /// A mount namespace that a restore made as a copy of its own, with another /proc, and that has no mount since.
    pub copied: bool,
}

/// A line of /proc/PID/uid_map or gid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct IdRange {
    /// The first id in the user namespace.
    pub inside: u32,
    /// The same id in that of the tool that captured it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id in a user namespace that is `outside` in the surrounding one.
pub fn id_inside(map: &[IdRange], outside: u32) -> Option<u32> {
    let range = map.iter().find(|r| outside.checked_sub(r.outside).is_some_and(|at| at < r.count))?;
    range.inside.checked_add(outside - range.outside)
}

/// The id in the surrounding user namespace that is `inside` in this one.
pub fn id_outside(map: &[IdRange], inside: u32) -> Option<u32> {
    let range = map.iter().find(|r| inside.checked_sub(r.inside).is_some_and(|at| at < r.count))?;
    range.outside.checked_add(inside - range.inside)
}

/// The namespaces of a task that are not those of the tool that captured it. Not sent if there are none. All ids of
/// [`Creds`](crate::Creds) are those of that tool's user namespace; capabilities are those in the task's own.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TaskNamespaces {
    /// The task.
    pub task: TaskId,
    /// Ascending by kind, each at most once.
    pub others: Vec<Namespace>,
    /// User ids of the user namespace, if that is another.
    pub uid_map: Vec<IdRange>,
    /// Group ids of it.
    pub gid_map: Vec<IdRange>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways_and_what_is_not_mapped_is_nobody() {
        let map = [
            IdRange { inside: 0, outside: 1000, count: 1 },
            IdRange { inside: 1, outside: 100_000, count: 9 },
        ];
        assert_eq!([1000, 100_008].map(|id| id_inside(&map, id)), [Some(0), Some(9)]);
        assert_eq!([0, 9].map(|id| id_outside(&map, id)), [Some(1000), Some(100_008)]);
        assert_eq!([0, 999, 1001, 100_009].map(|id| id_inside(&map, id)), [None; 4]);
        let hostile = [IdRange { inside: u32::MAX, outside: 0, count: u32::MAX }];
        assert_eq!(id_inside(&hostile, 5), None);
    }
}
