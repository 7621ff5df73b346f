//! What this version cannot rebuild on any machine, told from records alone.
//!
//! The one set of rules that both ends use: pc-dump runs the records that it would send through it before anything is
//! touched (`--check`), again in rounds and at the stop; pc-restore runs those that arrive through it. So what is accepted
//! there is not refused here for a reason that was known before. Pure: what depends on the machine is judged elsewhere.

use crate::{OpenFileKind, Record};

/// Why a record cannot be rebuilt by this version; empty if it can. Each reason is for people, and follows "pid N: " or
/// "descriptor N is ".
pub fn refusals(record: &Record) -> Vec<String> {
    match record {
        Record::OpenFile(open) => match &open.kind {
            OpenFileKind::Timer(timer) if !TIMERFD_CLOCKS.contains(&timer.clock) => {
                vec![format!("a timerfd of clock {}, which cannot be moved yet", timer.clock)]
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Clocks of a timerfd that can be made (timerfd_create(2)): `CLOCK_REALTIME`, `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`, and the
/// first and the last as alarms.
const TIMERFD_CLOCKS: [i32; 5] = [0, 1, 7, 8, 9];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenFile, OpenFileId, TimerFd};

    #[test]
    fn a_timerfd_of_a_clock_that_no_call_takes_is_refused_by_name() {
        let record = |clock| {
            let timer = TimerFd { clock, settime_flags: 0, ticks: 0, value: 0, interval: 0 };
            let kind = OpenFileKind::Timer(timer);
            Record::OpenFile(OpenFile { id: OpenFileId(0), flags: 0, owner: None, kind })
        };
        assert!(refusals(&record(1)).is_empty());
        assert_eq!(refusals(&record(4)), ["a timerfd of clock 4, which cannot be moved yet"]);
    }
}
