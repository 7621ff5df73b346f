//! Threads: made stopped, given what the kernel keeps for each, and their registers.

use std::collections::BTreeMap;

use pc_image::{Creds, Restart, Sched, Thread};
use pc_sys::clone::CloneArgs;
use pc_trace::{Call, Husk, Regs, Tid};

use crate::creds;
use crate::error::{Context, RebuildError, raw_ok};
use crate::fdtable::words;
use crate::newborn::holder_of;

/// Threads of the husk by their ids inside.
pub type Tids = BTreeMap<u32, Tid>;

const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Gives the husk the threads with these ids beside its main one (`pid`), and no others. They are made long before the
/// stop and wait there; what each of them is, they learn only then.
pub fn follow(husk: &mut Husk, pid: u32, wanted: &[u32]) -> Result<Tids, RebuildError> {
    let mut tids = of(husk)?;
    let gone: Vec<u32> = tids.keys().copied().filter(|tid| *tid != pid && !wanted.contains(tid)).collect();
    for tid in gone {
        if let Some(thread) = tids.remove(&tid) {
            husk.end_thread(thread).what("ending a thread")?;
        }
    }
    let missing: Vec<u32> = wanted.iter().copied().filter(|tid| !tids.contains_key(tid)).collect();
    make(husk, &missing)?;
    let tids = of(husk)?;
    match wanted.iter().find(|tid| !tids.contains_key(tid)) {
        Some(tid) => Err(RebuildError::Contradiction(format!("thread {tid} got another id"))),
        None => Ok(tids),
    }
}

/// The threads that a husk has.
fn of(husk: &Husk) -> Result<Tids, RebuildError> {
    let ids = husk.tids().into_iter().map(|tid| Ok((husk.ns_tid(tid)? as u32, tid)));
    ids.collect()
}

fn make(husk: &mut Husk, wanted: &[u32]) -> Result<(), RebuildError> {
    // Of these, as many as the scratch area has room for at a time.
    const GROUP: usize = 1000;
    for group in wanted.chunks(GROUP) {
        let mut args = Vec::new();
        for tid in group {
            let set_tid = husk.put(&tid.to_le_bytes())?;
            let flags = THREAD_FLAGS as u64;
            args.push(CloneArgs { flags, set_tid, set_tid_size: 1, ..CloneArgs::default() }.to_bytes());
        }
        let made = husk.clone_threads(&args);
        husk.reset();
        if let Err(pc_trace::TraceError::Remote { errno: libc::EEXIST, .. }) = made {
            return Err(taken(husk, group));
        }
        made.what("making threads")?;
    }
    Ok(())
}

/// Which of these ids somebody else has, or had until a moment ago.
fn taken(husk: &Husk, wanted: &[u32]) -> RebuildError {
    let held = wanted.iter().find_map(|tid| Some((*tid, foreign(husk, *tid)?)));
    let (pid, holder) = held.unwrap_or_else(|| {
        let missing = wanted.iter().find(|tid| !husk.tids().contains(&(**tid as i32)));
        (missing.copied().unwrap_or_default(), "one that has just ended".to_owned())
    });
    RebuildError::PidTaken { pid, holder }
}

fn foreign(husk: &Husk, tid: u32) -> Option<String> {
    let ours = husk.tids().contains(&(tid as i32));
    if ours { None } else { holder_of(tid) }
}

/// Gives every thread what the kernel keeps for it, all threads at once.
pub fn equip(
    husk: &mut Husk,
    tids: &Tids,
    threads: &BTreeMap<u32, Thread>,
    personality: u32,
) -> Result<(), RebuildError> {
    in_groups(husk, tids, threads, "equipping threads", |husk, thread| {
        let mut calls = equipment(husk, thread)?;
        calls.push(Call::new(libc::SYS_personality, [u64::from(personality)]));
        Ok(calls)
    })
}

