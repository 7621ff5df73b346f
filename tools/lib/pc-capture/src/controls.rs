//! Controls that few programs set: prctl(2), arch_prctl(2), membarrier(2), sched_setattr(2), security labels; and what tells
//! of confinement that cannot be carried.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use pc_image::{Speculation, TaskId, TaskSettings, ThreadSettings};
use pc_sys::kcmp::{Resource, kcmp};
use pc_sys::prctl::has_core_cookie;
use pc_sys::sem::operated_last;
use pc_sys::witness::Witness;
use pc_trace::{Call, Tid};

use crate::error::{CaptureError, Context, Result, Unsupported};
use crate::procfs::{self, Stat, Status};
use crate::task::TASK;

const PR_GET_TSC: u64 = 25;
const PR_MCE_KILL_GET: u64 = 34;
const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_GET_IO_FLUSHER: u64 = 58;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const PR_RSEQ_SLICE_EXTENSION: u64 = 79;
const ARCH_GET_UNTAG_MASK: u64 = 0x4001;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// `PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`, `PR_SPEC_L1D_FLUSH`.
const SPECULATION: [u32; 3] = [0, 1, 2];
/// Speculation controls that are turned on, not off.
const L1D_FLUSH: u32 = 2;

/// Bytes of results of a thread: `PR_GET_TSC`, and two words of get_robust_list(2).
pub(crate) const THREAD_ROOM: usize = 24;
/// Bytes of results of the process: `ARCH_GET_UNTAG_MASK`.
pub(crate) const PROCESS_ROOM: usize = 8;
/// How many calls [`process_calls`] gives.
pub(crate) const PROCESS_CALLS: usize = 3;
/// How many calls [`thread_calls`] gives.
pub(crate) const THREAD_CALLS: usize = 9;

/// What a thread has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThreadTold {
    tsc_trapped: bool,
    mce_kill: Option<u32>,
    speculation: Vec<Speculation>,
    personality: u32,
    rseq_slice: bool,
    io_flusher: bool,
    /// It may not look into the [`Witness`].
    barred: bool,
}

/// What the process has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    membarrier: u32,
    address_masking: bool,
    chooses_timer_ids: bool,
}

fn prctl(option: u64, args: [u64; 2]) -> Call {
    Call::new(libc::SYS_prctl, [option, args[0], args[1], 0, 0])
}

/// What a thread is asked; `witness` is the process that it should be able to look into, 0 for none.
pub(crate) fn thread_calls(room: u64, witness: i32) -> Vec<Call> {
    let mut calls = vec![
        prctl(PR_GET_TSC, [room, 0]),
        prctl(PR_MCE_KILL_GET, [0, 0]),
        prctl(PR_GET_IO_FLUSHER, [0, 0]),
        prctl(PR_RSEQ_SLICE_EXTENSION, [1, 0]),
        Call::new(libc::SYS_personality, [u64::from(u32::MAX)]),
        Call::new(libc::SYS_get_robust_list, [witness as u64, room + 8, room + 16]),
    ];
    calls.extend(SPECULATION.map(|feature| prctl(PR_GET_SPECULATION_CTRL, [feature.into(), 0])));
    calls
}

/// What the process is asked.
pub(crate) fn process_calls(room: u64) -> [Call; PROCESS_CALLS] {
    [
        Call::new(libc::SYS_membarrier, [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0]),
        prctl(PR_TIMER_CREATE_RESTORE_IDS, [2, 0]),
        Call::new(libc::SYS_arch_prctl, [ARCH_GET_UNTAG_MASK, room]),
    ]
}

/// Reads the answers; those that are errors are of a kernel that has no such thing.
pub(crate) fn read_thread(words: &[u64], answers: &[i64]) -> ThreadTold {
    const PR_TSC_SIGSEGV: u64 = 2;
    const PR_MCE_KILL_DEFAULT: i64 = 2;
    let answer = |i: usize| answers.get(i).copied().unwrap_or(-1);
    let states = SPECULATION.iter().zip(answers.get(6..).unwrap_or_default());
    ThreadTold {
        tsc_trapped: answer(0) == 0 && words.first().is_some_and(|tsc| *tsc as u32 as u64 == PR_TSC_SIGSEGV),
        mce_kill: u32::try_from(answer(1)).ok().filter(|kind| i64::from(*kind) != PR_MCE_KILL_DEFAULT),
        io_flusher: answer(2) == 1,
        rseq_slice: answer(3) == 1,
        personality: answer(4) as u32,
        barred: answer(5) == -i64::from(libc::EPERM),
        speculation: states.filter_map(|(feature, state)| speculation(*feature, *state)).collect(),
    }
}

