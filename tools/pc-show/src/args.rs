//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueHint};

use crate::Shown;

/// Look inside a stream of pc-dump, and validate it on the way.
///
/// Without an option, a summary for people. The stream is read to its end whatever is shown: checksums, order, counts and
/// digests are all checked. Of a cut or corrupt stream, what was good is shown, then what is wrong and where.
#[derive(Debug, Parser)]
#[command(name = "pc-show", version)]
pub struct Args {
    /// The stream; standard input without it
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// One line for each frame: offset, number, type, version, length, checksum
    #[arg(long, group = "what")]
    pub frames: bool,
    /// The mappings of each address space, like /proc/PID/maps, with the pages sent for each
    #[arg(long, group = "what")]
    pub maps: bool,
    /// What is known of machine, rounds, processes, files and memory, as one JSON object
    #[arg(long, group = "what")]
    pub json: bool,
    /// The process tree with its threads
    #[arg(long, group = "what")]
    pub ps: bool,
    /// Descriptors and what they refer to
    #[arg(long, group = "what")]
    pub fds: bool,
    /// Registers and signal state of each thread
    #[arg(long, group = "what")]
    pub threads: bool,
    /// A hex dump of LEN bytes (256 without it) of the final memory at ADDR
    #[arg(long, group = "what", value_name = "ADDR[,LEN]", value_parser = parse_span)]
    pub pages: Option<Span>,
    /// Where these bytes (in hex: 7f454c46) occur in the page data
    #[arg(long, group = "what", value_name = "HEX", value_parser = parse_hex)]
    pub search: Option<Needle>,
    /// Where this text occurs in the page data
    #[arg(long, group = "what", value_name = "TEXT", value_parser = parse_text)]
    pub search_text: Option<Needle>,
    /// Draw the address spaces: what is zero, from files, sent once, sent again
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    pub map: Option<PathBuf>,
    /// Draw the rounds: when they were, how much they sent, and the stop
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    pub timeline: Option<PathBuf>,
    /// What all tools take.
    #[command(flatten)]
    pub common: pc_cli::CommonArgs,
}

/// Makes a picture.
type Draw = fn(&Shown) -> String;

impl Args {
    /// The pictures that are asked for, each with where it goes.
    pub fn pictures(&self) -> impl Iterator<Item = (&Path, Draw)> {
        let all: [(_, Draw); 2] = [(&self.map, Shown::map), (&self.timeline, Shown::timeline)];
        all.into_iter().filter_map(|(path, draw)| Some((path.as_deref()?, draw)))
    }
}

/// A range of addresses to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// Bytes to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle(pub Vec<u8>);

/// Longest needle: no longer than a page, so that it crosses one border at most where pages come apart.
const MAX_NEEDLE: usize = 4096;
/// Most bytes that `--pages` shows.
const MAX_SPAN: u64 = 16 << 20;

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is no number (1234 or 0x4d2)"))
}

fn parse_span(text: &str) -> Result<Span, String> {
    let (addr, len) = match text.split_once(',') {
        Some((addr, len)) => (number(addr)?, number(len)?),
        None => (number(text)?, 256),
    };
    if len == 0 || len > MAX_SPAN || addr.checked_add(len).is_none() {
        return Err(format!("a length of 1 to {MAX_SPAN} bytes inside the address space is wanted"));
    }
    Ok(Span { addr, len })
}

fn parse_hex(text: &str) -> Result<Needle, String> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|d| d as u8).ok_or_else(|| format!("'{c}' is no hex digit")))
        .collect::<Result<_, _>>()?;
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err("an even number of hex digits is wanted".to_owned());
    }
    needle(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn parse_text(text: &str) -> Result<Needle, String> {
    if text.is_empty() {
        return Err("an empty text is everywhere".to_owned());
    }
    needle(text.as_bytes().to_vec())
}

fn needle(bytes: Vec<u8>) -> Result<Needle, String> {
    if bytes.len() > MAX_NEEDLE {
        return Err(format!("at most {MAX_NEEDLE} bytes can be looked for"));
    }
    Ok(Needle(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_bytes_are_read_as_people_write_them() {
        assert_eq!(parse_span("0x1000,16").unwrap(), Span { addr: 4096, len: 16 });
        assert_eq!(parse_span("4096").unwrap(), Span { addr: 4096, len: 256 });
        assert!(parse_span("0xffffffffffffffff,2").is_err());
        assert!(parse_span("1,0").is_err());
        assert_eq!(parse_hex("7f 45:4C46").unwrap(), Needle(b"\x7fELF".to_vec()));
        assert!(parse_hex("7f4").is_err() && parse_hex("zz").is_err());
    }
}