/// Runs calls on all threads, in groups that fit into the scratch area; none may fail.
fn in_groups(
    husk: &mut Husk,
    tids: &Tids,
    threads: &BTreeMap<u32, Thread>,
    what: &'static str,
    calls: impl Fn(&mut Husk, &Thread) -> Result<Vec<Call>, RebuildError>,
) -> Result<(), RebuildError> {
    const GROUP: usize = 64;
    let all: Vec<&Thread> = threads.values().collect();
    for group in all.chunks(GROUP) {
        let mut work = Vec::new();
        for thread in group {
            let calls = calls(husk, thread)?;
            if !calls.is_empty() {
                work.push((tids[&thread.tid], calls));
            }
        }
        let results = husk.batch_all(&work).what(what)?;
        for ((tid, calls), results) in work.iter().zip(results) {
            for (call, result) in calls.iter().zip(results) {
                raw_ok(result, || format!("{what}: system call {call} on thread {tid}"))?;
            }
        }
        husk.reset();
    }
    Ok(())
}

fn equipment(husk: &mut Husk, thread: &Thread) -> Result<Vec<Call>, RebuildError> {
    let mut comm = thread.comm.clone();
    comm.resize(16, 0);
    let alt = thread.altstack;
    const CHANGEABLE: u32 = libc::SS_DISABLE as u32 | 1 << 31;
    let altstack = husk.put(&words(&[alt.sp, u64::from(alt.flags & CHANGEABLE), alt.size]))?;
    let mut calls = vec![
        Call::new(libc::SYS_prctl, [libc::PR_SET_NAME as u64, husk.put(&comm)?]),
        Call::new(libc::SYS_set_tid_address, [thread.clear_child_tid]),
        Call::new(libc::SYS_sigaltstack, [altstack, 0]),
    ];
    let (head, len) = thread.robust_list;
    if len != 0 {
        calls.push(Call::new(libc::SYS_set_robust_list, [head, len]));
    }
    if let Some(rseq) = thread.rseq {
        calls.push(Call::new(libc::SYS_rseq, [rseq.addr, u64::from(rseq.len), 0, u64::from(rseq.sig)]));
    }
    calls.extend(scheduling(husk, &thread.sched)?);
    Ok(calls)
}

fn scheduling(husk: &mut Husk, sched: &Sched) -> Result<Vec<Call>, RebuildError> {
    const RESET_ON_FORK: u32 = 0x4000_0000;
    const FLAG_RESET_ON_FORK: u64 = 1;
    const IOPRIO_WHO_PROCESS: u64 = 1;
    let flags = if sched.policy & RESET_ON_FORK != 0 { FLAG_RESET_ON_FORK } else { 0 };
    let policy = sched.policy & !RESET_ON_FORK;
    let [runtime, deadline, period] = sched.deadline;
    let attr = words(&[
        48 | u64::from(policy) << 32,
        flags,
        sched.nice as u32 as u64 | u64::from(sched.priority) << 32,
        runtime,
        deadline,
        period,
    ]);
    let every = [0xff; 128];
    let mask = if sched.affinity.is_empty() { &every[..] } else { &sched.affinity };
    let mut calls = vec![
        Call::new(libc::SYS_sched_setaffinity, [0, mask.len() as u64, husk.put(mask)?]),
        Call::new(libc::SYS_sched_setattr, [0, husk.put(&attr)?, 0]),
        Call::new(libc::SYS_prctl, [libc::PR_SET_TIMERSLACK as u64, sched.timer_slack]),
    ];
    if sched.ioprio != 0 {
        let ioprio = u64::from(sched.ioprio);
        calls.push(Call::new(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, ioprio]));
    }
    Ok(calls)
}

/// Credentials and seccomp of all threads: the last that remote calls do.
pub fn restrain(
    husk: &mut Husk,
    tids: &Tids,
    threads: &BTreeMap<u32, Thread>,
    own: &Creds,
    keep_death_signal: bool,
) -> Result<(), RebuildError> {
    for thread in threads.values() {
        creds::judge(own, &thread.creds)?;
    }
    in_groups(husk, tids, threads, "setting credentials", |husk, thread| {
        let credentials = creds::calls(husk, own, &thread.creds)?;
        // Held threads are not filtered, but installing a filter takes rights that go with the credentials.
        let mut calls = creds::seccomp(husk, &thread.seccomp)?;
        if credentials.is_empty() && thread.creds.no_new_privs != own.no_new_privs {
            calls.insert(0, Call::new(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1]));
        }
        calls.extend(credentials);
        calls.extend(creds::fs_ids(&thread.creds));
        if thread.pdeath_signal != 0 && keep_death_signal {
            let signal = thread.pdeath_signal as u64;
            calls.push(Call::new(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, signal]));
        }
        Ok(calls)
    })
}

