//! The census around a move: the original is read as it was left stopped, its copy as it is left stopped, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Moved, Sample};
use crate::{Guest, is_stopped, status, wait_for};

const LEAVE_STOPPED: &str = "--leave-stopped";

/// What originals were by the image that was made of them.
static TAKEN: Mutex<BTreeMap<PathBuf, Before>> = Mutex::new(BTreeMap::new());

/// The original, where there is a census of it.
#[derive(Debug, Clone, Default)]
pub struct Before {
    sample: Option<Sample>,
    /// It has no handler for SIGCONT and does not block it, so that its copy does not notice a stop.
    may_stop: bool,
}

/// Takes the census of an original that was left stopped, if this move of the test has one.
pub fn before(pid: i32, image: &Path) {
    if is_due() {
        take(pid, image);
    } else {
        TAKEN.lock().expect("no panic").remove(image);
    }
}

/// Takes the census of an original that was left stopped after this image of it was made.
pub fn take(pid: i32, image: &Path) {
    let before = Before { sample: Some(Sample::take(pid)), may_stop: may_stop(pid) };
    wait_for("the original is stopped as before", Duration::from_secs(10), || is_stopped(pid));
    TAKEN.lock().expect("no panic").insert(image.to_owned(), before);
}

/// Takes the census of an original that runs, and goes on as if nothing had been: one that does nothing until it is asked.
pub fn of_running(pid: i32) -> Before {
    Before { sample: Some(Sample::take(pid)), may_stop: false }
}

/// The census of the original that an image was made of, if there is one.
pub fn taken(image: &Path) -> Before {
    TAKEN.lock().expect("no panic").get(image).cloned().unwrap_or_default()
}

/// Whether the next move of this test has a census: the first few of those in a row, and ever fewer later.
pub fn is_due() -> bool {
    static MOVES: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let mut moves = MOVES.lock().expect("no panic");
    let count = moves.entry(test).or_default();
    *count += 1;
    *count <= 4 || count.is_power_of_two()
}

/// Whether a process does not notice that it is stopped and goes on.
fn may_stop(pid: i32) -> bool {
    const SIGCONT: u64 = 1 << (Signal::SIGCONT as u64 - 1);
    let has = |field| u64::from_str_radix(&status(pid, field), 16).expect("a mask") & SIGCONT != 0;
    !has("SigBlk") && !has("SigCgt")
}

impl Before {
    /// For pc-restore with these arguments: a copy that it leaves stopped stays so.
    pub fn with(mut self, args: &[&str]) -> Before {
        self.may_stop &= !args.contains(&LEAVE_STOPPED);
        self
    }

    /// What pc-restore is to be told further.
    pub fn args(&self) -> &'static [&'static str] {
        if self.sample.is_some() && self.may_stop { &[LEAVE_STOPPED] } else { &[] }
    }

    /// Compares the copy with its original, and lets it go on.
    pub fn compare(&self, copy: &Guest, moved: Moved) {
        let Some(sample) = &self.sample else { return };
        if self.may_stop {
            wait_for("the copy is stopped", Duration::from_secs(10), || is_stopped(copy.pid()));
        }
        let differences = sample.differences(&Sample::take(copy.pid()), moved);
        let all = differences.join("\n");
        assert!(differences.is_empty(), "the census of pid {}:\n{all}", copy.pid());
        if self.may_stop {
            copy.signal(Signal::SIGCONT);
        }
    }
}
