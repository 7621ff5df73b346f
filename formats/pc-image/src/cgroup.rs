//! Cgroups of a task: see cgroups(7).

use bincode::{Decode, Encode};

use crate::TaskId;

/// A line of /proc/PID/cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CgroupPath {
    /// Controllers of the hierarchy, as the kernel lists them (`cpu,cpuacct`, `name=systemd`); empty for version 2.
    pub controllers: String,
    /// The path in it, as the tool that captured it sees it.
    pub path: Vec<u8>,
}

/// The cgroups of a task. Sent if any is not the root of its hierarchy; said again, it replaces what was said.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Cgroup {
    /// The task.
    pub task: TaskId,
    /// One for each hierarchy in which it is not in the root.
    pub paths: Vec<CgroupPath>,
}
