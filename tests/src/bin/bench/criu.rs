//! CRIU's dump and restore, to compare with: by way of files that both hosts see, as it does not stream.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use crate::How;
use crate::host::Net;
use crate::transfer::{Move, Running, Side};

/// Whether a criu is installed that finds all it needs in this kernel; else why not.
pub fn usable() -> Result<(), String> {
    let output = Command::new("criu").arg("check").stdin(Stdio::null()).output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err("not installed".to_owned()),
        Err(error) => Err(error.to_string()),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("criu check fails: {}", said.trim().lines().last().unwrap_or_default()))
        }
    }
}

/// Dumps the process, leaves it stopped, and restores it at the destination.
pub fn run(net: &Net, folder: &Path, pid: i32, how: &How) -> anyhow::Result<Move> {
    let images = folder.join("criu");
    fs::create_dir(&images)?;
    let began = Instant::now();
    let mut dump = net.source.command("criu");
    dump.args(["dump", "--leave-stopped", "--tcp-close", "--tree", &pid.to_string(), "--images-dir"]);
    dump.arg(&images);
    let mut dump = Running::start(dump, folder, "criu-dump", Side::Neither)?.finish(how.limit())?;
    let mut restore = net.destination.command("criu");
    restore.args(["restore", "--restore-detached", "--tcp-close", "--images-dir"]).arg(&images);
    let mut restore = Running::start(restore, folder, "criu-restore", Side::Neither)?.finish(how.limit())?;
    let total_us = began.elapsed().as_micros() as u64;
    dump.stats = stats(&images.join("stats-dump"), 1, &DUMPED)?;
    restore.stats = stats(&images.join("stats-restore"), 2, &RESTORED)?;
    let mut bytes = 0;
    for entry in fs::read_dir(&images)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(Move { total_us, bytes, dump, restore })
}

/// Names of the fields that we want, by their numbers in CRIU's images/stats.proto.
const DUMPED: [(u64, &str); 4] =
    [(1, "freezing_time"), (2, "frozen_time"), (3, "memdump_time"), (4, "memwrite_time")];
const RESTORED: [(u64, &str); 3] = [(3, "forking_time"), (4, "restore_time"), (5, "pages_restored")];

/// Reads a file of statistics: two magic numbers and a length of four bytes each, then a protobuf message that
/// holds one for the dump (field 1) or one for the restore (field 2).
fn stats(path: &Path, part: u64, names: &[(u64, &str)]) -> anyhow::Result<Value> {
    let file = fs::read(path).with_context(|| format!("no figures in {}", path.display()))?;
    parse(file.get(12..).unwrap_or_default(), part, names)
        .with_context(|| format!("{} is not understood", path.display()))
}

fn parse(message: &[u8], part: u64, names: &[(u64, &str)]) -> anyhow::Result<Value> {
    let outer = fields(message)?;
    let inner = outer.into_iter().find_map(|field| match field {
        (number, Field::Bytes(bytes)) if number == part => Some(bytes),
        _ => None,
    });
    let mut found = Map::new();
    for (number, field) in fields(inner.context("the message is not there")?)? {
        if let (Some((_, name)), Field::Number(value)) = (names.iter().find(|name| name.0 == number), field) {
            found.insert((*name).to_owned(), value.into());
        }
    }
    Ok(Value::Object(found))
}

#[derive(Debug, PartialEq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protobuf message that has only numbers and messages in it.
fn fields(mut message: &[u8]) -> anyhow::Result<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message)?;
        let value = number(&mut message)?;
        let field = match key & 7 {
            0 => Field::Number(value),
            2 => {
                let len = usize::try_from(value).ok().filter(|len| *len <= message.len());
                let (bytes, rest) = message.split_at(len.context("cut short")?);
                message = rest;
                Field::Bytes(bytes)
            }
            other => bail!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    Ok(found)
}

/// A number in groups of seven bits, the lowest first.
fn number(message: &mut &[u8]) -> anyhow::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().context("cut short")?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number that does not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_their_field_numbers() {
        // A dump with freezing_time 5 and frozen_time 300, and an unknown field 9.
        let message = [0x0a, 7, 0x08, 5, 0x10, 0xac, 0x02, 0x48, 1];
        let found = parse(&message, 1, &DUMPED).unwrap();
        assert_eq!(found, serde_json::json!({ "freezing_time": 5, "frozen_time": 300 }));
        assert!(parse(&message, 2, &RESTORED).is_err());
        assert!(fields(&message[..5]).is_err());
    }
}
