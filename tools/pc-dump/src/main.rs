//! `pc-dump`: checkpoint a process to a stream.

#![forbid(unsafe_code)]

mod args;
mod check;
mod handover;
mod hooks;
mod oneway;
mod peer;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use pc_capture::{CaptureError, Frozen};
use pc_cli::{Exit, Pending, Progress, signals};

use args::{Args, Fate};
use hooks::Hooks;

const TOOL: &str = "pc-dump";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let mut called = std::env::args_os();
    if called.next().is_some_and(|name| name == pc_capture::GUARDIAN) {
        return guard(&called.filter_map(|arg| arg.into_string().ok()).collect::<Vec<_>>());
    }
    let args: Args = pc_cli::parse();
    let settings = args.settings();
    if let Some(resolve) = args.resolve {
        coded(pc_capture::resolve(args.pid, resolve.fate()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.check {
        return check::run(&args, &settings);
    }
    let cancel = signals::install().context("signals")?;
    let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
    let progress = Progress::new(TOOL, args.common.progress);
    let mut hooks = Hooks::prepare(&args)?;
    let dumped = match args.rounds().filter(|_| args.handover) {
        Some(rounds) => {
            let moved = handover::dump(&args, rounds, &settings, cancel.clone(), &progress, &mut hooks);
            moved.map(|moved| (moved.figures, Some((moved.pid, moved.times))))
        }
        None => pc_cli::output_until(TOOL, &cancel).and_then(|output| {
            Ok((oneway::dump(&args, &settings, output, &cancel, &progress, &mut hooks)?, None))
        }),
    };
    let hooks_time = hooks.time;
    hooks.end(&args, dumped.as_ref().err(), &cancel, &progress);
    let (figures, moved) = dumped?;
    progress.finish();
    if let Some(last) = figures.rounds.last() {
        progress.round(&report::round(last));
    }
    if let Some(table) = &figures.left_held {
        progress.notice(&format!(
            "packets of its connections are still held back, as they would reach this machine: pc-restore \
             --tcp-established lets them pass here, and so does: nft delete table inet {table}"
        ));
    }
    if let Some((pid, _)) = moved {
        let stood = pc_cli::show_duration(Duration::from_micros(figures.frozen_time));
        progress.line(&format!(
            "pid {} runs at the destination as pid {pid}, and stood still for {stood}",
            args.pid
        ));
    } else if args.fate() == Fate::Stopped {
        let pid = args.pid;
        progress.notice(&format!(
            "pid {pid} is left stopped: kill -CONT {pid} resumes it, kill -KILL {pid} ends it"
        ));
    }
    if let Some(file) = stats {
        let times = moved.map(|(_, times)| times);
        let put = file.put_figures(&report::Stats::new(&figures, hooks_time, times));
        put.with_context(|| format!("pid {} was captured, but", args.pid))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The small process beside pc-dump.
fn guard(args: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(text) = pc_capture::guard(args).context("the guardian")? {
        pc_cli::notice(TOOL, &text);
    }
    Ok(ExitCode::SUCCESS)
}

/// A random number that names the stream.
fn stream_id() -> anyhow::Result<[u8; 16]> {
    use std::io::Read as _;
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut id))
        .context("reading /dev/urandom")?;
    Ok(id)
}

/// How people go on with an original that was left stopped.
fn resolves(pid: i32) -> String {
    format!("pc-dump --resolve running {pid} resumes it, pc-dump --resolve gone {pid} ends it")
}

/// Lets go of an original that was given a stop because a copy may run. The error is the reason, and says too if its packets
/// cannot be held back meanwhile, or it has died.
fn leave_stopped(frozen: Frozen, error: anyhow::Error) -> anyhow::Error {
    let error = match frozen.let_go() {
        Ok(_) => error,
        Err(more) => error.context(pc_cli::in_a_line(&more)),
    };
    pc_cli::coded(error, Exit::InDoubt)
}

/// Gives an error of capture its exit code.
fn coded<T>(result: Result<T, CaptureError>) -> anyhow::Result<T> {
    result.map_err(with_code)
}

fn with_code(error: CaptureError) -> anyhow::Error {
    let exit = match error {
        CaptureError::Unsupported(_) => Exit::Unsupported,
        CaptureError::Cancelled(_) | CaptureError::TooBusy { .. } => Exit::Cancelled,
        _ => Exit::Failed,
    };
    pc_cli::coded(error.into(), exit)
}
