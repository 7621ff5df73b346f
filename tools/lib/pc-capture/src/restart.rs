//! By which call a thread was blocked when it was stopped and how long it had been waiting, for calls that only a restart
//! block can go on with.
//!
//! A relative sleep with a place for the remainder has it written there by the kernel when it is interrupted. For all
//! others (no such place, poll, timed futex waits) the kernel reports to nobody; the time since the thread last ran, which
//! /proc/PID/task/TID/sched gives where the kernel has it, is how long it has waited.
//!
//! A call that was interrupted before goes on as restart_syscall(2), and any signal interrupts that another thread then takes:
//! which call it was follows from the instruction before it or from an earlier stop of ours, or is guessed from where it sleeps.
//!
//! What was seen just before the stop holds only for a thread that has slept from then on: /proc/PID/task/TID/schedstat
//! counts how often it was given a CPU. Of one that may have run, its whole time is taken to be left: it may wait too long
//! by what passed between the look and the stop, and never too short. Where only its place could tell the call, too, the
//! stop comes again after a moment: [`Waits::unseen`].

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pc_image::Restart;
use pc_sys::mem;
use pc_trace::{Regs, Tid, Tracees};

use crate::error::Result;
use crate::procfs;

/// `-ERESTART_RESTARTBLOCK`.
const RESTART_BLOCK: i64 = -516;
const FUTEX_WAIT: u64 = 0;
/// The command without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
const FUTEX_CMD_MASK: u64 = !(128 | 256);

/// What blocked threads wait for, and how much longer, kept from stop to stop of one process.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// What was seen of each thread just before the stop.
    before: HashMap<Tid, Before>,
    /// The calls that only a restart block can go on with, as of the last stop.
    calls: HashMap<Tid, Waiting>,
}

/// A thread that slept.
#[derive(Debug, Default)]
struct Before {
    /// How often it had been given a CPU.
    runs: u64,
    /// How long it had not run. Nanoseconds.
    idle: Option<u64>,
    /// The function of the kernel in which it slept.
    place: String,
}

/// A sleeping thread as /proc shows it.
struct Seen {
    tid: Tid,
    /// How often it was given a CPU. Read first, so that all else is of this sleep or a later one.
    runs: u64,
    /// Where it ran last.
    cpu: usize,
    /// When that was, by the scheduler's clock of that CPU. Nanoseconds.
    ran: Option<u64>,
    place: String,
}

impl Seen {
    /// `None` for a thread that does not sleep, or of which the kernel does not say.
    fn of(pid: i32, tid: Tid) -> Option<Self> {
        let read = |name: &str| procfs::read(pid, &format!("task/{tid}/{name}"));
        let runs = runs(pid, tid)?;
        let cpu = parse_sleeping(&read("stat").ok()?)?;
        let ran = read("sched").ok().and_then(|text| parse_exec_start(&text));
        Some(Self { tid, runs, cpu, ran, place: read("wchan").unwrap_or_default() })
    }
}

/// How often a thread was given a CPU: the third number of its schedstat.
fn runs(pid: i32, tid: Tid) -> Option<u64> {
    let text = procfs::read(pid, &format!("task/{tid}/schedstat")).ok()?;
    text.split_whitespace().nth(2)?.parse().ok()
}

/// What the scheduler's clock of each CPU shows now. The clocks of two differ, as each leaves out the time that interrupts
/// and the hypervisor took there; so a thread of ours goes and looks.
fn clocks_of(cpus: impl Iterator<Item = usize>) -> HashMap<usize, u64> {
    let cpus: HashSet<usize> = cpus.collect();
    let visit = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu).ok()?;
        sched_setaffinity(Pid::from_raw(0), &set).ok()?;
        // What the kernel reports of a running task is as old as the last tick, unless it has just been scheduled.
        std::thread::yield_now();
        let text = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        Some((cpu, parse_exec_start(&text)?))
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(move || cpus.into_iter().filter_map(visit).collect());
        looking.join().unwrap_or_default()
    })
}

