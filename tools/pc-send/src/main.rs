//! `pc-send`: send a stream to `pc-recv`, over an authenticated link.

#![forbid(unsafe_code)]

mod args;

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use pc_cli::signals::{self, Cancel};
use pc_cli::{Exit, Pending, Progress, WithExit as _};
use pc_link::{Ends, Failure, Key, LinkError, Outcome, Settings};
use serde::Serialize;

use args::Args;

const TOOL: &str = "pc-send";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    let cancel = signals::install().context("signals")?;
    let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
    let progress = Arc::new(Progress::new(TOOL, args.common.progress));
    let settings = settings(&args, &cancel, &progress)?;
    let wait = settings.cancel.clone();
    let ends = own_ends(&args)?;
    let result = pc_link::send(&args.addr, &settings, || match ends {
        Some(ends) => Ok(ends),
        None => pc_link::command(command(&args.command).as_mut().ok_or_else(no_command)?, wait),
    });
    progress.finish();
    if let Some(stats) = stats {
        stats.put_figures(&Stats::new(&result, args.streams))?;
    }
    finish(result, &args)
}

fn no_command() -> LinkError {
    LinkError::Usage("no command".into())
}

fn command(words: &[std::ffi::OsString]) -> Option<Command> {
    let (program, args) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(args);
    Some(command)
}

fn settings(args: &Args, cancel: &Cancel, progress: &Arc<Progress>) -> anyhow::Result<Settings> {
    let key = args.key_file.as_deref().map(Key::load).transpose().exit(Exit::Usage)?;
    let (says, shows) = (progress.clone(), progress.clone());
    Ok(Settings {
        key,
        plaintext: args.plaintext,
        streams: args.streams,
        compress: args.compress,
        rate: args.rate,
        reconnect: args.reconnect,
        timeout: args.timeout,
        cancel: Some(Arc::new(cancel.as_fd().try_clone_to_owned().context("signals")?)),
        log: Arc::new(move |text| says.notice(text)),
        moved: Arc::new(move |sent, _| shows.moved(sent, None)),
    })
}

/// Standard input and output, where no command is given.
fn own_ends(args: &Args) -> anyhow::Result<Option<Ends>> {
    if !args.command.is_empty() {
        return Ok(None);
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let why =
            anyhow!("{TOOL} does not read a stream from a terminal; give it a file, a pipe or a command");
        return Err(why).exit(Exit::Usage);
    }
    let source = stdin.as_fd().try_clone_to_owned().context("standard input")?;
    // So that whoever writes hears of it when no more is read.
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(null).context("standard input")?;
    // As a rule nothing comes back; a terminal is no place for it if it does.
    let terminal = std::io::stdout().is_terminal();
    let sink = if terminal { None } else { Some(OwnedFd::from(pc_cli::output(TOOL)?)) };
    Ok(Some(Ends { source: Some(source), sink, status: Box::new(|| Ok(0)) }))
}

fn finish(result: Result<Outcome, Failure>, args: &Args) -> anyhow::Result<ExitCode> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(failure) => return fail(failure),
    };
    if outcome.status != 0 {
        return Ok(ExitCode::from(outcome.status));
    }
    if outcome.peer_status != 0 {
        pc_cli::notice(TOOL, &format!("at the other side it ended with status {}", outcome.peer_status));
        return Ok(ExitCode::from(outcome.peer_status));
    }
    if args.command.is_empty() {
        if outcome.stopped_by_peer {
            return Err(anyhow!("the other side took only part of it"));
        }
        if let Some(why) = outcome.sink_failed {
            return Err(anyhow!("what came back could not be written: {why}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The status of a command says more than that the link is gone.
fn fail(failure: Failure) -> anyhow::Result<ExitCode> {
    if failure.status != 0 {
        pc_cli::notice(TOOL, &failure.error.to_string());
        return Ok(ExitCode::from(failure.status));
    }
    let exit = exit_for(&failure.error);
    Err(failure.error).exit(exit)
}

fn exit_for(error: &LinkError) -> Exit {
    match error {
        LinkError::Usage(_) | LinkError::Key { .. } => Exit::Usage,
        LinkError::Cancelled => Exit::Cancelled,
        error if error.is_transport() => Exit::Transport,
        _ => Exit::Failed,
    }
}

#[derive(Serialize)]
struct Stats {
    bytes_sent: u64,
    bytes_received: u64,
    wire_bytes_sent: u64,
    streams: usize,
    reconnects: u64,
    elapsed_us: u64,
}

impl Stats {
    fn new(result: &Result<Outcome, Failure>, streams: usize) -> Self {
        let figures = match result {
            Ok(outcome) => outcome.figures,
            Err(failure) => failure.figures,
        };
        Stats {
            bytes_sent: figures.sent,
            bytes_received: figures.received,
            wire_bytes_sent: figures.wire_sent,
            streams,
            reconnects: figures.reconnects,
            elapsed_us: figures.elapsed.as_micros() as u64,
        }
    }
}
