//! Clocks that never go back: whether the process needs a time namespace, and with which offsets.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use pc_image::Clocks;

use crate::error::{Context, RebuildError};

/// Our own clocks, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub monotonic: i64,
    pub boottime: i64,
}

impl Reading {
    /// Of now.
    pub fn now() -> Result<Self, RebuildError> {
        let read = |id: ClockId| -> Result<i64, RebuildError> {
            let t = clock_gettime(id).what("reading the clocks")?;
            Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
        };
        Ok(Self { monotonic: read(ClockId::CLOCK_MONOTONIC)?, boottime: read(ClockId::CLOCK_BOOTTIME)? })
    }
}

/// Offsets to be added to our own clocks, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    pub monotonic: i64,
    pub boottime: i64,
}

/// The offsets, relative to our own clocks, with which the process's clocks go on, by the reading that was delayed
/// least; `None` where it reads our very clocks already.
pub fn needed(
    source_boot: &str,
    own_boot: &str,
    own: Offsets,
    readings: &[(Clocks, Reading)],
) -> Option<Offsets> {
    let (last, _) = readings.last()?;
    let same_boot = !source_boot.is_empty() && source_boot == own_boot;
    if same_boot && (last.monotonic_offset, last.boottime_offset) == (own.monotonic, own.boottime) {
        return None;
    }
    if same_boot {
        return Some(Offsets {
            monotonic: last.monotonic_offset - own.monotonic,
            boottime: last.boottime_offset - own.boottime,
        });
    }
    let greatest = |ahead: fn(&(Clocks, Reading)) -> i64| readings.iter().map(ahead).max().unwrap_or(0);
    Some(Offsets {
        monotonic: greatest(|(there, here)| there.monotonic - here.monotonic),
        boottime: greatest(|(there, here)| there.boottime - here.boottime),
    })
}

/// This machine's boot id.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or(String::new(), |id| id.trim().to_owned())
}

/// Our own time namespace's offsets; zero where the kernel has none.
pub fn own_offsets() -> Offsets {
    fs::read_to_string("/proc/self/timens_offsets").map_or(Offsets::default(), |text| parse_offsets(&text))
}

fn parse_offsets(text: &str) -> Offsets {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, secs, nanos] = words[..] else { continue };
        let value = secs.parse::<i64>().unwrap_or(0) * 1_000_000_000 + nanos.parse::<i64>().unwrap_or(0);
        match name {
            "monotonic" => offsets.monotonic = value,
            "boottime" => offsets.boottime = value,
            _ => {}
        }
    }
    offsets
}

/// Makes a time namespace whose clocks are ours plus `offsets`; a thread of ours that ends at once makes it.
pub fn make_namespace(offsets: Offsets) -> Result<OwnedFd, RebuildError> {
    if !Path::new("/proc/self/ns/time").exists() {
        return Err(RebuildError::Unsupported(
            "the kernel has no time namespaces; the clocks would go back".into(),
        ));
    }
    let own = own_offsets();
    let text = offsets_text(Offsets {
        monotonic: own.monotonic + offsets.monotonic,
        boottime: own.boottime + offsets.boottime,
    });
    let made = std::thread::spawn(move || -> Result<OwnedFd, RebuildError> {
        unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).what("making a time namespace")?;
        let tid = nix::unistd::gettid();
        fs::write(format!("/proc/{tid}/timens_offsets"), text).what("setting the clocks' offsets")?;
        let namespace = fs::File::open(format!("/proc/{tid}/ns/time_for_children"));
        Ok(namespace.what("opening the time namespace")?.into())
    });
    made.join().unwrap_or_else(|_| Err(RebuildError::Contradiction("a thread panicked".into())))
}

/// `CLONE_NEWTIME` of clone(2).
pub const CLONE_NEWTIME: i32 = 0x80;

/// As /proc/PID/timens_offsets takes it: nanoseconds are never negative.
fn offsets_text(offsets: Offsets) -> String {
    let line = |name: &str, value: i64| {
        let (secs, nanos) = (value.div_euclid(1_000_000_000), value.rem_euclid(1_000_000_000));
        format!("{name} {secs} {nanos}\n")
    };
    line("monotonic", offsets.monotonic) + &line("boottime", offsets.boottime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(monotonic: i64, offset: i64) -> Clocks {
        Clocks {
            realtime: 0,
            monotonic,
            boottime: monotonic + 5,
            monotonic_offset: offset,
            boottime_offset: offset,
        }
    }

    fn here(monotonic: i64) -> Reading {
        Reading { monotonic, boottime: monotonic }
    }

    #[test]
    fn the_same_clocks_need_no_namespace() {
        let own = Offsets::default();
        assert_eq!(needed("a", "a", own, &[(there(100, 0), here(200))]), None);
        let moved = needed("a", "a", own, &[(there(100, 70), here(200))]);
        assert_eq!(moved, Some(Offsets { monotonic: 70, boottime: 70 }));
    }

    #[test]
    fn the_reading_that_was_delayed_least_counts_and_the_clock_never_goes_back() {
        let readings = [(there(1000, 0), here(10)), (there(1100, 0), here(150)), (there(1200, 0), here(215))];
        let offsets = needed("a", "b", Offsets::default(), &readings).unwrap();
        assert_eq!(offsets, Offsets { monotonic: 990, boottime: 995 });
        assert!(readings.iter().all(|(t, h)| h.monotonic + offsets.monotonic >= t.monotonic));
    }

    #[test]
    fn negative_offsets_are_written_with_positive_nanoseconds() {
        let offsets = Offsets { monotonic: -1, boottime: 1_500_000_000 };
        let text = offsets_text(offsets);
        assert_eq!(text, "monotonic -1 999999999\nboottime 1 500000000\n");
        assert_eq!(parse_offsets(&text), offsets);
    }
}