/// The CPU on which a thread ran last that sleeps now: fields 3 and 39 of proc_pid_stat(5).
fn parse_sleeping(stat: &str) -> Option<usize> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? == "S").then(|| fields.nth(35)?.parse().ok()).flatten()
}

/// An interrupted call.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    nr: i64,
    /// Time left at `at`; none is known of, or none is needed, as the call names a date.
    left: Option<u64>,
    at: Instant,
    rip: u64,
    rsp: u64,
    /// How often the thread had been given a CPU when it was let go.
    runs: Option<u64>,
    /// Its place might have told which call it is, but it did not sleep from the look to the stop.
    unseen: bool,
}

impl Waits {
    /// Looks at the threads just before they are stopped; what a kernel does not say is left out.
    pub fn look(&mut self, pid: i32) {
        self.before.clear();
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        let tids = tasks.flatten().filter_map(|e| e.file_name().to_str()?.parse::<Tid>().ok());
        let seen: Vec<Seen> = tids.filter_map(|tid| Seen::of(pid, tid)).collect();
        let now = clocks_of(seen.iter().map(|seen| seen.cpu));
        for Seen { tid, runs, cpu, ran, place } in seen {
            let idle = now.get(&cpu).zip(ran).map(|(now, ran)| now.saturating_sub(ran));
            self.before.insert(tid, Before { runs, idle, place });
        }
    }

    /// Takes note of where the threads were stopped.
    pub fn note(&mut self, tracees: &Tracees) -> Result<()> {
        let mut calls = HashMap::new();
        for tid in tracees.tids() {
            let regs = tracees.regs(tid)?;
            if regs.orig_rax as i64 >= 0 && regs.rax as i64 == RESTART_BLOCK {
                calls.insert(tid, self.waiting(tracees.pid(), tid, &regs));
            }
        }
        self.calls = calls;
        Ok(())
    }

    /// Whether a thread may be known for what it waits for if it is looked at and stopped once more: it was just going on.
    pub fn unseen(&self) -> bool {
        self.calls.values().any(|call| call.unseen)
    }

    /// Takes note of how often the blocked threads have run, just before they are let go.
    pub fn leave(&mut self, pid: i32) {
        self.calls.iter_mut().for_each(|(tid, call)| call.runs = runs(pid, *tid));
    }

    /// How a thread that stands at these registers was blocked, and by which call.
    pub fn restart(&self, tid: Tid, regs: &Regs) -> (Restart, u64) {
        match self.calls.get(&tid) {
            Some(call) => (Restart::Block { left: call.left }, call.nr as u64),
            None => (Restart::None, regs.orig_rax),
        }
    }

    fn waiting(&self, pid: i32, tid: Tid, regs: &Regs) -> Waiting {
        let at = Instant::now();
        let Regs { rip, rsp, rdi, rsi, rdx, r10, .. } = *regs;
        let args = [rdi, rsi, rdx, r10];
        let runs = runs(pid, tid);
        // Of a thread that has slept since it was looked at, the stop is the one reason to run.
        let before = self.before.get(&tid).filter(|before| runs == Some(before.runs + 1));
        let idle = before.map(|before| before.idle);
        let new =
            |nr| Waiting { nr, left: self.left(pid, nr, regs, idle), at, rip, rsp, runs, unseen: false };
        if pc_trace::is_int_80(pid, regs) {
            return new(self.by_int_80(pid, tid, regs));
        }
        if regs.orig_rax as i64 != libc::SYS_restart_syscall {
            return new(regs.orig_rax as i64);
        }
        // Interrupted before: the call that goes on hides which one it was.
        let here = |call: &&Waiting| (call.rip, call.rsp) == (rip, rsp);
        let known = self.calls.get(&tid).filter(here).filter(|call| call.nr != libc::SYS_restart_syscall);
        // One that has slept since it was let go is in that very call: it has run to go on with it, and to be stopped.
        match known.filter(|call| call.runs.is_some() && runs == call.runs.map(|runs| runs + 2)) {
            Some(call) => {
                let gone = at.duration_since(call.at).as_nanos() as u64;
                let exact = self.remainder(pid, call.nr, regs);
                Waiting { left: exact.or(call.left.map(|left| left.saturating_sub(gone))), at, runs, ..*call }
            }
            None => {
                let told = [pc_trace::call_in_front(pid, rip), known.map(|call| call.nr)];
                let told = told.into_iter().flatten().find(|nr| can_be(*nr, args));
                let place = before.map(|before| before.place.as_str());
                let call = told.or_else(|| hidden_call(place, args));
                let unseen = call.is_none() && place.is_none() && runs.is_some();
                Waiting { unseen, ..new(call.unwrap_or(libc::SYS_restart_syscall)) }
            }
        }
    }

