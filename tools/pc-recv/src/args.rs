//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueHint};
use pc_cli::{parse_duration, parse_size};
use pc_link::Addr;

/// Receive a stream from pc-send, over an authenticated link.
///
/// What comes is written to standard output; with a COMMAND it becomes its input, and its output goes back to the sender.
#[derive(Debug, Parser)]
#[command(name = "pc-recv", version)]
pub struct Args {
    /// Where to listen: HOST:PORT or :PORT (IPv6 in brackets), unix:PATH or vsock:CID:PORT
    #[arg(value_name = "ADDR", required_unless_present_any = ["new_key", "completions"])]
    pub addr: Option<Addr>,
    /// Start this command for a transfer and join its input and output to the link
    #[arg(value_name = "COMMAND", last = true, value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
    /// The key that both ends share
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    /// Make a new key in FILE, which must not exist, and end
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, exclusive = true)]
    pub new_key: Option<PathBuf>,
    /// Listen for other machines without a key: whoever connects is taken for the sender
    #[arg(long, conflicts_with = "key_file")]
    pub plaintext: bool,
    /// Without a COMMAND, send standard input back to the sender
    #[arg(long, conflicts_with_all = ["command", "serve"])]
    pub two_way: bool,
    /// Take transfer after transfer, each with a COMMAND of its own, and at most MAX at once (8 without it)
    #[arg(long, value_name = "MAX", num_args = 0..=1, require_equals = true, default_missing_value = "8",
        value_parser = parse_most, requires = "command")]
    pub serve: Option<usize>,
    /// Compress what goes back where that pays, with zstd at LEVEL (1 to 19; 1 without it)
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compress: Option<i32>,
    /// Send back no more than so many bytes a second (50M, 12MB)
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Wait for so long, if the sender wants it too, when the connection breaks
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub reconnect: Duration,
    /// Take the other side for gone after so much silence
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_timeout)]
    pub timeout: Duration,
    #[command(flatten)]
    pub common: pc_cli::CommonArgs,
}

fn parse_most(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=1000).contains(n))
        .ok_or_else(|| "a number from 1 to 1000 is wanted".into())
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
