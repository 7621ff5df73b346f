//! One way: the stream goes to standard output, and nobody says what became of it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::Context as _;
use pc_capture::{CaptureError, Figures, Frozen, Guardian, RoundFigures, Settings};
use pc_cli::signals::Cancel;
use pc_cli::{Exit, Output, Progress, WithExit as _};
use pc_image::Writer;

use crate::args::{Args, Fate};
use crate::hooks::Hooks;
use crate::{coded, leave_stopped, report, resolves, stream_id};

/// From the preflight to what becomes of the original. Until Commit is written, any failure leaves it running.
pub fn dump(
    args: &Args,
    settings: &Settings,
    output: Output,
    cancel: &Cancel,
    progress: &Progress,
    hooks: &mut Hooks,
) -> anyhow::Result<Figures> {
    let gauge = output.as_fd().try_clone_to_owned().context("standard output")?;
    let mut watcher = Watcher { pid: settings.pid, progress, output: gauge, guardian: None, hooks };
    let mut writer = coded(Writer::new(output, stream_id()?).map_err(CaptureError::from))?;
    progress.line(&format!("capturing pid {}", settings.pid));
    let flag = cancel.flag();
    let frozen = match args.rounds() {
        Some(rounds) => pc_capture::dump(settings, rounds, &mut writer, &mut watcher, &flag),
        None => pc_capture::dump_once(settings, &mut writer, &mut watcher, &flag),
    };
    let mut guardian = watcher.guardian.take();
    drop(watcher);
    let mut frozen = coded(frozen)?;
    hooks.done(cancel)?;
    coded(frozen.last_signals(&mut writer))?;
    if args.fate() != Fate::Running {
        tell(&mut guardian, |guardian| guardian.stopping(frozen.was_stopped()))?;
        coded(frozen.set_stop())?;
    }
    hooks.committing(args)?;
    if args.fate() != Fate::Running {
        tell(&mut guardian, Guardian::committing)?;
    }
    coded(writer.commit().map_err(CaptureError::from))?;
    frozen.committed();
    let figures = match coded(writer.finish().map_err(CaptureError::from)) {
        Ok(output) => part(args, frozen, output, progress),
        Err(error) => in_doubt(args, frozen, error),
    };
    if let Some(mut guardian) = guardian {
        guardian.over();
    }
    figures
}

/// Tells the guardian, which is there as soon as the process was touched.
fn tell(
    guardian: &mut Option<Guardian>,
    what: impl FnOnce(&mut Guardian) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    guardian.as_mut().map_or(Ok(()), what).context("telling the guardian")
}

/// Commit is written and its End is not. A copy that did not wait for the End may run: the original may not, too.
fn in_doubt(args: &Args, frozen: Frozen, error: anyhow::Error) -> anyhow::Result<Figures> {
    if args.fate() == Fate::Running {
        return Err(error);
    }
    let pid = args.pid;
    let told = format!(
        "the stream is committed, but its end was not written: a copy may run, so pid {pid} is left stopped \
         ({})",
        resolves(pid)
    );
    Err(leave_stopped(frozen, error.context(told)))
}

/// Reports of the library go to people; it learns from here what waits in our pipe.
struct Watcher<'a> {
    pid: i32,
    progress: &'a Progress,
    output: OwnedFd,
    /// Started before the process is touched.
    guardian: Option<Guardian>,
    hooks: &'a mut Hooks,
}

impl pc_capture::Caller for Watcher<'_> {
    fn round(&mut self, figures: &RoundFigures) {
        self.progress.round(&report::round(figures));
    }

    fn frozen(&mut self) {
        self.hooks.frozen();
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

    fn holds(&mut self, held: bool) -> std::io::Result<()> {
        let guardian = match &mut self.guardian {
            Some(guardian) => guardian,
            none => none.insert(Guardian::start(self.pid, None)?),
        };
        if held { guardian.holding() } else { guardian.letting_go() }
    }
}

/// How long the end of a process that is ended is waited for. A gigabyte takes 37 to 107 ms.
const ITS_END: Duration = Duration::from_secs(30);

fn part(args: &Args, frozen: Frozen, output: Output, progress: &Progress) -> anyhow::Result<Figures> {
    // A copy may run by now: what goes wrong with the original leaves it stopped.
    let pid = args.pid;
    let stopped = || format!("the stream is written, and pid {pid} is left stopped ({})", resolves(pid));
    match args.fate() {
        // The reader's input ends once the output is closed.
        Fate::Running => {
            drop(output);
            coded(frozen.let_go())
        }
        Fate::Stopped => {
            drop(output);
            coded(frozen.let_go()).with_context(stopped).exit(Exit::InDoubt)
        }
        Fate::Killed => {
            if let Err(error) = output.sync().context("syncing the output") {
                return Err(leave_stopped(frozen, error.context(stopped())));
            }
            // Ended before the reader's input ends: what it holds (addresses, on the same machine) is free by then.
            let killed = coded(frozen.kill()).with_context(stopped).exit(Exit::InDoubt);
            drop(output);
            let (figures, ending) = killed?;
            // Who restores it next finds its number free, as far as that is ours to see to.
            if !ending.wait(ITS_END) {
                progress.notice(&format!("pid {pid} is still being ended"));
            }
            Ok(figures)
        }
    }
}
