//! How long a thread had been waiting when it was stopped, for calls that only a restart block can go on with.
//!
//! A relative sleep with a place for the remainder has it written there by the kernel when it is interrupted. For all
//! others (no such place, poll, timed futex waits) the kernel tells nobody; the time since the thread last ran, which
//! /proc/PID/task/TID/sched gives where the kernel has it, is how long it has waited. A call that was interrupted before goes
//! on as restart_syscall(2): what it was is known from an earlier stop of ours, or guessed from where it sleeps.

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

#[derive(Debug, Default)]
struct Before {
    /// How long it had not run. Nanoseconds.
    idle: Option<u64>,
    /// The function of the kernel in which it slept.
    place: String,
}

/// A thread as /proc shows it.
struct Seen {
    tid: Tid,
    /// Where it ran last.
    cpu: Option<usize>,
    /// When that was, by the scheduler's clock of that CPU. Nanoseconds.
    ran: Option<u64>,
    place: String,
}

impl Seen {
    fn of(pid: i32, tid: Tid) -> Self {
        let read = |name: &str| procfs::read(pid, &format!("task/{tid}/{name}"));
        let cpu = read("stat").ok().and_then(|text| parse_cpu(&text));
        let ran = read("sched").ok().and_then(|text| parse_exec_start(&text));
        Self { tid, cpu, ran, place: read("wchan").unwrap_or_default() }
    }
}

/// What the scheduler's clock of each CPU shows now. The clocks of two differ, as each leaves out the time that interrupts
/// and the hypervisor took there; so a thread of ours goes and looks.
fn clocks_of(cpus: impl Iterator<Item = usize>) -> HashMap<usize, u64> {
    let cpus: HashSet<usize> = cpus.collect();
    let visit = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu).ok()?;
        sched_setaffinity(Pid::from_raw(0), &set).ok()?;
        // What the kernel tells of a running task is as old as the last tick, unless it has just been scheduled.
        std::thread::yield_now();
        let text = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        Some((cpu, parse_exec_start(&text)?))
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(move || cpus.into_iter().filter_map(visit).collect());
        looking.join().unwrap_or_default()
    })
}

/// The CPU on which a thread ran last: field 39 of proc_pid_stat(5).
fn parse_cpu(stat: &str) -> Option<usize> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
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
}

impl Waits {
    /// Looks at the threads just before they are stopped; what a kernel does not tell is left out.
    pub fn look(&mut self, pid: i32) {
        self.before.clear();
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        let tids = tasks.flatten().filter_map(|e| e.file_name().to_str()?.parse::<Tid>().ok());
        let seen: Vec<Seen> = tids.map(|tid| Seen::of(pid, tid)).collect();
        let now = clocks_of(seen.iter().filter_map(|seen| seen.cpu));
        for Seen { tid, cpu, ran, place } in seen {
            let now = cpu.and_then(|cpu| now.get(&cpu).copied());
            let idle = now.zip(ran).map(|(now, ran)| now.saturating_sub(ran));
            self.before.insert(tid, Before { idle, place });
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

    /// How a thread that stands at these registers was blocked, and by which call.
    pub fn restart(&self, tid: Tid, regs: &Regs) -> (Restart, u64) {
        match self.calls.get(&tid) {
            Some(call) => (Restart::Block { left: call.left }, call.nr as u64),
            None => (Restart::None, regs.orig_rax),
        }
    }

    fn waiting(&self, pid: i32, tid: Tid, regs: &Regs) -> Waiting {
        let at = Instant::now();
        let (rip, rsp) = (regs.rip, regs.rsp);
        if regs.orig_rax as i64 != libc::SYS_restart_syscall {
            let nr = regs.orig_rax as i64;
            return Waiting { nr, left: self.left(pid, tid, nr, regs), at, rip, rsp };
        }
        // Interrupted before: the call that goes on hides which one it was.
        match self.calls.get(&tid).filter(|call| (call.rip, call.rsp) == (rip, rsp)) {
            Some(call) => {
                let gone = at.duration_since(call.at).as_nanos() as u64;
                let exact = self.remainder(pid, call.nr, regs);
                Waiting { left: exact.or(call.left.map(|left| left.saturating_sub(gone))), at, ..*call }
            }
            None => {
                let place = self.before.get(&tid).map_or("", |before| before.place.as_str());
                let nr = hidden_call(place, regs);
                Waiting { nr, left: self.left(pid, tid, nr, regs), at, rip, rsp }
            }
        }
    }

    /// What the kernel has written where the program has room for it.
    fn remainder(&self, pid: i32, nr: i64, regs: &Regs) -> Option<u64> {
        match nr {
            libc::SYS_nanosleep if regs.rsi != 0 => read_timespec(pid, regs.rsi),
            libc::SYS_clock_nanosleep if regs.r10 != 0 => read_timespec(pid, regs.r10),
            _ => None,
        }
    }

    fn left(&self, pid: i32, tid: Tid, nr: i64, regs: &Regs) -> Option<u64> {
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
        Some(whole.saturating_sub(self.before.get(&tid)?.idle?))
    }
}

/// Which call goes on as restart_syscall(2), by where it sleeps and by what its arguments can be; restart_syscall(2)
/// itself if that tells nothing. (A time that is left is then counted from the last interruption on.)
fn hidden_call(place: &str, regs: &Regs) -> i64 {
    /// No pointer is as small, and no number of a clock is larger.
    const CLOCKS: u64 = 16;
    if place.contains("poll") {
        libc::SYS_poll
    } else if place.contains("futex") {
        libc::SYS_futex
    } else if place.contains("sleep") || place == "do_syscall_64" {
        // The function that goes on with a sleep is not shown by its name on every kernel.
        let clock = regs.rdi < CLOCKS || (regs.rdi as i32) < 0 && regs.rdi >> 32 == 0;
        if clock { libc::SYS_clock_nanosleep } else { libc::SYS_nanosleep }
    } else {
        libc::SYS_restart_syscall
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
        let stat = format!("7 (a) b) S{} 3 0", " 0".repeat(35));
        assert_eq!(parse_cpu(&stat), Some(3));
    }
}
