//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueHint};
use pc_cli::{parse_duration, parse_size};
use pc_link::Addr;

/// Send a stream to pc-recv, over an authenticated link.
///
/// Standard input goes to the other side, what comes back from there to standard output; with a COMMAND, its output and its input
/// take their place.
#[derive(Debug, Parser)]
#[command(name = "pc-send", version)]
pub struct Args {
    /// Where pc-recv listens: HOST:PORT (IPv6 in brackets), unix:PATH or vsock:CID:PORT
    #[arg(value_name = "ADDR")]
    pub addr: Addr,
    /// Start this command and join its output and input to the link
    #[arg(value_name = "COMMAND", last = true, value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
    /// The key that both ends share (pc-recv --new-key makes one)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    /// Send to another machine without a key: unencrypted, to anybody who answers
    #[arg(long, conflicts_with = "key_file")]
    pub plaintext: bool,
    /// Spread the bytes over N connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_streams)]
    pub streams: usize,
    /// Compress what pays, with zstd at LEVEL (1 to 19; 1 without it)
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compress: Option<i32>,
    /// Send no more than so many bytes a second (50M, 12MB)
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Connect again for so long when the connection breaks, and go on where it was
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub reconnect: Duration,
    /// Take the other side for gone after so much silence
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_timeout)]
    pub timeout: Duration,
    #[command(flatten)]
    pub common: pc_cli::CommonArgs,
}

fn parse_streams(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (1..=pc_link::MAX_STREAMS).contains(n));
    n.ok_or_else(|| format!("a number from 1 to {} is wanted", pc_link::MAX_STREAMS))
}

fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text)
        .and_then(|n| if n >= 1024 { Ok(n) } else { Err("1024 bytes a second or more are wanted".into()) })
}

/// Seconds, or a duration with its unit.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| parse_duration(text))
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(2);
    parse_seconds(text)
        .and_then(|d| if d >= least { Ok(d) } else { Err("2 seconds or more are wanted".into()) })
}
