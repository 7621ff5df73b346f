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
