//! `pc-dump`: checkpoint a process to a stream.

#![forbid(unsafe_code)]

mod args;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use pc_capture::{CaptureError, Figures, Frozen, Settings};
use pc_cli::{Exit, Output, Progress, WithExit as _, signals};
use pc_image::Writer;

use args::{Args, Fate};

const TOOL: &str = "pc-dump";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    let settings = Settings { pid: args.pid, tcp_close: args.tcp_close };
    if args.check {
        coded(pc_capture::check(&settings))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = signals::install().context("signals")?;
    let output = pc_cli::output_until(TOOL, &cancel)?;
    let progress = Progress::new(TOOL, args.common.progress);
    let figures = dump(&args, &settings, output, cancel.flag(), &progress)?;
    progress.finish();
    for round in &figures.rounds {
        progress.round(&report::round(round));
    }
    if args.fate() == Fate::Stopped {
        let pid = args.pid;
        progress.notice(&format!(
            "pid {pid} is left stopped: kill -CONT {pid} resumes it, kill -KILL {pid} ends it"
        ));
    }
    if let Some(path) = &args.common.stats {
        pc_cli::write_stats(path, &report::Stats::new(&figures))?;
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
    let mut writer = coded(Writer::new(output, stream_id()?).map_err(CaptureError::from))?;
    progress.line(&format!("capturing pid {}", settings.pid));
    let mut frozen = coded(pc_capture::dump_once(settings, &mut writer, &cancel))?;
    coded(frozen.last_signals(&mut writer))?;
    if args.fate() != Fate::Running {
        coded(frozen.set_stop())?;
    }
    coded(writer.commit().map_err(CaptureError::from))?;
    let output = coded(writer.finish().map_err(CaptureError::from))?;
    frozen.committed();
    part(args.fate(), frozen, output)
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
            drop(output);
            coded(frozen.kill())
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
    match result {
        Ok(done) => Ok(done),
        Err(error) => {
            let exit = match error {
                CaptureError::Unsupported(_) => Exit::Unsupported,
                CaptureError::Cancelled(_) => Exit::Cancelled,
                _ => Exit::Failed,
            };
            Err(error).exit(exit)
        }
    }
}
