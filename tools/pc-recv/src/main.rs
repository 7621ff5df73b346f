//! `pc-recv`: receive a stream from `pc-send`, over an authenticated link.

#![forbid(unsafe_code)]

mod args;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use pc_cli::signals::{self, Cancel};
use pc_cli::{Exit, Pending, Progress, WithExit as _};
use pc_link::{Addr, Ends, Failure, Key, LinkError, Listener, MakeEnds, Outcome, Settings};
use serde::Serialize;

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
    if args.serve.is_some() && args.common.stats.is_some() {
        return Err(anyhow!("--stats has the figures of one transfer, not of --serve")).exit(Exit::Usage);
    }
    let cancel = signals::install().context("signals")?;
    let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
    let progress = Arc::new(Progress::new(TOOL, args.common.progress));
    let settings = settings(&args, &cancel, &progress)?;
    let make = make_ends(&args, settings.cancel.clone())?;
    let listener = listen(addr, &settings)?;
    progress.line(&format!("listening on {}", listener.local()));
    if let Some(most) = args.serve {
        return serve(listener, most, make, &progress);
    }
    let result = listener.take_one(make);
    progress.finish();
    if let Some(stats) = stats {
        stats.put_figures(&Stats::new(&result))?;
    }
    finish(result, &args)
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

fn settings(args: &Args, cancel: &Cancel, progress: &Arc<Progress>) -> anyhow::Result<Settings> {
    let key = args.key_file.as_deref().map(Key::load).transpose().exit(Exit::Usage)?;
    let (says, shows) = (progress.clone(), progress.clone());
    Ok(Settings {
        key,
        plaintext: args.plaintext,
        streams: 1,
        compress: args.compress,
        rate: args.rate,
        reconnect: args.reconnect,
        timeout: args.timeout,
        cancel: Some(Arc::new(cancel.as_fd().try_clone_to_owned().context("signals")?)),
        log: Arc::new(move |text| says.notice(text)),
        moved: Arc::new(move |_, received| shows.moved(received, None)),
    })
}

/// A command for each transfer, or standard input and output for the only one.
fn make_ends(args: &Args, cancel: Option<Arc<OwnedFd>>) -> anyhow::Result<MakeEnds> {
    if let Some((program, rest)) = args.command.split_first() {
        let (program, rest): (OsString, Vec<OsString>) = (program.clone(), rest.to_vec());
        return Ok(Arc::new(move || pc_link::command(Command::new(&program).args(&rest), cancel.clone())));
    }
    let sink = OwnedFd::from(pc_cli::output(TOOL)?);
    let source = if args.two_way { Some(input()?) } else { None };
    let ends = Ends { source, sink: Some(sink), status: Box::new(|| Ok(0)) };
    let once = Mutex::new(Some(ends));
    Ok(Arc::new(move || {
        let ends = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        ends.ok_or_else(|| LinkError::Usage("standard input and output are in use".into()))
    }))
}

fn input() -> anyhow::Result<OwnedFd> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(anyhow!("{TOOL} does not read a stream from a terminal; give it a file or a pipe"))
            .exit(Exit::Usage);
    }
    let source = stdin.as_fd().try_clone_to_owned().context("standard input")?;
    // So that whoever writes hears of it when no more is read.
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(null).context("standard input")?;
    Ok(source)
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
        pc_cli::notice(TOOL, &format!("at the sender it ended with status {}", outcome.peer_status));
        return Ok(ExitCode::from(outcome.peer_status));
    }
    if args.command.is_empty()
        && let Some(why) = outcome.sink_failed
    {
        return Err(anyhow!("cannot write all that came: {why}"));
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
    reconnects: u64,
    elapsed_us: u64,
}

impl Stats {
    fn new(result: &Result<Outcome, Failure>) -> Self {
        let figures = match result {
            Ok(outcome) => outcome.figures,
            Err(failure) => failure.figures,
        };
        Stats {
            bytes_sent: figures.sent,
            bytes_received: figures.received,
            wire_bytes_sent: figures.wire_sent,
            reconnects: figures.reconnects,
            elapsed_us: figures.elapsed.as_micros() as u64,
        }
    }
}
