//! `pc-dump`: checkpoint a process to a stream.

#![forbid(unsafe_code)]

mod args;
mod handover;
mod peer;
mod report;

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use pc_capture::{CaptureError, Figures, Frozen, RoundFigures, Settings};
use pc_cli::{Exit, Output, Pending, Progress, WithExit as _, signals};
use pc_image::Writer;

use args::{Args, Fate};

const TOOL: &str = "pc-dump";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let mut called = std::env::args();
    if called.next().as_deref() == Some(pc_capture::GUARDIAN) {
        return guard(&called.collect::<Vec<_>>());
    }
    let args: Args = pc_cli::parse();
    let settings = args.settings();
    if let Some(resolve) = args.resolve {
        coded(pc_capture::resolve(args.pid, resolve.fate()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.check {
        coded(pc_capture::check(&settings))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = signals::install().context("signals")?;
    let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
    let progress = Progress::new(TOOL, args.common.progress);
    let (figures, moved) = match args.rounds().filter(|_| args.handover) {
        Some(rounds) => {
            let moved = handover::dump(&args, rounds, &settings, cancel, &progress)?;
            (moved.figures, Some((moved.pid, moved.times)))
        }
        None => {
            let output = pc_cli::output_until(TOOL, &cancel)?;
            (dump(&args, &settings, output, cancel.flag(), &progress)?, None)
        }
    };
    progress.finish();
    if let Some(last) = figures.rounds.last() {
        progress.round(&report::round(last));
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
    stats.map_or(Ok(()), |file| {
        file.put_figures(&report::Stats::new(&figures, moved.map(|(_, times)| times)))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The small process beside a hand-over.
fn guard(args: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(text) = pc_capture::guard(args).context("the guardian")? {
        pc_cli::notice(TOOL, &text);
    }
    Ok(ExitCode::SUCCESS)
}

/// From the preflight to what becomes of the original. Until Commit is written, any failure leaves it running.
fn dump(
    args: &Args,
    settings: &Settings,
    output: Output,
    cancel: Arc<AtomicBool>,
    progress: &Progress,
) -> anyhow::Result<Figures> {
    let gauge = output.as_fd().try_clone_to_owned().context("standard output")?;
    let mut watcher = Watcher { progress, output: gauge };
    let mut writer = coded(Writer::new(output, stream_id()?).map_err(CaptureError::from))?;
    progress.line(&format!("capturing pid {}", settings.pid));
    let frozen = match args.rounds() {
        Some(rounds) => pc_capture::dump(settings, rounds, &mut writer, &mut watcher, &cancel),
        None => pc_capture::dump_once(settings, &mut writer, &mut watcher, &cancel),
    };
    drop(watcher);
    let mut frozen = coded(frozen)?;
    coded(frozen.last_signals(&mut writer))?;
    if args.fate() != Fate::Running {
        coded(frozen.set_stop())?;
    }
    coded(writer.commit().map_err(CaptureError::from))?;
    frozen.committed();
    match coded(writer.finish().map_err(CaptureError::from)) {
        Ok(output) => part(args.fate(), frozen, output),
        Err(error) => in_doubt(args, frozen, error),
    }
}

/// Commit is written and its End is not. A copy that did not wait for the End may run: the original may not, too.
fn in_doubt(args: &Args, frozen: Frozen, error: anyhow::Error) -> anyhow::Result<Figures> {
    if args.fate() == Fate::Running {
        return Err(error);
    }
    coded(frozen.let_go())?;
    let pid = args.pid;
    let told = format!(
        "the stream is committed, but its end was not written: a copy may run, so pid {pid} is left stopped \
         (kill -CONT {pid} resumes it, kill -KILL {pid} ends it)"
    );
    Err(error).context(told).exit(Exit::InDoubt)
}

/// What the library tells goes to people; what waits in our pipe is told to the library.
struct Watcher<'a> {
    progress: &'a Progress,
    output: OwnedFd,
}

impl pc_capture::Caller for Watcher<'_> {
    fn round(&mut self, figures: &RoundFigures) {
        self.progress.round(&report::round(figures));
    }

    fn notice(&mut self, text: &str) {
        self.progress.notice(text);
    }

    fn queued(&mut self) -> u64 {
        pc_capture::queued(self.output.as_fd())
    }

    fn applied(&mut self, _: u32) -> Option<bool> {
        None
    }

    fn stopping(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn holds(&mut self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

fn part(fate: Fate, frozen: Frozen, output: Output) -> anyhow::Result<Figures> {
    match fate {
        // The reader's input ends once the output is closed.
        Fate::Running | Fate::Stopped => {
            drop(output);
            coded(frozen.let_go())
        }
        Fate::Killed => {
            output.sync().context("syncing the output")?;
            // Ended before the reader's input ends: what it holds (addresses, on the same machine) is free by then.
            let figures = coded(frozen.kill());
            drop(output);
            figures
        }
    }
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
