//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueHint};
use pc_link::Addr;
use pc_link_cli::LinkArgs;

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
    /// Make a new key in FILE, which must not exist, and end
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, exclusive = true)]
    pub new_key: Option<PathBuf>,
    /// Without a COMMAND, send standard input back to the sender
    #[arg(long, conflicts_with_all = ["command", "serve"])]
    pub two_way: bool,
    /// Take transfer after transfer, each with a COMMAND of its own, and at most MAX at once (8 without it)
    #[arg(long, value_name = "MAX", num_args = 0..=1, require_equals = true, default_missing_value = "8",
        value_parser = parse_most, requires = "command")]
    pub serve: Option<usize>,
    #[command(flatten)]
    pub link: LinkArgs,
}

fn parse_most(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=1000).contains(n))
        .ok_or_else(|| "a number from 1 to 1000 is wanted".into())
}
