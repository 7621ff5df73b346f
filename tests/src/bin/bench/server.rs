//! The redis-server that moves.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::client::{Client, Exchange};
use crate::host::{Host, Net};
use crate::resp;

/// Bytes of a value.
pub const VALUE: usize = 1000;
/// What redis needs for a key of ours beside its value, about.
const OVERHEAD: u64 = 100;

/// Starts redis-server on a host with `memory` bytes of data; gives its process number there and
/// the number of keys.
pub fn start(host: &Host, folder: &Path, memory: u64) -> anyhow::Result<(i32, u64)> {
    let pidfile = folder.join("redis.pid");
    let mut command = host.command("redis-server");
    command.args(["--daemonize", "yes", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]);
    command.args(["--enable-debug-command", "yes", "--logfile", "redis.log"]);
    command.arg("--dir").arg(folder).arg("--pidfile").arg(&pidfile);
    let status = command.status().context("cannot run redis-server")?;
    ensure!(status.success(), "redis-server does not start: {status}");
    let keys = memory / (VALUE as u64 + OVERHEAD);
    let [address, _] = Net::service();
    fill(address, keys)?;
    let pid = std::fs::read_to_string(pidfile)?.trim().parse()?;
    Ok((pid, keys))
}

/// Makes keys `k:0`, `k:1` … with values that all differ, so that no page equals another.
fn fill(address: SocketAddr, keys: u64) -> anyhow::Result<()> {
    let mut client = connect(address)?;
    for first in (0..keys).step_by(64) {
        let mut batch = Vec::new();
        let last = keys.min(first + 64);
        (first..last).for_each(|key| set(key, 0, &mut batch));
        let done = client.exchange(&batch, (last - first) as usize, Duration::from_secs(20), |_| {})?;
        ensure!(done == Exchange::Done, "redis-server went away while it was filled");
    }
    Ok(())
}

/// Connects to a server that is starting.
fn connect(address: SocketAddr) -> anyhow::Result<Client<'static>> {
    let began = Instant::now();
    loop {
        match Client::connect([address, address]) {
            Err(_) if began.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            connected => return connected,
        }
    }
}

/// A SET of a key in its `version`.
pub fn set(key: u64, version: u32, out: &mut Vec<u8>) {
    resp::command(&[b"SET", format!("k:{key}").as_bytes(), &value(key, version)], out);
}

/// A GET of a key.
pub fn get(key: u64, out: &mut Vec<u8>) {
    resp::command(&[b"GET", format!("k:{key}").as_bytes()], out);
}

/// A value begins with its key and version; the rest follows from them and looks random.
pub fn value(key: u64, version: u32) -> Vec<u8> {
    let mut out = format!("{key}:{version}:").into_bytes();
    let mut state = (key << 20) ^ u64::from(version) ^ 0x9e37_79b9_7f4a_7c15;
    while out.len() < VALUE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(VALUE);
    out
}

/// The version that a value says it has, if the whole of it is right.
pub fn version(key: u64, found: &[u8]) -> Option<u32> {
    let number = found.split(|&byte| byte == b':').nth(1)?;
    let version = std::str::from_utf8(number).ok()?.parse().ok()?;
    (value(key, version) == found).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_one_wrong_byte_has_no_version() {
        let mut bytes = value(7, 3);
        assert_eq!(version(7, &bytes), Some(3));
        bytes[900] ^= 1;
        assert_eq!(version(7, &bytes), None);
        assert_eq!(version(8, &value(7, 3)), None);
    }
}