/// Sets what each thread will have when it runs: registers, extended state, mask. Calls that the kernel takes up by a
/// restart block are begun here, so that each thread has its own.
pub fn registers(husk: &mut Husk, tids: &Tids, threads: &BTreeMap<u32, Thread>) -> Result<(), RebuildError> {
    for thread in threads.values() {
        let tid = tids[&thread.tid];
        let mut regs = from_words(&thread.regs);
        if let Restart::Block { left } = thread.restart {
            regs = restart(husk, tid, regs, left)?;
        }
        if !thread.xstate.is_empty() {
            husk.set_xstate(tid, &thread.xstate).what("setting the extended state")?;
        }
        husk.set_regs(tid, &regs)?;
        husk.set_sigmask(tid, thread.sigmask)?;
    }
    husk.reset();
    Ok(())
}

/// The instruction `syscall`, in bytes.
const SYSCALL_LEN: u64 = 2;
const NO_CALL: u64 = u64::MAX;

fn restart(husk: &mut Husk, tid: Tid, regs: Regs, left: Option<u64>) -> Result<Regs, RebuildError> {
    let anew =
        Regs { rip: regs.rip.wrapping_sub(SYSCALL_LEN), rax: regs.orig_rax, orig_rax: NO_CALL, ..regs };
    let interrupted = Regs { rax: -i64::from(libc::EINTR) as u64, orig_rax: NO_CALL, ..regs };
    let Some(left) = left else {
        // A call that was itself a continuation cannot be begun anew.
        let again = regs.orig_rax as i64 == libc::SYS_restart_syscall;
        return Ok(if again { interrupted } else { anew });
    };
    let Some(call) = continued(husk, &regs, left)? else { return Ok(anew) };
    match husk.interrupted_call(tid, call).what("taking up an interrupted call")? {
        None => Ok(regs),
        Some(result) if result == -i64::from(libc::EINTR) => Ok(anew),
        // It had slept: that it cannot do so here is no answer to give to the program.
        Some(result) if [libc::EINVAL, libc::EFAULT].map(|errno| -i64::from(errno)).contains(&result) => {
            Ok(interrupted)
        }
        Some(result) => Ok(Regs { rax: result as u64, orig_rax: NO_CALL, ..regs }),
    }
}

/// The call that waits for what is left of an interrupted one.
fn continued(husk: &mut Husk, regs: &Regs, left: u64) -> Result<Option<Call>, RebuildError> {
    const SECOND: u64 = 1_000_000_000;
    const MILLI: u64 = 1_000_000;
    let time = husk.put(&words(&[left / SECOND, left % SECOND]))?;
    let nr = regs.orig_rax as i64;
    Ok(match nr {
        libc::SYS_nanosleep => Some(Call::new(nr, [time, regs.rsi])),
        libc::SYS_clock_nanosleep => Some(Call::new(nr, [regs.rdi, regs.rsi, time, regs.r10])),
        libc::SYS_poll => {
            Some(Call::new(nr, [regs.rdi, regs.rsi, left.div_ceil(MILLI).min(i32::MAX as u64)]))
        }
        libc::SYS_futex if regs.rsi & FUTEX_CMD == libc::FUTEX_WAIT as u64 => {
            Some(Call::new(nr, [regs.rdi, regs.rsi, regs.rdx, time, regs.r8, regs.r9]))
        }
        _ => None,
    })
}

/// The command among the flags of futex(2).
const FUTEX_CMD: u64 = 0x7f;

/// `struct user_regs_struct` from its words.
fn from_words(w: &pc_image::Regs) -> Regs {
    let [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    ] = *w;
    Regs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    }
}
