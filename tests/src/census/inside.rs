//! What only the process itself can tell: system calls made in it, by every thread at once.

use std::fs;

use pc_sys::mem;
use pc_trace::{Call, Regs, Tid, Tracees};

use super::Sample;
use super::sockets::hex;
use super::who::Who;
use crate::status;

/// Where a call puts its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It gives it back.
    Result,
    /// It writes so many bytes.
    Bytes(usize),
    /// It writes as many bytes as it says, at most so many.
    Counted(usize),
    /// Two words of seconds and parts of them, interval and time left, of which the latter passes.
    Times,
}

/// A call whose answer is a reading. `AT` among the arguments is the place for the answer.
struct Asked {
    name: String,
    /// Which of several, where one is not enough.
    which: String,
    call: Call,
    answer: Answer,
}

/// A call that is about to be made.
const CALL: &str = "about to call ";
/// Stands for the address of the answer.
const AT: u64 = 0x5a5a_5a5a_5a5a_5a5a;
const SIGNALS: u64 = 64;
/// `struct sigaction` of the kernel.
const ACTION: usize = 32;

/// Getters of prctl(2): number, name, whether the second argument is a pointer.
const PRCTL: &[(u64, &str, bool)] = &[
    (3, "DUMPABLE", false),
    (5, "UNALIGN", true),
    (7, "KEEPCAPS", false),
    (9, "FPEMU", true),
    (11, "FPEXC", true),
    (13, "TIMING", false),
    (19, "ENDIAN", true),
    (25, "TSC", true),
    (34, "MCE_KILL", false),
    (37, "CHILD_SUBREAPER", true),
    (42, "THP_DISABLE", false),
    (46, "FP_MODE", false),
    (58, "IO_FLUSHER", false),
    (66, "MDWE", false),
    (68, "MEMORY_MERGE", false),
];
/// The same of a single thread.
const PRCTL_THREAD: &[(u64, &str, bool)] = &[
    (2, "PDEATHSIG", true),
    (27, "SECUREBITS", false),
    (30, "TIMERSLACK", false),
    (39, "NO_NEW_PRIVS", false),
    (40, "TID_ADDRESS", true),
    (51, "SVE_VL", false),
    (56, "TAGGED_ADDR_CTRL", false),
    (70, "RISCV_V_CONTROL", false),
    (74, "SHADOW_STACK_STATUS", true),
];

/// Asks all threads of a process that is held.
pub fn read(tracees: &mut Tracees, who: &Who, sample: &mut Sample) {
    let pid = tracees.pid();
    held(tracees, who, sample);
    let work: Vec<(Tid, Vec<Asked>)> =
        tracees.tids().into_iter().map(|tid| (tid, all_of(tid, pid))).collect();
    let room: usize = work.iter().flat_map(|(_, all)| all).map(|asked| asked.room()).sum();
    let mut remote = tracees.remote(room + 4096).expect("system calls in the process");
    let mut places = Vec::new();
    let mut calls = Vec::new();
    for (tid, all) in &work {
        let at: Vec<u64> = all.iter().map(|asked| remote.space(asked.room()).expect("room")).collect();
        calls.push((*tid, all.iter().zip(&at).map(|(asked, at)| asked.placed(*at)).collect::<Vec<_>>()));
        places.push(at);
    }
    let results = remote.batch_all(&calls).expect("system calls in the process");
    for (((tid, all), at), results) in work.iter().zip(&places).zip(&results) {
        let of = who.thread(*tid);
        for ((asked, at), result) in all.iter().zip(at).zip(results) {
            let mut bytes = vec![0; asked.room()];
            remote.read(*at, &mut bytes).expect("its memory");
            sample.note(&asked.name, format!("{of} {}", asked.which).trim_end(), asked.told(*result, &bytes));
        }
    }
    remote.finish().expect("all put back");
}

/// Extended state in which SSE registers of zeroes are not said to be in use: whether they are is the processor's own affair
/// (Intel SDM 1, 13.6), and an init state reads the same.
fn in_use(mut state: Vec<u8>) -> Vec<u8> {
    const XMM: std::ops::Range<usize> = 160..416;
    const XSTATE_BV: usize = 512;
    const SSE: u8 = 1 << 1;
    if state.len() > XSTATE_BV && state[XMM].iter().all(|byte| *byte == 0) {
        state[XSTATE_BV] &= !SSE;
    }
    state
}

