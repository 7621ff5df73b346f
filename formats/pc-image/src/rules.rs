//! What this version cannot rebuild on any machine, told from records alone.
//!
//! The one set of rules that both ends use: pc-dump runs the records that it would send through it before anything is
//! touched (`--check`), again in rounds and at the stop; pc-restore runs those that arrive through it. So what is accepted
//! there is not refused here for a reason that was known before. Pure: what depends on the machine is judged elsewhere.

use crate::{ExternalFile, ExternalKind, OpenFileKind, Record};

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

/// What somebody has to say at the destination about something that reaches outside, with the option to type. `None` where
/// there is a default: a terminal becomes the caller's, and so does standard error with what goes there.
pub fn needs_attach(external: &ExternalFile) -> Option<String> {
    let ExternalFile { id, kind } = external;
    let does = match kind {
        ExternalKind::Terminal => return None,
        ExternalKind::PipeWrite if [STDERR_PIPE, STDOUT_TO_STDERR].contains(&id.as_str()) => return None,
        ExternalKind::PipeRead => "is read from",
        ExternalKind::PipeWrite => "is written to",
    };
    Some(format!(
        "{id} is a pipe that {does} and whose other end is outside: --attach {id}=WHERE of pc-restore says what \
         it becomes (a path, fd:N or null)"
    ))
}

/// The id of a pipe to the outside behind descriptor 2.
pub const STDERR_PIPE: &str = "pipe:2";
/// That of descriptor 1, where it is an open file description of its own of the pipe behind descriptor 2.
pub const STDOUT_TO_STDERR: &str = "pipe:2:1";

/// Clocks of a timerfd that can be made (timerfd_create(2)): `CLOCK_REALTIME`, `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`, and the
/// first and the last as alarms.
const TIMERFD_CLOCKS: [i32; 5] = [0, 1, 7, 8, 9];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenFile, OpenFileId, TimerFd};

    #[test]
    fn only_terminals_and_standard_error_go_to_the_caller_unasked() {
        let asked = |id: &str, kind| needs_attach(&ExternalFile { id: id.to_owned(), kind });
        for (id, kind) in [("tty:/dev/pts/1", ExternalKind::Terminal), (STDERR_PIPE, ExternalKind::PipeWrite)]
        {
            assert_eq!(asked(id, kind), None);
        }
        assert_eq!(asked(STDOUT_TO_STDERR, ExternalKind::PipeWrite), None);
        for (id, kind) in [("pipe:1", ExternalKind::PipeWrite), ("pipe:2", ExternalKind::PipeRead)] {
            assert!(asked(id, kind).is_some_and(|text| text.contains(&format!("--attach {id}="))));
        }
    }

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
