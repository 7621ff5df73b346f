//! Threads: registers and all that the kernel keeps for each.

use std::sync::OnceLock;

use pc_image::{AltStack, Creds, Regs, Restart, Rseq, Sched, Seccomp, SeccompFilter, TaskId, Thread};
use pc_sys::sched;
use pc_trace::{Tid, Tracees, xstate};

use crate::error::{CaptureError, Context, Result, unsupported};
use crate::inside::ThreadTold;
use crate::procfs;
use crate::procfs::Status;
use crate::restart::Waits;
use crate::signal;

/// What anybody who may trace a thread can read of it.
#[derive(Debug)]
pub(crate) struct Outside {
    status: Status,
    comm: Vec<u8>,
    robust_list: (u64, u64),
    sched: Sched,
    sched_controls: SchedControls,
}

/// Least and greatest utilization, where they were set, and flags of `SCHED_DEADLINE`.
pub(crate) type SchedControls = (Option<(u32, u32)>, u64);

impl Outside {
    /// Reads it of each thread, in their order.
    pub fn look(pid: i32, tids: &[Tid]) -> Result<Vec<Self>> {
        let look = |tid: Tid| -> Result<Self> {
            let (sched, sched_controls) = scheduling(tid)?;
            Ok(Self {
                status: Status::read(tid).of(tid, "reading its status")?,
                comm: comm(pid, tid)?,
                robust_list: robust_list(tid)?,
                sched,
                sched_controls,
            })
        };
        tids.iter().map(|tid| look(*tid)).collect()
    }

    pub fn sched_controls(&self) -> SchedControls {
        self.sched_controls
    }
}

/// A thread as far as anybody can read it while it runs; what is left is absent.
pub(crate) fn outside(task: TaskId, outside: Outside) -> Thread {
    let Outside { status, comm, robust_list, sched, .. } = outside;
    Thread {
        task,
        tid: status.own_pid() as u32,
        comm,
        regs: Regs::default(),
        xstate: Vec::new(),
        restart: Restart::None,
        sigmask: 0,
        pending: Vec::new(),
        altstack: AltStack { sp: 0, flags: 0, size: 0 },
        robust_list,
        rseq: None,
        clear_child_tid: 0,
        pdeath_signal: 0,
        sched,
        creds: creds(&status, 0),
        seccomp: Seccomp::Disabled,
    }
}

impl Outside {
    /// Its /proc/PID/status.
    pub fn status(&self) -> &Status {
        &self.status
    }
}

/// A thread, with what it has reported itself and what was to be read from outside.
pub(crate) fn thread(
    tracees: &Tracees,
    task: TaskId,
    told: &ThreadTold,
    outside: Outside,
    waits: &Waits,
) -> Result<Thread> {
    let tid = told.tid;
    let Outside { status, comm, robust_list, sched, .. } = outside;
    let mut regs = tracees.regs(tid)?;
    let (restart, call) = waits.restart(tid, &regs);
    regs.orig_rax = call;
    runs_64_bit(tracees.pid(), tid, &regs)?;
    let mut extended = tracees.xstate(tid)?;
    extended.truncate(xstate::used_len(&extended));
    let rseq = tracees.rseq(tid)?;
    Ok(Thread {
        task,
        tid: tracees.ns_tid(tid)? as u32,
        comm,
        regs: words(&regs),
        xstate: extended,
        restart,
        sigmask: tracees.sigmask(tid)?,
        pending: signal::pending(tracees.pending(tid, false)?),
        altstack: AltStack { sp: told.altstack.0, flags: told.altstack.1, size: told.altstack.2 },
        robust_list,
        rseq: rseq.map(|r| Rseq { addr: r.rseq_abi_pointer, len: r.rseq_abi_size, sig: r.signature }),
        clear_child_tid: told.clear_child_tid,
        pdeath_signal: told.pdeath_signal,
        sched: Sched { timer_slack: told.timer_slack, ..sched },
        creds: creds(&status, told.securebits),
        seccomp: seccomp(tracees, tid, status.seccomp)?,
    })
}

fn comm(pid: i32, tid: Tid) -> Result<Vec<u8>> {
    procfs::name(pid, tid).of(tid, "reading its name")
}

/// Refuses a thread in a segment of 32-bit or 16-bit code, also of a program that is otherwise 64-bit.
fn runs_64_bit(pid: i32, tid: Tid, regs: &pc_trace::Regs) -> Result<()> {
    const USER_CS: u64 = 0x33; // arch/x86/include/asm/segment.h
    if regs.cs == USER_CS {
        return Ok(());
    }
    unsupported(pid, None, format!("its thread {tid} runs 32-bit code, which cannot be moved yet"))
}

