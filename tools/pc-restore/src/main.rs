//! `pc-restore`: restore a process from a stream.

#![forbid(unsafe_code)]

mod args;
mod foreground;
mod handover;
mod hooks;
mod report;

use std::process::ExitCode;

use anyhow::Context as _;
use pc_cli::signals::{self, Cancel};
use pc_cli::{Exit, Pending, Progress, WithExit as _};
use pc_ctl::Why;
use pc_image::{Blame, ImageError, Reader};
use pc_rebuild::{RebuildError, Restored, Settings};

use args::Args;
use handover::HandOver;
use hooks::Hooks;

const TOOL: &str = "pc-restore";

fn main() -> ExitCode {
    pc_cli::main(TOOL, run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    args.judge().map_err(|why| pc_cli::coded(anyhow::anyhow!(why), Exit::Usage))?;
    let outcome = restore_and_follow(&args);
    // In the foreground every other status may be the program's own.
    if args.detach { outcome } else { outcome.exit(Exit::Own) }
}

fn restore_and_follow(args: &Args) -> anyhow::Result<ExitCode> {
    let cancel = signals::install().context("signals")?;
    let mut passed_on = signals::watch(foreground::PASSED_ON).context("signals")?;
    let pidfile = args.pidfile.as_deref().map(Pending::create).transpose()?;
    let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
    let progress = Progress::new(TOOL, args.common.progress);
    let mut hooks = Hooks::prepare(args)?;
    let restored = restore(args, &cancel, &progress, &hooks);
    let hooked = hooks.end(restored.as_ref().ok(), &cancel, &progress);
    let mut restored = restored?;
    progress.finish();
    restored.times.hooks += hooked.as_ref().copied().unwrap_or_default();
    // The process runs: from here on nothing is taken back, and what fails is said.
    let said = pidfile.map_or(Ok(()), |file| file.put(format!("{}\n", restored.pid).as_bytes()));
    let said = said.and(stats.map_or(Ok(()), |file| file.put_figures(&report::Stats::new(&restored))));
    let said = said.and(hooked.map(drop));
    progress.line(&report::line(&restored));
    if args.detach {
        said.with_context(|| format!("pid {} runs, but", restored.pid))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(error) = said {
        progress.notice(&pc_cli::chain(&error));
    }
    foreground::follow(&restored, &mut passed_on)
}

fn restore(args: &Args, cancel: &Cancel, progress: &Progress, hooks: &Hooks) -> anyhow::Result<Restored> {
    let mut settings = args.settings();
    if args.handover {
        return hand_over(args, settings, cancel, progress, hooks);
    }
    settings.cancel = Some(cancel.flag());
    settings.on_ready = hooks.on_ready(cancel);
    let input = pc_cli::input_until(TOOL, None, cancel)?;
    let mut reader = Reader::new(input);
    let restored =
        pc_rebuild::restore(&settings, &mut reader, &mut |text| progress.notice(text), &mut |_| Ok(()));
    restored.map_err(with_code)
}

/// The same, with reports to the source of how far we are.
fn hand_over(
    args: &Args,
    mut settings: Settings,
    cancel: &Cancel,
    progress: &Progress,
    hooks: &Hooks,
) -> anyhow::Result<Restored> {
    let hand_over = HandOver::begin(args, cancel)?;
    settings.cancel = Some(hand_over.pull().flag());
    settings.on_ready = hooks.on_ready(hand_over.pull());
    let input = pc_cli::input_within(TOOL, hand_over.pull(), args.timeout);
    let input = input.inspect_err(|error| hand_over.not_begun(error))?;
    let restored = hand_over.restore(&settings, Reader::new(input), &mut |text| progress.notice(text));
    if restored.is_ok() && !hand_over.was_told() {
        progress.notice("the copy runs, but the source could not be told: it is in doubt");
    }
    restored.map_err(|error| match hand_over.why() {
        Some(why @ Why::Lost(_)) if matches!(error, RebuildError::Interrupted) => {
            pc_cli::coded(why.into(), Exit::Transport)
        }
        _ => with_code(error),
    })
}

fn with_code(error: RebuildError) -> anyhow::Error {
    let exit = exit_for(&error);
    pc_cli::coded(error.into(), exit)
}

fn exit_for(error: &RebuildError) -> Exit {
    match error {
        RebuildError::Image(error) => exit_for_stream(error),
        RebuildError::NotCommitted => Exit::Truncated,
        RebuildError::Contradiction(_) => Exit::BadStream,
        RebuildError::Unsupported(_) | RebuildError::PidTaken { .. } => Exit::Unsupported,
        RebuildError::Cancelled(_) | RebuildError::Interrupted => Exit::Cancelled,
        _ => Exit::Failed,
    }
}

fn exit_for_stream(error: &ImageError) -> Exit {
    match error.blame() {
        Blame::Stream => Exit::BadStream,
        Blame::Truncated => Exit::Truncated,
        Blame::Unsupported => Exit::Unsupported,
        Blame::Channel | Blame::Caller => Exit::Failed,
    }
}
