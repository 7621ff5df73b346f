//! Controls that few programs set: prctl(2), arch_prctl(2), membarrier(2), sched_setattr(2), security labels. Each record is
//! written only where something is another than a new process has it.

use bincode::{Decode, Encode};

use crate::TaskId;

/// Controls of a process.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TaskSettings {
    /// The task.
    pub task: TaskId,
    /// membarrier(2): a mask of the `MEMBARRIER_CMD_REGISTER_*` that it has made.
    pub membarrier: u32,
    /// It chooses the ids of the POSIX timers that it makes (`PR_TIMER_CREATE_RESTORE_IDS`).
    pub chooses_timer_ids: bool,
    /// Its security label (/proc/PID/attr/current), where it is confined by one.
    pub label: Option<Vec<u8>>,
}

impl TaskSettings {
    /// As a new process has them.
    pub fn new(task: TaskId) -> Self {
        Self { task, membarrier: 0, chooses_timer_ids: false, label: None }
    }
}

/// A speculation control of `PR_SET_SPECULATION_CTRL` that is not as a new process has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Speculation {
    /// `PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`, `PR_SPEC_L1D_FLUSH`.
    pub feature: u32,
    /// `PR_SPEC_ENABLE`, `PR_SPEC_DISABLE`, `PR_SPEC_FORCE_DISABLE`, `PR_SPEC_DISABLE_NOEXEC`.
    pub state: u32,
}

/// Controls of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ThreadSettings {
    /// Its task.
    pub task: TaskId,
    /// Its tid in its own pid namespace.
    pub tid: u32,
    /// Reading the time-stamp counter raises SIGSEGV (`PR_SET_TSC`).
    pub tsc_trapped: bool,
    /// `PR_MCE_KILL`: `PR_MCE_KILL_LATE` (0), `PR_MCE_KILL_EARLY` (1); `None` = as the machine has it.
    pub mce_kill: Option<u32>,
    /// Speculation controls.
    pub speculation: Vec<Speculation>,
    /// Least and greatest utilization of sched_setattr(2).
    pub util_clamp: Option<(u32, u32)>,
    /// `SCHED_FLAG_RECLAIM`, `SCHED_FLAG_DL_OVERRUN`.
    pub sched_flags: u64,
    /// personality(2), where it is not that of the process.
    pub personality: Option<u32>,
    /// `PR_RSEQ_SLICE_EXTENSION` is on.
    pub rseq_slice: bool,
}

impl ThreadSettings {
    /// As a thread of a new process has them.
    pub fn new(task: TaskId, tid: u32) -> Self {
        Self {
            task,
            tid,
            tsc_trapped: false,
            mce_kill: None,
            speculation: Vec::new(),
            util_clamp: None,
            sched_flags: 0,
            personality: None,
            rseq_slice: false,
        }
    }
}

/// When POSIX timers end that were set to a date.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TimerDates {
    /// The task.
    pub task: TaskId,
    /// Ids of timers, ascending, each with the date of its next end: nanoseconds of its own clock.
    pub dates: Vec<(i32, u64)>,
}
