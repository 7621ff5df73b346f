//! Tasks: processes, what they are and what they own.

use bincode::{Decode, Encode};

use crate::{FdTableId, FileId, SigInfo, SigTableId, SpaceId, TaskId};

/// A task is born.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Task {
    /// Its number.
    pub id: TaskId,
    /// Its pid in its own pid namespace.
    pub pid: u32,
    /// The task that it is a child of; `None` for the root of the tree.
    pub parent: Option<TaskId>,
    /// Its address space; `None` for a zombie.
    pub space: Option<SpaceId>,
    /// Its descriptors.
    pub fds: Option<FdTableId>,
    /// Its signal actions.
    pub sigs: Option<SigTableId>,
    /// Process group id in its own pid namespace; 0 if led from outside that namespace.
    pub pgid: u32,
    /// Session id in its own pid namespace; 0 if led from outside that namespace.
    pub sid: u32,
    /// The signal that its parent gets at its end (17 = SIGCHLD).
    pub exit_signal: u8,
    /// The tids of its threads at this time, its pid first.
    pub tids: Vec<u32>,
    /// Name of the leader (`comm`), for people.
    pub comm: Vec<u8>,
}

/// An interval timer of setitimer(2). Microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct ITimer {
    /// Time left; 0 = disarmed.
    pub value: u64,
    /// Interval.
    pub interval: u64,
}

/// A POSIX timer of timer_create(2).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PosixTimer {
    /// The kernel's id of it, which the program knows.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// `sigev_signo`.
    pub signo: i32,
    /// `sigev_notify` (`SIGEV_SIGNAL`, `SIGEV_NONE`, `SIGEV_THREAD_ID`, …).
    pub notify: i32,
    /// The tid that gets the signal with `SIGEV_THREAD_ID`.
    pub tid: u32,
    /// `sigev_value`.
    pub sigval: u64,
    /// Time left in nanoseconds; 0 = disarmed.
    pub value: u64,
    /// Interval in nanoseconds.
    pub interval: u64,
    /// Overruns counted so far.
    pub overrun: i32,
}

/// What belongs to the process as a whole and exists only at the stop.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TaskState {
    /// The task.
    pub task: TaskId,
    /// Current directory.
    pub cwd: FileId,
    /// Root directory, where it is not `/`.
    pub root: Option<FileId>,
    /// umask(2).
    pub umask: u32,
    /// `(soft, hard)` of the 16 limits of getrlimit(2), by number; `u64::MAX` = no limit.
    pub rlimits: Vec<(u64, u64)>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [ITimer; 3],
    /// POSIX timers, by ascending id.
    pub timers: Vec<PosixTimer>,
    /// Signals pending for the process as a whole, in order.
    pub pending: Vec<SigInfo>,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// personality(2).
    pub personality: u32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// The process was stopped by a job-control signal (`SIGSTOP`, …) before it was dumped: the copy is stopped too.
    pub stopped: Option<i32>,
}

/// Credentials of a thread: see credentials(7), capabilities(7).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Creds {
    /// Real, effective, saved and file system user ids.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group ids.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets as bit masks.
    pub cap_inheritable: u64,
    /// Permitted.
    pub cap_permitted: u64,
    /// Effective.
    pub cap_effective: u64,
    /// Bounding.
    pub cap_bounding: u64,
    /// Ambient.
    pub cap_ambient: u64,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// no_new_privs.
    pub no_new_privs: bool,
}

/// What /proc/PID says of a task and can be set, beside what [`TaskState`] has. Not sent where all of it is as by birth.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TaskProc {
    /// The task.
    pub task: TaskId,
    /// The nice value in /proc/PID/autogroup: see sched(7).
    pub autogroup_nice: i32,
    /// /proc/PID/loginuid; `u32::MAX` = never set.
    pub loginuid: u32,
}