/// What ptrace(2) tells without a call.
fn held(tracees: &Tracees, who: &Who, sample: &mut Sample) {
    for tid in tracees.tids() {
        let of = who.thread(tid);
        registers(tracees, tid, &of, sample);
        sample.note(
            "ptrace/extended registers",
            &of,
            hex(&in_use(tracees.xstate(tid).expect("extended state"))),
        );
        sample.note("ptrace/signal mask", &of, format!("{:x}", tracees.sigmask(tid).expect("a mask")));
        sample.note("ptrace/rseq", &of, format!("{:x?}", tracees.rseq(tid).expect("rseq")));
        sample.note("ptrace/pending", &of, pending(tracees, tid, false));
        let filters = if status(tid, "Seccomp") == "2" { usize::MAX } else { 0 };
        for index in 0..filters {
            let Some(filter) = tracees.seccomp_filter(tid, index).expect("a filter") else { break };
            let text = format!("{:x} {}", filter.flags, hex(&filter.insns));
            sample.note("ptrace/seccomp filter", format!("{of} {index}"), text);
        }
    }
    sample.note("ptrace/pending", "process", pending(tracees, tracees.pid(), true));
}

/// Each register is a reading. A call that the kernel will make again and one about to be made are the same.
fn registers(tracees: &Tracees, tid: Tid, of: &str, sample: &mut Sample) {
    // EINTR: what SIGSTOP makes of epoll_wait(2) and others (signal(7)), and no move.
    let again = |result: i64| (-516..=-512).contains(&result) || result == -i64::from(libc::EINTR);
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const INT_80: [u8; 2] = [0xcd, 0x80];
    let mut regs = tracees.regs(tid).expect("registers");
    let mut code = [0; 2];
    let ahead =
        mem::read_remote(tracees.pid(), regs.rip, &mut code).is_ok() && [SYSCALL, INT_80].contains(&code);
    if ahead {
        regs.rip += 2;
    } else if regs.orig_rax as i64 >= 0 && again(regs.rax as i64) {
        regs = Regs { rax: regs.orig_rax, orig_rax: u64::MAX, ..regs };
    } else {
        sample.note("registers/rax", of, format!("{:x}", regs.rax));
        return other_registers(&regs, of, sample);
    }
    sample.note("registers/rax", of, format!("{CALL}{:x}", regs.rax));
    other_registers(&regs, of, sample);
}

fn other_registers(regs: &Regs, of: &str, sample: &mut Sample) {
    let text = format!("{regs:x?}");
    let text = text.split_once('{').map_or("", |(_, text)| text).trim_end_matches('}');
    let all = text.split(',').filter_map(|register| register.trim().split_once(": "));
    for (name, value) in all.filter(|(name, _)| *name != "rax") {
        sample.note(format!("registers/{name}"), of, value);
    }
}

/// Whether what the registers say comes to the same: a call that was to be made has been made, as the time that it had
/// left is over; or the copy makes the call itself for which restart_syscall(2) stands.
pub fn has_waited(name: &str, was: Option<&str>, is: Option<&str>) -> bool {
    let timed_out = format!("{:x}", -i64::from(libc::ETIMEDOUT));
    let (Some(was), Some(is)) = (was, is) else { return false };
    let restarts = was == format!("{CALL}{:x}", libc::SYS_restart_syscall);
    let is_over = is == "0" || is == timed_out;
    name == "registers/rax" && was.starts_with(CALL) && (is_over || restarts && is.starts_with(CALL))
}

/// Pending signals with their data. SIGSTOP is how pc-dump left it; timers go on meanwhile.
fn pending(tracees: &Tracees, tid: Tid, shared: bool) -> String {
    const SI_TIMER: i32 = -2;
    const SI_KERNEL: i32 = 0x80;
    let all = tracees.pending(tid, shared).expect("pending signals");
    let counts = |info: &&[u8; 128]| {
        let word = |at: usize| i32::from_ne_bytes(info[at..at + 4].try_into().expect("4 bytes"));
        let by_timer = [SI_TIMER, SI_KERNEL].contains(&word(8));
        word(0) != libc::SIGSTOP && !by_timer
    };
    all.iter().filter(counts).map(|info| hex(info)).collect::<Vec<_>>().join(" ")
}

/// What a thread is asked; the main thread answers for the process, too.
fn all_of(tid: Tid, pid: i32) -> Vec<Asked> {
    let mut all = of_thread();
    if tid == pid {
        all.extend(of_process(pid));
    }
    all
}

impl Asked {
    fn new<const N: usize>(name: impl Into<String>, nr: i64, args: [u64; N], answer: Answer) -> Asked {
        Asked { name: name.into(), which: String::new(), call: Call::new(nr, args), answer }
    }

    fn of(self, which: impl ToString) -> Asked {
        Asked { which: which.to_string(), ..self }
    }

    fn room(&self) -> usize {
        match self.answer {
            Answer::Result => 0,
            Answer::Bytes(len) | Answer::Counted(len) => len,
            Answer::Times => 32,
        }
    }

    fn placed(&self, at: u64) -> Call {
        let mut call = self.call;
        call.args.iter_mut().filter(|arg| **arg == AT).for_each(|arg| *arg = at);
        call
    }