    /// Which call of 32-bit programs waits. How much longer is not asked for: it is made again, with all of its time.
    fn by_int_80(&self, pid: i32, tid: Tid, regs: &Regs) -> i64 {
        const RESTART_SYSCALL: i64 = 0;
        let shown = Some(regs.orig_rax as i64).filter(|nr| *nr != RESTART_SYSCALL);
        let here = |call: &&Waiting| (call.rip, call.rsp) == (regs.rip, regs.rsp);
        let known = || self.calls.get(&tid).filter(here).map(|call| call.nr);
        shown.or_else(known).or_else(|| pc_trace::call_in_front(pid, regs.rip)).unwrap_or(RESTART_SYSCALL)
    }

    /// What the kernel has written where the program has room for it.
    fn remainder(&self, pid: i32, nr: i64, regs: &Regs) -> Option<u64> {
        match nr {
            libc::SYS_nanosleep if regs.rsi != 0 => read_timespec(pid, regs.rsi),
            libc::SYS_clock_nanosleep if regs.r10 != 0 => read_timespec(pid, regs.r10),
            _ => None,
        }
    }

    /// What is left of a call's time; `idle` tells how long the thread has not run, if it has not since it was looked at.
    fn left(&self, pid: i32, nr: i64, regs: &Regs, idle: Option<Option<u64>>) -> Option<u64> {
        if let Some(left) = self.remainder(pid, nr, regs) {
            return Some(left);
        }
        let whole = match nr {
            libc::SYS_nanosleep => read_timespec(pid, regs.rdi)?,
            libc::SYS_clock_nanosleep => read_timespec(pid, regs.rdx)?,
            libc::SYS_poll => u64::try_from(regs.rdx as i32).ok()? * 1_000_000,
            libc::SYS_futex if regs.rsi & FUTEX_CMD_MASK == FUTEX_WAIT => read_timespec(pid, regs.r10)?,
            // The other waits take an absolute time, and may simply be made again.
            _ => return None,
        };
        Some(whole.saturating_sub(idle.flatten().unwrap_or(0)))
    }
}

/// The first four arguments of a call.
type Args = [u64; 4];

/// Which call goes on as restart_syscall(2), by where it sleeps and by what its arguments can be. (A time that is left is
/// then counted from the last interruption on.)
fn hidden_call(place: Option<&str>, args: Args) -> Option<i64> {
    let all = [libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_poll, libc::SYS_futex];
    let sleeps_there = |nr: i64| match (place, nr) {
        (Some(place), libc::SYS_poll) => place.contains("poll"),
        (Some(place), libc::SYS_futex) => place.contains("futex"),
        // The function that goes on with a sleep is not shown by its name on every kernel.
        (Some(place), _) => place.contains("sleep") || place == "do_syscall_64",
        (None, _) => true,
    };
    let mut fitting = all.into_iter().filter(|nr| sleeps_there(*nr) && can_be(*nr, args));
    fitting.next().filter(|_| fitting.next().is_none())
}

