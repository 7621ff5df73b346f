//! `pc-send`: send a stream to `pc-recv`, over an authenticated link.

#![forbid(unsafe_code)]

mod args;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};

use anyhow::anyhow;
use pc_link::{Ends, LinkError, Outcome};
use pc_link_cli::{Direction, Transfer, finish, input};

use args::Args;

const TOOL: &str = "pc-send";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    let transfer = Transfer::begin(TOOL, &args.link, args.streams, Direction::Sent)?;
    let wait = transfer.settings.cancel.clone();
    let ends = own_ends(&args)?;
    let result = pc_link::send(&args.addr, &transfer.settings, || match ends {
        Some(ends) => Ok(ends),
        None => pc_link::command(&mut command(&args.command)?, wait),
    });
    transfer.end(&result, Some(args.streams))?;
    finish(TOOL, "the other side", result, |outcome| whole(outcome, &args))
}

fn command(words: &[OsString]) -> Result<Command, LinkError> {
    let (program, args) = words.split_first().ok_or_else(|| LinkError::Usage("no command".into()))?;
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

/// Standard input and output, where no command is given.
fn own_ends(args: &Args) -> anyhow::Result<Option<Ends>> {
    if !args.command.is_empty() {
        return Ok(None);
    }
    let source = Some(input(TOOL)?);
    // As a rule nothing comes back; a terminal is no place for it if it does.
    let terminal = std::io::stdout().is_terminal();
    let sink = if terminal { None } else { Some(OwnedFd::from(pc_cli::output(TOOL)?)) };
    Ok(Some(Ends { source, sink, status: Box::new(|| Ok(0)) }))
}

/// Whether all arrived, and all that came back was written. A command knows that itself.
fn whole(outcome: Outcome, args: &Args) -> anyhow::Result<()> {
    match outcome.sink_failed {
        _ if !args.command.is_empty() => Ok(()),
        _ if outcome.stopped_by_peer => Err(anyhow!("the other side took only part of it")),
        Some(why) => Err(anyhow!("what came back could not be written: {why}")),
        None => Ok(()),
    }
}
