//! How long a thread had been waiting when it was stopped, for calls that only a restart block can go on with.
//!
//! A relative sleep with a place for the remainder has it written there by the kernel when it is interrupted. For all
//! others (no such place, poll, timed futex waits) the kernel tells nobody; the time since the thread last ran, which
//! /proc/PID/task/TID/sched gives where the kernel has it, is how long it has waited.

use std::collections::HashMap;

use pc_image::Restart;
use pc_sys::mem;
use pc_trace::{Regs, Tid};

/// `-ERESTART_RESTARTBLOCK`.
const RESTART_BLOCK: i64 = -516;
const FUTEX_WAIT: u64 = 0;
/// The command without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
const FUTEX_CMD_MASK: u64 = !(128 | 256);

/// How long each thread had not run, read before the stop. Nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Waits(HashMap<Tid, u64>);

impl Waits {
    /// Reads them; what a kernel does not tell is left out.
    pub fn read(pid: i32) -> Self {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Self::default() };
        let tids = tasks.flatten().filter_map(|e| e.file_name().to_str()?.parse::<Tid>().ok());
        // What the kernel tells of a running task is as old as the last tick, unless it has just been scheduled.
        std::thread::yield_now();
        let Some(now) = exec_start("/proc/thread-self/sched") else { return Self::default() };
        let waits = tids.filter_map(|tid| {
            let then = exec_start(&format!("/proc/{pid}/task/{tid}/sched"))?;
            Some((tid, now.saturating_sub(then)))
        });
        Self(waits.collect())
    }

    /// How a stopped thread with these registers was blocked.
    pub fn restart(&self, pid: i32, tid: Tid, regs: &Regs) -> Restart {
        if regs.orig_rax as i64 >= 0 && regs.rax as i64 == RESTART_BLOCK {
            return Restart::Block { left: self.left(pid, tid, regs) };
        }
        Restart::None
    }

    fn left(&self, pid: i32, tid: Tid, regs: &Regs) -> Option<u64> {
        let timespec = |addr: u64| read_timespec(pid, addr);
        let sleep = |request: u64, remainder: u64| match remainder {
            0 => Some(timespec(request)?.saturating_sub(*self.0.get(&tid)?)),
            _ => timespec(remainder),
        };
        match regs.orig_rax as i64 {
            libc::SYS_nanosleep => sleep(regs.rdi, regs.rsi),
            libc::SYS_clock_nanosleep => sleep(regs.rdx, regs.r10),
            libc::SYS_poll => {
                let milliseconds = u64::try_from(regs.rdx as i32).ok()?;
                Some((milliseconds * 1_000_000).saturating_sub(*self.0.get(&tid)?))
            }
            // The other waits take an absolute time, and may simply be made again.
            libc::SYS_futex if regs.rsi & FUTEX_CMD_MASK == FUTEX_WAIT => {
                Some(timespec(regs.r10)?.saturating_sub(*self.0.get(&tid)?))
            }
            _ => None,
        }
    }
}

fn read_timespec(pid: i32, addr: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    mem::read_remote(pid, addr, &mut bytes).ok()?;
    let (s, ns) = bytes.split_at(8);
    let seconds = u64::from_le_bytes(s.try_into().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::from_le_bytes(ns.try_into().ok()?))
}

fn exec_start(path: &str) -> Option<u64> {
    parse_exec_start(&std::fs::read_to_string(path).ok()?)
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
    }
}
