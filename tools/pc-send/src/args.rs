//! The command line.

use std::ffi::OsString;

use clap::{Parser, ValueHint};
use pc_link::Addr;
use pc_link_cli::{LinkArgs, parse_streams};

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
    /// Spread the bytes over N connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_streams)]
    pub streams: usize,
    #[command(flatten)]
    pub link: LinkArgs,
}
