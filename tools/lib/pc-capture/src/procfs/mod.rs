//! Parsers for the files of /proc that capture reads. No system calls but the reading.

mod fdinfo;
mod maps;
mod stat;
mod status;
mod timers;

pub use fdinfo::{FdInfo, WatchInfo};
pub use maps::{Area, Smaps, parse_maps, parse_smaps, unescape};
pub use stat::Stat;
pub use status::Status;
pub use timers::{TimerEntry, parse_timers};

use std::fs::File;
use std::io::{self, Read};

/// The text of `/proc/PID/NAME`.
pub fn read(pid: i32, name: &str) -> io::Result<String> {
    let bytes = read_bytes(pid, name)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The bytes of `/proc/PID/NAME`.
pub fn read_bytes(pid: i32, name: &str) -> io::Result<Vec<u8>> {
    read_file(&format!("/proc/{pid}/{name}"))
}

/// The name of a thread: bytes, of which only a zero is none.
pub fn name(pid: i32, tid: i32) -> io::Result<Vec<u8>> {
    let mut name = read_bytes(pid, &format!("task/{tid}/comm"))?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Ok(name)
}

/// A name or path for messages: control characters, and bytes that are no text, are written as escapes.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// The bytes of a file whose size is not known before, in as few calls as it takes: the kernel gives a page at a time at the most.
fn read_file(path: &str) -> io::Result<Vec<u8>> {
    read_all(File::open(path)?)
}

fn read_all(file: File) -> io::Result<Vec<u8>> {
    read_on(file, Vec::new())
}

/// The same of a file that the kernel writes whole into its own buffer at the first read (`single_open`): what does not
/// fill the room is all of it (`seq_read_iter` in fs/seq_file.c).
fn read_single(mut file: File) -> io::Result<Vec<u8>> {
    let mut room = [0; 1024];
    let got = file.read(&mut room)?;
    let bytes = room[..got].to_vec();
    if got < room.len() { Ok(bytes) } else { read_on(file, bytes) }
}

fn read_on(mut file: File, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    const ROOM: usize = 4096;
    loop {
        let filled = bytes.len();
        bytes.resize(filled + ROOM, 0);
        let got = file.read(&mut bytes[filled..]);
        bytes.truncate(filled + *got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => return Ok(bytes),
            Err(err) if err.kind() != io::ErrorKind::Interrupted => return Err(err),
            _ => {}
        }
    }
}