fn words(r: &pc_trace::Regs) -> Regs {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi,
        r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ]
}

/// None where the kernel has none (a thread that never set one has a null head).
fn robust_list(tid: Tid) -> Result<(u64, u64)> {
    let (head, len) = sched::get_robust_list(tid).of(tid, "reading its robust list")?;
    Ok(if head == 0 { (0, 0) } else { (head, len) })
}

/// But for the timer slack, which only the thread itself can tell.
fn scheduling(tid: Tid) -> Result<(Sched, SchedControls)> {
    const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
    const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
    /// `SCHED_FLAG_RECLAIM`, `SCHED_FLAG_DL_OVERRUN`.
    const SCHED_DL_FLAGS: u64 = 2 | 4;
    let attr = sched::sched_getattr(tid).of(tid, "reading its scheduling")?;
    let reset = if attr.flags & SCHED_FLAG_RESET_ON_FORK != 0 { SCHED_RESET_ON_FORK } else { 0 };
    // (0, 0) is a kernel without clamps.
    let clamp = Some((attr.util_min, attr.util_max)).filter(|clamp| !matches!(clamp, (0, 0 | 1024)));
    let is_fair = matches!(attr.policy as i32, libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE);
    // Where the thread asked for no slice of its own, this is the machine's.
    let runtime = if is_fair && attr.runtime == usual_slice() { 0 } else { attr.runtime };
    let sched = Sched {
        policy: attr.policy | reset,
        nice: attr.nice,
        priority: attr.priority,
        deadline: [runtime, attr.deadline, attr.period],
        affinity: affinity(tid)?,
        ioprio: sched::ioprio_get(tid).of(tid, "reading its I/O priority")?,
        timer_slack: 0,
    };
    Ok((sched, (clamp, attr.flags & SCHED_DL_FLAGS)))
}

/// The slice of a thread that asked for none: ours. Nanoseconds.
fn usual_slice() -> u64 {
    static SLICE: OnceLock<u64> = OnceLock::new();
    *SLICE.get_or_init(|| sched::sched_getattr(0).map_or(0, |own| own.runtime))
}

/// Empty if the thread may run on every CPU that is there.
fn affinity(tid: Tid) -> Result<Vec<u8>> {
    let mask = sched::sched_getaffinity(tid).of(tid, "reading its CPU affinity")?;
    let all = online_cpus();
    let may = |cpu: &usize| mask.get(cpu / 8).is_some_and(|byte| byte & (1 << (cpu % 8)) != 0);
    Ok(if !all.is_empty() && all.iter().all(may) { Vec::new() } else { mask })
}

/// Read once: asking for each of many threads would keep the process standing.
fn online_cpus() -> &'static [usize] {
    static ONLINE: OnceLock<Vec<usize>> = OnceLock::new();
    ONLINE.get_or_init(|| {
        parse_cpus(&std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default())
    })
}

/// `0-3,5`
fn parse_cpus(list: &str) -> Vec<usize> {
    let ranges = list.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

fn creds(status: &Status, securebits: u32) -> Creds {
    let [cap_inheritable, cap_permitted, cap_effective, cap_bounding, cap_ambient] = status.caps;
    Creds {
        uids: status.uids,
        gids: status.gids,
        groups: status.groups.clone(),
        cap_inheritable,
        cap_permitted,
        cap_effective,
        cap_bounding,
        cap_ambient,
        securebits,
        no_new_privs: status.no_new_privs,
    }
}

fn seccomp(tracees: &Tracees, tid: Tid, mode: u32) -> Result<Seccomp> {
    match mode {
        0 => Ok(Seccomp::Disabled),
        1 => Ok(Seccomp::Strict),
        2 => {
            let mut filters = Vec::new();
            while let Some(filter) = tracees.seccomp_filter(tid, filters.len()).map_err(CaptureError::from)? {
                filters.push(SeccompFilter { insns: filter.insns, flags: filter.flags });
            }
            // The kernel counts from the newest; they are installed from the oldest.
            filters.reverse();
            Ok(Seccomp::Filter(filters))
        }
        other => {
            unsupported(tracees.pid(), None, format!("thread {tid} has seccomp in the unknown mode {other}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpus("0-2,5\n"), [0, 1, 2, 5]);
        assert!(parse_cpus("").is_empty());
    }
}
