//! Parsers for the files of /proc that capture reads. No system calls but the reading.

mod fdinfo;
mod maps;
mod stat;
mod status;
mod timers;

pub use fdinfo::FdInfo;
pub use maps::{Area, Smaps, parse_maps, parse_smaps};
pub use stat::Stat;
pub use status::Status;
pub use timers::{TimerEntry, parse_timers};

use std::io;

/// The text of `/proc/PID/NAME`.
pub fn read(pid: i32, name: &str) -> io::Result<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}"))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The bytes of `/proc/PID/NAME`.
pub fn read_bytes(pid: i32, name: &str) -> io::Result<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/{name}"))
}

/// The threads that exist now, ascending.
pub fn threads(pid: i32) -> io::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The descriptors that are open now, ascending.
pub fn descriptors(pid: i32) -> io::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/fd"))
}

/// The entries of a folder whose names are numbers, ascending.
fn numbers(folder: &str) -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        all.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    all.sort_unstable();
    Ok(all)
}
