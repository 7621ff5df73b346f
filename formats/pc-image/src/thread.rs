//! Threads: registers and all that the kernel keeps for each.

use bincode::{Decode, Encode};

use crate::{Creds, SigInfo, TaskId};

/// General registers in the order of `struct user_regs_struct` of x86-64 (27 words).
pub type Regs = [u64; 27];

/// Scheduling of a thread: see sched(7).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sched {
    /// Policy number (`SCHED_OTHER` = 0, …), with `SCHED_RESET_ON_FORK` as its bit 0x40000000.
    pub policy: u32,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// `SCHED_DEADLINE` runtime, deadline, period in nanoseconds.
    pub deadline: [u64; 3],
    /// CPU affinity: a mask, little endian, bit N of byte N/8; empty = every CPU of the machine.
    pub affinity: Vec<u8>,
    /// ioprio_get(2).
    pub ioprio: u32,
    /// `PR_GET_TIMERSLACK` in nanoseconds.
    pub timer_slack: u64,
}

/// rseq(2) registration of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Its signature.
    pub sig: u32,
}

/// sigaltstack(2) of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct AltStack {
    /// Lowest address.
    pub sp: u64,
    /// `SS_DISABLE`, `SS_ONSTACK`, `SS_AUTODISARM`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

/// A classic BPF program of seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SeccompFilter {
    /// Instructions, 8 bytes each (`struct sock_filter`).
    pub insns: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_LOG` and the like, from `PTRACE_SECCOMP_GET_METADATA`.
    pub flags: u64,
}

/// seccomp(2) of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Seccomp {
    /// None.
    Disabled,
    /// `SECCOMP_SET_MODE_STRICT`.
    Strict,
    /// Filters, the first installed first.
    Filter(Vec<SeccompFilter>),
}

/// How a thread was blocked when it was caught, and what the copy must do that registers cannot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Restart {
    /// Registers say all: user code, or a call that the kernel redoes from them.
    None,
    /// The call was to be taken up through its restart block (`-ERESTART_RESTARTBLOCK`): relative sleeps, poll,
    /// timed futex waits. `left` nanoseconds remain of its time, if that could be learned.
    Block {
        /// Nanoseconds left of the call's time; `None` if the kernel does not say.
        left: Option<u64>,
    },
}

/// A thread at the stop.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Thread {
    /// Its task.
    pub task: TaskId,
    /// Its tid in its own pid namespace.
    pub tid: u32,
    /// Name (`comm`).
    pub comm: Vec<u8>,
    /// General registers, `fs_base` and `gs_base` among them.
    pub regs: Regs,
    /// Extended state in the XSAVE standard format as `PTRACE_GETREGSET(NT_X86_XSTATE)` gives it, cut after the last
    /// component in use (`XSTATE_BV` says which).
    pub xstate: Vec<u8>,
    /// How it was blocked.
    pub restart: Restart,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for this thread alone.
    pub pending: Vec<SigInfo>,
    /// Alternate signal stack.
    pub altstack: AltStack,
    /// Head and length of the robust futex list.
    pub robust_list: (u64, u64),
    /// Restartable sequences.
    pub rseq: Option<Rseq>,
    /// `CLONE_CHILD_CLEARTID` address, 0 = none.
    pub clear_child_tid: u64,
    /// Parent-death signal, 0 = none (`PR_GET_PDEATHSIG`).
    pub pdeath_signal: i32,
    /// Scheduling.
    pub sched: Sched,
    /// Credentials.
    pub creds: Creds,
    /// seccomp.
    pub seccomp: Seccomp,
}
