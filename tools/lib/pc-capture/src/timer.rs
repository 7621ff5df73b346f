//! POSIX timers: timer_create(2), /proc/PID/timers, and the dates that only /proc/timer_list shows.

use std::fs;

use pc_image::{PosixTimer, TimerDates};
use pc_trace::Tracees;

use crate::error::{Context, Result};
use crate::inside::Told;
use crate::procfs::{self, TimerEntry, parse_timers};
use crate::task::TASK;

/// The POSIX timers that the process has.
pub(crate) fn timers(pid: i32) -> Result<Vec<TimerEntry>> {
    let text = procfs::read(pid, "timers").of(pid, "reading its timers")?;
    parse_timers(&text).ok_or(std::io::ErrorKind::InvalidData).of(pid, "reading its timers")
}

/// A timer as far as it is known while the process runs.
pub(crate) fn without_times(entry: &TimerEntry) -> PosixTimer {
    PosixTimer {
        id: entry.id,
        clock: entry.clock,
        signo: entry.signo,
        notify: entry.notify,
        tid: 0,
        sigval: entry.sigval,
        value: 0,
        interval: 0,
        overrun: 0,
    }
}

/// The timers with their times.
pub(crate) fn posix_timers(tracees: &Tracees, told: &Told, timers: &[TimerEntry]) -> Vec<PosixTimer> {
    const SIGEV_NONE: i32 = 1;
    const SIGEV_THREAD_ID: i32 = 4;
    let timer = |(entry, (value, interval, overrun)): (&TimerEntry, &(u64, u64, i32))| {
        let to_thread = entry.notify & SIGEV_THREAD_ID != 0;
        let target = if to_thread { tracees.ns_tid(entry.target).ok() } else { None };
        PosixTimer {
            // A thread that has ended gets no signal, and no timer can be made for it.
            notify: if to_thread && target.is_none() { SIGEV_NONE } else { entry.notify },
            tid: target.map_or(0, |tid| tid as u32),
            value: *value,
            interval: *interval,
            overrun: *overrun,
            ..without_times(entry)
        }
    };
    timers.iter().zip(&told.timers).map(timer).collect()
}

/// The dates of timers of the wall clock that were set to one. Their times left say nothing of that, but the kernel keeps
/// relative timers of that clock by the monotonic one; so a date is in /proc/timer_list among those of the wall clock. Where that file
/// cannot be read (by others than root, say), none is known.
pub(crate) fn dates(timers: &[PosixTimer], told: &Told) -> Option<TimerDates> {
    let on_wall = |timer: &&PosixTimer| timer.clock == libc::CLOCK_REALTIME && timer.value > 1;
    if !timers.iter().any(|timer| on_wall(&timer)) {
        return None;
    }
    let ends = parse_wall_timers(&fs::read_to_string("/proc/timer_list").ok()?);
    let date = |timer: &PosixTimer| {
        let (from, to) = (told.wall.0 + timer.value, told.wall.1 + timer.value);
        Some((timer.id, ends.iter().copied().find(|end| (from..=to).contains(end))?))
    };
    let dates: Vec<(i32, u64)> = timers.iter().filter(on_wall).filter_map(date).collect();
    (!dates.is_empty()).then_some(TimerDates { task: TASK, dates })
}

/// When the POSIX timers of the bases of the wall clock (1 and 5: `enum hrtimer_base_type`) end.
fn parse_wall_timers(text: &str) -> Vec<u64> {
    let (mut on_wall, mut posix) = (false, false);
    let mut ends = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(clock) = line.strip_prefix("clock ") {
            on_wall = matches!(clock, "1:" | "5:");
        } else if line.starts_with('#') && !line.starts_with("# ") {
            posix = line.contains(" posix_timer_fn,");
        } else if let Some(range) = line.strip_prefix("# expires at ")
            && on_wall
            && posix
        {
            ends.extend(range.split('-').next().and_then(|end| end.parse::<u64>().ok()));
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_posix_timers_of_the_wall_clock_have_dates() {
        let timer = |function: &str, end: u64| {
            format!(" #0: <0>, {function}, S:01\n # expires at {end}-{end} nsecs [in 1 to 1 nsecs]\n")
        };
        let text = [
            " clock 0:\nactive timers:\n".to_owned(),
            timer("posix_timer_fn", 1),
            " clock 1:\nactive timers:\n".to_owned(),
            timer("hrtimer_wakeup", 2),
            timer("posix_timer_fn", 3),
            " clock 3:\n".to_owned(),
            timer("posix_timer_fn", 4),
        ];
        assert_eq!(parse_wall_timers(&text.concat()), [3]);
    }
}