/// Whether these are arguments with which a call sleeps and then goes on by a restart block.
fn can_be(nr: i64, [first, second, third, fourth]: Args) -> bool {
    /// No pointer is as small, and no number of a clock is larger.
    const CLOCKS: u64 = 16;
    /// More descriptors than a process may have.
    const MANY: u64 = 1 << 31;
    let pointer = |value: u64| value >= 4096;
    match nr {
        libc::SYS_clock_nanosleep => {
            let clock = first < CLOCKS || (first as i32) < 0 && first >> 32 == 0;
            clock && second as i32 & libc::TIMER_ABSTIME == 0 && pointer(third)
        }
        libc::SYS_nanosleep => pointer(first) && (second == 0 || pointer(second)),
        // Its time-out is an int.
        libc::SYS_poll => (pointer(first) || first | second == 0) && second < MANY && third >> 32 == 0,
        libc::SYS_futex => {
            let command = second & FUTEX_CMD_MASK;
            let waits = [FUTEX_WAIT, libc::FUTEX_WAIT_BITSET as u64].contains(&command);
            pointer(first) && first.is_multiple_of(4) && waits && pointer(fourth)
        }
        _ => false,
    }
}

fn read_timespec(pid: i32, addr: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    mem::read_remote(pid, addr, &mut bytes).ok()?;
    let (s, ns) = bytes.split_at(8);
    let seconds = u64::from_le_bytes(s.try_into().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::from_le_bytes(ns.try_into().ok()?))
}

/// `se.exec_start                                :       5811512.123456`: milliseconds, to nanoseconds.
fn parse_exec_start(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("se.exec_start"))?;
    let (ms, fraction) = line.split_once(':')?.1.trim().split_once('.')?;
    Some(ms.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_a_thread_last_ran_is_in_nanoseconds() {
        let text =
            "sleep (1, #threads: 1)\n----\nse.exec_start      :        5811512.123456\nse.vruntime : 1.0\n";
        assert_eq!(parse_exec_start(text), Some(5_811_512_123_456));
        assert_eq!(parse_exec_start(""), None);
        let stat = |state| format!("7 (a) b) {state} 1{} 3 0", " 0".repeat(34));
        assert_eq!(parse_sleeping(&stat("S")), Some(3));
        assert_eq!(parse_sleeping(&stat("R")), None);
    }

    const WAIT: u64 = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    const AT: u64 = 0x7ffe_0000_1000;

    #[test]
    fn a_hidden_call_is_found_by_its_arguments_where_only_one_fits() {
        let hidden = |args| hidden_call(None, args);
        assert_eq!(hidden([1, 0, AT, AT]), Some(libc::SYS_clock_nanosleep));
        assert_eq!(hidden([0, 0, AT, 0]), Some(libc::SYS_clock_nanosleep));
        assert_eq!(hidden([0, 0, 500, 0]), Some(libc::SYS_poll));
        assert_eq!(hidden([AT, AT + 16, 0, 0]), Some(libc::SYS_nanosleep));
        assert_eq!(hidden([AT, 3, 500, 0]), Some(libc::SYS_poll));
        assert_eq!(hidden([AT + 2, WAIT, 0, AT]), Some(libc::SYS_poll));
        assert_eq!(hidden([AT, 0, 7, 7]), None, "nanosleep or poll of nothing");
        assert_eq!(hidden([1, 1, AT, AT]), None, "an absolute sleep has no restart block");
    }

    /// It had slept there before, and sleeps elsewhere now.
    #[test]
    fn a_hidden_call_is_not_taken_for_one_that_its_arguments_cannot_be() {
        let hidden = |place, args| hidden_call(Some(place), args);
        assert_eq!(hidden("futex_do_wait", [1, 0, AT, AT]), None);
        assert_eq!(hidden("do_sys_poll", [1, 0, AT, AT]), None);
        assert_eq!(hidden("hrtimer_nanosleep", [1, 0, AT, AT]), Some(libc::SYS_clock_nanosleep));
        assert_eq!(hidden("futex_do_wait", [AT, WAIT, 0, AT]), Some(libc::SYS_futex));
        assert_eq!(hidden("do_sys_poll", [AT, WAIT, 0, AT]), Some(libc::SYS_poll));
        assert_eq!(hidden("lock_mm_and_find_vma", [AT, WAIT, 0, AT]), None);
    }
}
