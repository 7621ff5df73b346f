//! What guests that are asked twice have in common: they set much up, read it all back, wait to be moved, and read it
//! back again.
//!
//! `GUEST REPORT`: `REPORT.ready` appears when the guest waits; SIGUSR1 tells it to look again; REPORT then says `OK`, or
//! what is another than before.

use std::fs;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

/// Reads twice, and writes the report. `last` tries out what can be tried once only, and says what is wrong.
pub fn asked_twice(
    report: &str,
    mut readings: impl FnMut() -> Vec<String>,
    last: impl FnOnce() -> Vec<String>,
) -> ExitCode {
    let go = SigSet::from_iter([Signal::SIGUSR1]);
    go.thread_block().expect("a mask");
    // The first reading may itself change something, as the heap grows.
    readings();
    let before = readings();
    fs::write(format!("{report}.ready"), "").expect("a report");
    go.wait().expect("a signal");
    let mut wrong = differences(&before, &readings());
    wrong.extend(last());
    finish(report, &wrong)
}

/// Writes the report.
pub fn finish(report: &str, wrong: &[String]) -> ExitCode {
    let text = if wrong.is_empty() { "OK\n".to_owned() } else { wrong.join("\n") + "\n" };
    // A report that is there is whole.
    let fresh = format!("{report}.new");
    fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, report)).expect("a report");
    ExitCode::from(u8::from(!wrong.is_empty()))
}

fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let come = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(come).collect()
}