    fn told(&self, result: i64, bytes: &[u8]) -> String {
        if (-4095..0).contains(&result) {
            return format!("error {}", -result);
        }
        let word = |n: usize| u64::from_le_bytes(bytes[8 * n..8 * n + 8].try_into().expect("8 bytes"));
        match self.answer {
            Answer::Result => format!("{result:#x}"),
            Answer::Bytes(_) => hex(bytes),
            Answer::Counted(len) => hex(&bytes[..len.min(result as usize)]),
            Answer::Times => {
                let armed = if word(2) + word(3) == 0 { "off" } else { "armed" };
                format!("every {} {}, {armed}", word(0), word(1))
            }
        }
    }
}

fn prctl((number, name, pointer): &(u64, &str, bool)) -> Asked {
    let answer = if *pointer { Answer::Bytes(8) } else { Answer::Result };
    let arg = if *pointer { AT } else { 0 };
    Asked::new(format!("prctl/{name}"), libc::SYS_prctl, [*number, arg, 0, 0, 0], answer)
}

fn of_thread() -> Vec<Asked> {
    let ask = |name: &str, nr, args: [u64; 5], answer| Asked::new(name, nr, args, answer);
    let mut all: Vec<Asked> = PRCTL_THREAD.iter().map(prctl).collect();
    for control in 0..3 {
        let args = [52, control, 0, 0, 0];
        all.push(ask("prctl/SPECULATION_CTRL", libc::SYS_prctl, args, Answer::Result).of(control));
    }
    all.push(ask("sigaltstack", libc::SYS_sigaltstack, [0, AT, 0, 0, 0], Answer::Bytes(24)));
    all.push(ask("sched_getattr", libc::SYS_sched_getattr, [0, AT, 56, 0, 0], Answer::Bytes(56)));
    all.push(ask("sched_getaffinity", libc::SYS_sched_getaffinity, [0, 128, AT, 0, 0], Answer::Counted(128)));
    all.push(ask("ioprio_get", libc::SYS_ioprio_get, [1, 0, 0, 0, 0], Answer::Result));
    all.push(ask("get_mempolicy", libc::SYS_get_mempolicy, [AT, 0, 0, 0, 0], Answer::Bytes(8)));
    for (name, number) in [("FS", 0x1003), ("GS", 0x1004), ("SHSTK_STATUS", 0x5005)] {
        let name = format!("arch_prctl/{name}");
        all.push(Asked::new(name, libc::SYS_arch_prctl, [number, AT], Answer::Bytes(8)));
    }
    all.push(ask("arch_prctl/CPUID", libc::SYS_arch_prctl, [0x1011, 0, 0, 0, 0], Answer::Result));
    for (name, id) in [("thread", -1_i64), ("process", -2), ("session", -3)] {
        let name = format!("keyctl/{name} keyring");
        all.push(Asked::new(name, libc::SYS_keyctl, [0, id as u64, 0], Answer::Result));
    }
    all
}

fn of_process(pid: i32) -> Vec<Asked> {
    let mut all: Vec<Asked> = PRCTL.iter().map(prctl).collect();
    for signal in 1..=SIGNALS {
        let args = [signal, 0, AT, 8];
        all.push(Asked::new("sigaction", libc::SYS_rt_sigaction, args, Answer::Bytes(ACTION)).of(signal));
    }
    // MEMBARRIER_CMD_GET_REGISTRATIONS
    all.push(Asked::new("membarrier", libc::SYS_membarrier, [1 << 9, 0, 0], Answer::Result));
    all.push(Asked::new("brk", libc::SYS_brk, [0], Answer::Result));
    all.push(Asked::new("modify_ldt", libc::SYS_modify_ldt, [0, AT, 4096], Answer::Counted(4096)));
    for (name, number) in [("XCOMP_PERM", 0x1022_u64), ("XCOMP_GUEST_PERM", 0x1024), ("UNTAG_MASK", 0x4001)] {
        let name = format!("arch_prctl/{name}");
        all.push(Asked::new(name, libc::SYS_arch_prctl, [number, AT], Answer::Bytes(8)));
    }
    for (name, which) in [("REAL", 0), ("VIRTUAL", 1), ("PROF", 2)] {
        let name = format!("itimer/{name}");
        all.push(Asked::new(name, libc::SYS_getitimer, [which, AT], Answer::Times));
    }
    let timers = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    for id in timers.lines().filter_map(|line| line.strip_prefix("ID: ")?.parse::<u64>().ok()) {
        all.push(Asked::new("timer/time", libc::SYS_timer_gettime, [id, AT], Answer::Times).of(id));
        all.push(Asked::new("timer/overrun", libc::SYS_timer_getoverrun, [id], Answer::Result).of(id));
    }
    all
}