/// A control that is not as a new process has it; `None` too where the machine has it as it is for all.
fn speculation(feature: u32, answer: i64) -> Option<Speculation> {
    const PR_SPEC_PRCTL: u32 = 1;
    const PR_SPEC_ENABLE: u32 = 2;
    let state = u32::try_from(answer).ok().filter(|state| state & PR_SPEC_PRCTL != 0)? & !PR_SPEC_PRCTL;
    let set = (state == PR_SPEC_ENABLE) == (feature == L1D_FLUSH);
    set.then_some(Speculation { feature, state })
}

/// Reads the answers of the process.
pub(crate) fn read_process(words: &[u64], answers: &[i64]) -> Told {
    let answer = |i: usize| answers.get(i).copied().unwrap_or(-1);
    Told {
        membarrier: u32::try_from(answer(0)).unwrap_or(0),
        chooses_timer_ids: answer(1) == 1,
        address_masking: answer(2) == 0 && words.first().is_some_and(|mask| *mask != u64::MAX),
    }
}

/// The record of a process's controls, if one is not as a new process has it.
pub(crate) fn task_settings(pid: i32, told: &Told) -> Option<TaskSettings> {
    let Told { membarrier, chooses_timer_ids, .. } = *told;
    let found = TaskSettings { task: TASK, membarrier, chooses_timer_ids, label: label(pid) };
    (found != TaskSettings::new(TASK)).then_some(found)
}

/// The record of a thread's controls, if one is not as a new process has it. `personality` is that of the process.
pub(crate) fn thread_settings(
    tid: u32,
    told: &ThreadTold,
    (util_clamp, sched_flags): (Option<(u32, u32)>, u64),
    personality: u32,
) -> Option<ThreadSettings> {
    let found = ThreadSettings {
        tsc_trapped: told.tsc_trapped,
        mce_kill: told.mce_kill,
        speculation: told.speculation.clone(),
        util_clamp,
        sched_flags,
        personality: Some(told.personality).filter(|own| *own != personality),
        rseq_slice: told.rseq_slice,
        ..ThreadSettings::new(TASK, tid)
    };
    (found != ThreadSettings::new(TaskId(found.task.0), tid)).then_some(found)
}

/// The security label of a process, where it confines it.
pub(crate) fn label(pid: i32) -> Option<Vec<u8>> {
    let mut label = procfs::read_bytes(pid, "attr/current").ok()?;
    while label.last().is_some_and(|last| matches!(last, 0 | b'\n')) {
        label.pop();
    }
    let free = [&b""[..], b"unconfined", b"kernel"].contains(&label.as_slice());
    (!free).then_some(label)
}

/// What cannot be moved of what was found inside. `probed` says of which threads [`Witness`] says something.
pub(crate) fn refused(pid: i32, told: &Told, threads: &[(Tid, &ThreadTold, bool)]) -> Vec<Unsupported> {
    let mut bad = Vec::new();
    let mut refuse = |what: String| bad.push(Unsupported::new(pid, None, what));
    if told.address_masking {
        refuse("it has linear address masking (ARCH_ENABLE_TAGGED_ADDR), which cannot be moved yet".into());
    }
    for (tid, told, probed) in threads {
        if told.io_flusher {
            refuse(io_flusher(*tid));
        }
        if told.barred && *probed {
            refuse(format!(
                "thread {tid} may not look into a process of its own user: it has a Landlock domain, which cannot be \
                 moved"
            ));
        }
    }
    bad
}

fn io_flusher(tid: Tid) -> String {
    format!("thread {tid} is an I/O flusher (PR_SET_IO_FLUSHER), which cannot be moved yet")
}

/// What cannot be moved and can be told while the process runs.
pub(crate) fn judge(pid: i32, tids: &[Tid], probe: Option<&Probe>) -> Result<Vec<Unsupported>> {
    let mut bad = at_any_time(pid, tids, probe)?;
    for tid in tids {
        // `PF_MEMALLOC_NOIO`: a thread may have lost the capability by which the flag is asked for.
        const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;
        if Stat::read(*tid).is_ok_and(|stat| stat.flags & PF_MEMALLOC_NOIO != 0) {
            bad.push(Unsupported::new(pid, None, io_flusher(*tid)));
        }
    }
    Ok(bad)
}

