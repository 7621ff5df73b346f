//! /proc/PID/timers: see proc_pid_timers(5).

/// A POSIX timer, but for its times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimerEntry {
    /// The kernel's id.
    pub id: i32,
    /// `sigev_signo`.
    pub signo: i32,
    /// `sigev_value`.
    pub sigval: u64,
    /// `sigev_notify`, `SIGEV_THREAD_ID` (4) added where a thread gets the signal.
    pub notify: i32,
    /// The thread or process that gets it, in the reader's pid namespace.
    pub target: i32,
    /// Clock id.
    pub clock: i32,
}

/// Parses the file, ascending by id; `None` if a line is not understood.
pub fn parse_timers(text: &str) -> Option<Vec<TimerEntry>> {
    let mut all: Vec<TimerEntry> = Vec::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if key == "ID" {
            all.push(TimerEntry { id: value.parse().ok()?, ..TimerEntry::default() });
            continue;
        }
        let timer = all.last_mut()?;
        match key {
            "signal" => {
                let (signo, sigval) = value.split_once('/')?;
                timer.signo = signo.parse().ok()?;
                timer.sigval = pointer(sigval)?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (kind, id) = whom.split_once('.')?;
                timer.notify = match how {
                    "signal" => 0,
                    "none" => 1,
                    "thread" => 2,
                    _ => return None,
                };
                timer.notify |= if kind == "tid" { 4 } else { 0 };
                timer.target = id.parse().ok()?;
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    all.sort_by_key(|timer| timer.id);
    Some(all)
}

/// `%px`: hexadecimal without a prefix, or `(null)`.
fn pointer(text: &str) -> Option<u64> {
    let text = text.trim_start_matches("0x");
    if text == "(null)" { Some(0) } else { u64::from_str_radix(text, 16).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notification_to_a_thread_and_to_a_process() {
        let timers = parse_timers(
            "ID: 7\nsignal: 14/0000000000000000\nnotify: signal/pid.12\nClockID: 1\n\
             ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/tid.2634\nClockID: 0\n",
        )
        .unwrap();
        assert_eq!(timers[0].id, 1);
        assert_eq!((timers[0].notify, timers[0].target, timers[0].sigval), (4, 2634, 0x7fff_86e4_52a8));
        assert_eq!((timers[1].signo, timers[1].notify, timers[1].clock), (14, 0, 1));
    }
}
