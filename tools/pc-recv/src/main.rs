//! `pc-recv`: receive a stream from `pc-send`, over an authenticated link.

#![forbid(unsafe_code)]

mod args;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use pc_cli::{Exit, Progress, WithExit as _};
use pc_link::{Addr, Ends, Failure, Key, LinkError, Listener, MakeEnds, Outcome, Settings};
use pc_link_cli::{Direction, Transfer, exit_for, finish, input};

use args::Args;

const TOOL: &str = "pc-recv";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    if let Some(path) = &args.new_key {
        Key::create(path)?;
        return Ok(ExitCode::SUCCESS);
    }
    let addr = args.addr.as_ref().context("no address").exit(Exit::Usage)?;
    if args.serve.is_some() && args.link.common.stats.is_some() {
        return Err(anyhow!("--stats has the figures of one transfer, not of --serve")).exit(Exit::Usage);
    }
    let transfer = Transfer::begin(TOOL, &args.link, 1, Direction::Received)?;
    let make = make_ends(&args, transfer.settings.cancel.clone())?;
    let listener = listen(addr, &transfer.settings)?;
    transfer.progress.line(&format!("listening on {}", listener.local()));
    if let Some(most) = args.serve {
        return serve(listener, most, make, &transfer.progress);
    }
    let result = listener.take_one(make);
    transfer.end(&result, None)?;
    finish(TOOL, "the sender", result, |outcome| match outcome.sink_failed {
        // A command knows itself whether it has all it wants.
        Some(why) if args.command.is_empty() => Err(anyhow!("cannot write all that came: {why}")),
        _ => Ok(()),
    })
}

fn listen(addr: &Addr, settings: &Settings) -> anyhow::Result<Listener> {
    Listener::bind(addr, settings).or_else(|error| {
        let exit = exit_for(&error);
        Err(error).exit(exit)
    })
}

/// Serves until a signal comes, which is how a server ends.
fn serve(
    listener: Listener,
    most: usize,
    make: MakeEnds,
    progress: &Arc<Progress>,
) -> anyhow::Result<ExitCode> {
    let says = progress.clone();
    let ended = move |name: &str, result: &Result<Outcome, Failure>| match result {
        Ok(outcome) => says.line(&format!(
            "transfer {name}: {} received, {} sent; status {}, of the sender {}",
            pc_cli::show_size(outcome.figures.received),
            pc_cli::show_size(outcome.figures.sent),
            outcome.status,
            outcome.peer_status
        )),
        Err(failure) => {
            says.notice(&format!("transfer {name}: {}; status {}", failure.error, failure.status))
        }
    };
    listener.take_many(most, make, Arc::new(ended)).exit(Exit::Transport)?;
    Ok(ExitCode::SUCCESS)
}

/// A command for each transfer, or standard input and output for the only one.
fn make_ends(args: &Args, cancel: Option<Arc<OwnedFd>>) -> anyhow::Result<MakeEnds> {
    if let Some((program, rest)) = args.command.split_first() {
        let (program, rest): (OsString, Vec<OsString>) = (program.clone(), rest.to_vec());
        return Ok(Arc::new(move || pc_link::command(Command::new(&program).args(&rest), cancel.clone())));
    }
    let sink = OwnedFd::from(pc_cli::output(TOOL)?);
    let source = if args.two_way { Some(input(TOOL)?) } else { None };
    let ends = Ends { source, sink: Some(sink), status: Box::new(|| Ok(0)) };
    let once = Mutex::new(Some(ends));
    Ok(Arc::new(move || {
        let ends = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        ends.ok_or_else(|| LinkError::Usage("standard input and output are in use".into()))
    }))
}
