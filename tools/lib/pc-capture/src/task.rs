//! The process as a whole: what it is from its birth, and what exists only at the stop.

use std::fs;

use pc_image::{FdTableId, FileNeed, ITimer, MmState, SigTableId, SpaceId, Task, TaskId, TaskState};
use pc_trace::Tracees;

use crate::error::{Context, Result};
use crate::file::Files;
use crate::inside::Told;
use crate::procfs::{self, Stat, Status, TimerEntry};
use crate::{signal, timer};

/// Numbers of the one process of the stream.
pub(crate) const TASK: TaskId = TaskId(0);
pub(crate) const SPACE: SpaceId = SpaceId(0);
pub(crate) const FDS: FdTableId = FdTableId(0);
pub(crate) const SIGS: SigTableId = SigTableId(0);

/// The birth record of process `pid`.
pub(crate) fn task(pid: i32, status: &Status, stat: &Stat, tids: Vec<u32>) -> Task {
    let innermost = |ids: &[i32]| ids.last().map_or(0, |id| *id as u32);
    Task {
        id: TASK,
        pid: innermost(&status.ns_pid),
        parent: None,
        space: Some(SPACE),
        fds: Some(FDS),
        sigs: Some(SIGS),
        pgid: innermost(&status.ns_pgid),
        sid: innermost(&status.ns_sid),
        exit_signal: stat.exit_signal as u8,
        tids,
        comm: procfs::name(pid, pid).unwrap_or_default(),
    }
}

/// What only exists at the stop.
pub(crate) fn state(
    tracees: &Tracees,
    told: &Told,
    timers: &[TimerEntry],
    files: &mut Files,
) -> Result<TaskState> {
    let pid = tracees.pid();
    let itimer = |(value, interval)| ITimer { value, interval };
    Ok(TaskState {
        itimers: told.itimers.map(itimer),
        timers: timer::posix_timers(tracees, told, timers),
        pending: signal::pending(tracees.pending(pid, true)?),
        child_subreaper: told.child_subreaper,
        stopped: tracees.job_stop(),
        ..outside(pid, files)?
    })
}

/// The same as far as anybody can read it while the process runs; what only the process itself can tell, and times, are
/// absent.
pub(crate) fn state_outside(pid: i32, files: &mut Files) -> Result<TaskState> {
    let timers = timer::timers(pid)?.iter().map(timer::without_times).collect();
    Ok(TaskState { timers, ..outside(pid, files)? })
}

fn outside(pid: i32, files: &mut Files) -> Result<TaskState> {
    let link =
        |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).of(pid, format_args!("reading its {name}"));
    let root = link("root")?;
    Ok(TaskState {
        task: TASK,
        cwd: files.link("cwd", FileNeed::Kind)?,
        root: if root == std::path::Path::new("/") {
            None
        } else {
            Some(files.link("root", FileNeed::Kind)?)
        },
        umask: Status::read(pid).of(pid, "reading its status")?.umask.unwrap_or(0o022),
        rlimits: rlimits(&procfs::read(pid, "limits").of(pid, "reading its limits")?),
        itimers: [ITimer::default(); 3],
        timers: Vec::new(),
        pending: Vec::new(),
        oom_score_adj: number(pid, "oom_score_adj", 10)? as i32,
        personality: number(pid, "personality", 16)? as u32,
        child_subreaper: false,
        stopped: None,
    })
}

fn number(pid: i32, name: &str, radix: u32) -> Result<i64> {
    let text = procfs::read(pid, name).of(pid, format_args!("reading its {name}"))?;
    i64::from_str_radix(text.trim(), radix)
        .map_err(std::io::Error::other)
        .of(pid, format_args!("reading its {name}"))
}

/// /proc/PID/limits: a line for each, in the order of their numbers, values at fixed columns.
pub(crate) fn rlimits(text: &str) -> Vec<(u64, u64)> {
    let value = |word: &str| word.parse().unwrap_or(u64::MAX);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.get(26..)?.split_whitespace();
            Some((value(words.next()?), value(words.next()?)))
        })
        .collect()
}

/// The address space's own figures.
pub(crate) fn mm(
    pid: i32,
    stat: &Stat,
    told: &Told,
    guards: Vec<(u64, u64)>,
    files: &mut Files,
) -> Result<MmState> {
    Ok(MmState {
        space: SPACE,
        start_code: stat.start_code,
        end_code: stat.end_code,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: told.brk,
        start_stack: stat.start_stack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        auxv: procfs::read_bytes(pid, "auxv").of(pid, "reading its auxiliary vector")?,
        exe: files.link("exe", FileNeed::Same)?,
        dumpable: told.dumpable,
        thp_disable: told.thp_disable != 0,
        coredump_filter: number(pid, "coredump_filter", 16)? as u32,
        lock_future: told.lock_future,
        guards,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_column() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max core file size        0                    unlimited            bytes     \n\
                    Max nice priority         0                    7                    \n";
        assert_eq!(rlimits(text), [(u64::MAX, u64::MAX), (0, u64::MAX), (0, 7)]);
    }
}