/// The same as far as it costs nothing, for the stop.
pub(crate) fn at_any_time(pid: i32, tids: &[Tid], probe: Option<&Probe>) -> Result<Vec<Unsupported>> {
    let mut bad = Vec::new();
    let mut refuse = |what: String| bad.push(Unsupported::new(pid, None, what));
    if let Some(probe) = probe
        && probe.sees_adjustments(pid).of(pid, "looking for semaphore adjustments")?
    {
        refuse("it has used semaphores with SEM_UNDO, whose adjustments cannot be moved".into());
    }
    for tid in tids {
        // One that has ended has none.
        if has_core_cookie(*tid).unwrap_or(false) {
            refuse(format!(
                "thread {tid} has a cookie of core scheduling (PR_SCHED_CORE), which cannot be moved yet"
            ));
        }
    }
    Ok(bad)
}

/// A process of ours that the target's threads can look into unless a Landlock domain bars them, and that never had anything of
/// what others may share.
#[derive(Debug)]
pub(crate) struct Probe {
    witness: Witness,
    /// Its pid as the target sees it; 0 where nothing would be told: of a process in another user namespace, or under another
    /// security label.
    pub pid: i32,
    ids: (u32, u32),
}

impl Probe {
    /// `None` where it cannot be made.
    pub fn new(pid: i32, pidfd: &OwnedFd, status: &Status) -> Option<Self> {
        let same = |kind: &str| {
            let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{kind}")).ok();
            link(&pid.to_string()) == link("self")
        };
        let ids = (status.uids[0], status.gids[0]);
        let namespace = if same("pid") { None } else { Some(pidfd.as_fd()) };
        let witness = Witness::new(ids.0, ids.1, namespace).ok()?;
        let tells = same("user") && label(pid) == label(std::process::id() as i32);
        let seen = if tells { Status::read(witness.pid()).ok()?.own_pid() } else { 0 };
        Some(Self { witness, pid: seen, ids })
    }

    /// Whether it says something of a thread: where that has other ids, these may bar it.
    pub fn tells_of(&self, status: &Status) -> bool {
        self.pid != 0 && (status.uids[0], status.gids[0]) == self.ids
    }

    /// Whether a process may have semaphore adjustments (`SEM_UNDO`). It has a list of them if it ever made one, and if it ever had
    /// a second thread; so a semaphore has to be there that it was the last to operate on, too.
    fn sees_adjustments(&self, pid: i32) -> io::Result<bool> {
        let none = kcmp(pid, self.witness.pid(), Resource::SysVSem)?.is_eq();
        Ok(!none && operated_last(pid)?)
    }
}

/// Fails with all that was found.
pub(crate) fn none(bad: Vec<Unsupported>) -> Result<()> {
    if bad.is_empty() { Ok(()) } else { Err(CaptureError::Unsupported(bad)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_that_the_machine_decides_is_not_the_threads() {
        assert_eq!(speculation(0, 2), None, "enabled for all");
        assert_eq!(speculation(0, 3), None, "enabled, and could be disabled");
        assert_eq!(speculation(0, 5), Some(Speculation { feature: 0, state: 4 }));
        assert_eq!(speculation(1, 9), Some(Speculation { feature: 1, state: 8 }));
        assert_eq!(speculation(2, 5), None, "flushing is off by default");
        assert_eq!(speculation(2, 3), Some(Speculation { feature: 2, state: 2 }));
        assert_eq!(speculation(0, -22), None);
    }

    #[test]
    fn what_is_as_a_new_process_has_it_makes_no_record() {
        let answers = [0, 2, 0, -22, 0, 0, 3, 3, 8];
        assert_eq!(thread_calls(0, 0).len(), THREAD_CALLS);
        let told = read_thread(&[1, 0, 0], &answers);
        assert_eq!(thread_settings(5, &told, (None, 0), 0), None);
        let told = read_thread(&[2, 0, 0], &[0, 1, 0, -22, 7, -1, 3, 9, 8]);
        let found = thread_settings(5, &told, (None, 0), 0).unwrap();
        assert_eq!((found.tsc_trapped, found.mce_kill), (true, Some(1)));
        assert_eq!((found.personality, found.speculation.len(), told.barred), (Some(7), 1, true));
    }
}
