//! The source's end of a hand-over: carries out what the machine of pc-ctl wants done.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use pc_capture::{CaptureError, Figures, Frozen, Guardian, RoundFigures, Rounds, Settings};
use pc_cli::signals::Cancel;
use pc_cli::{Exit, Output, Progress, WithExit as _};
use pc_ctl::{SourceAction, SourceEvent, SourceOutcome, Why};
use pc_image::{Sink as _, Writer};

use crate::args::Args;
use crate::hooks::Hooks;
use crate::peer::{Peer, exit_for};
use crate::{TOOL, coded, leave_stopped, report, resolves, stream_id};

/// What the guardian gives us beyond the time that the original may be frozen.
const GRACE: Duration = Duration::from_secs(1);
/// How long a stream that cannot be written any more waits for the reason, which comes the other way.
const REASON: Duration = Duration::from_secs(1);
/// How long Cancel may take to be written.
const CANCEL: Duration = Duration::from_secs(1);
/// How long the destination is heard out once its copy runs.
const LAST_WORD: Duration = Duration::from_secs(1);
/// A moment, for a round to be applied.
const MOMENT: Duration = Duration::from_millis(50);

/// Moves the process to the destination that answers on standard input. Until Commit is sent, whatever happens leaves the
/// original running.
pub fn dump(
    args: &Args,
    rounds: Rounds,
    settings: &Settings,
    signals: Cancel,
    progress: &Progress,
    hooks: &mut Hooks,
) -> anyhow::Result<Moved> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let why = anyhow!("with --handover the destination answers on standard input, which is a terminal");
        return Err(why).exit(Exit::Usage);
    }
    let input = stdin.as_fd().try_clone_to_owned().context("standard input")?.into();
    let stream_id = stream_id()?;
    let peer = Peer::listen(input, stream_id, args.timeout, signals).context("the hand-over")?;
    let output = pc_cli::output_until(TOOL, peer.pull())?;
    let writer = coded(Writer::new(output, stream_id).map_err(CaptureError::from))?;
    let guardian = Guardian::start(settings.pid, Some(args.freeze_timeout + GRACE));
    let mut source = Source {
        pid: settings.pid,
        freeze_timeout: args.freeze_timeout,
        peer,
        guardian: guardian.context("starting the guardian")?,
        held: Held { frozen: None, committed: false },
        writer: Some(writer),
        failure: None,
        figures: None,
        times: Times::default(),
        lap: Instant::now(),
        progress,
        args,
        hooks,
    };
    source.capture(settings, rounds);
    source.carry_out()
}

/// A move that has taken place.
pub struct Moved {
    pub figures: Figures,
    pub times: Times,
    /// The copy's number at the destination.
    pub pid: u32,
}

/// Where the time of the stop went, beyond what was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Times {
    /// From all being sent to Ready.
    ready: u64,
    /// The last looks, until Commit was written.
    commit: u64,
    /// From then to Running.
    running: u64,
}

struct Source<'a> {
    pid: i32,
    freeze_timeout: Duration,
    peer: Peer,
    guardian: Guardian,
    held: Held,
    /// Until a write has failed, or the stream is at its end.
    writer: Option<Writer<Output>>,
    /// What failed here, with its exit code.
    failure: Option<CaptureError>,
    figures: Option<Figures>,
    times: Times,
    lap: Instant,
    progress: &'a Progress,
    args: &'a Args,
    hooks: &'a mut Hooks,
}

/// The frozen original. Once Commit may have been sent, not even a panic lets it run.
struct Held {
    frozen: Option<Frozen>,
    committed: bool,
}

impl Held {
    fn get(&mut self) -> Result<&mut Frozen, CaptureError> {
        self.frozen.as_mut().ok_or(CaptureError::Cancelled(0))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(frozen), true) = (self.frozen.take(), self.committed) {
            // It has been given a stop that outlives us.
            let _ = frozen.let_go();
        }
    }
}

impl Source<'_> {
    /// From the preflight to a frozen original with all sent but Commit.
    fn capture(&mut self, settings: &Settings, rounds: Rounds) {
        let Some(mut writer) = self.writer.take() else { return };
        self.progress.line(&format!("capturing pid {}", self.pid));
        let cancel = self.peer.pull().flag();
        let mut watcher = Watcher {
            progress: self.progress,
            peer: &self.peer,
            guardian: &mut self.guardian,
            freeze_timeout: self.freeze_timeout,
            hooks: self.hooks,
        };
        let frozen = pc_capture::dump(settings, rounds, &mut writer, &mut watcher, &cancel);
        let sent = frozen.and_then(|frozen| {
            self.held.frozen = Some(frozen);
            writer.flush()?;
            self.hooks.done(self.peer.pull()).map_err(|error| self.hook_failed(&error))
        });
        self.lap = Instant::now();
        match sent {
            Ok(()) => {
                self.writer = Some(writer);
                self.peer.feed(SourceEvent::FinalWritten);
            }
            Err(error) => {
                self.writer = Some(writer);
                self.failed(error);
            }
        }
    }

    /// Tells the machine of a failure here.
    fn failed(&mut self, error: CaptureError) {
        let text = pc_cli::in_a_line(&error);
        if self.held.frozen.is_none() {
            self.guardian.letting_go().unwrap_or_default(); // it runs, with or without a guardian
        }
        match &error {
            CaptureError::Cancelled(_) => self.peer.feed(SourceEvent::Interrupted),
            CaptureError::Write(_) => {
                self.writer = None;
                // Before Commit, nothing keeps the original from running meanwhile.
                self.resume();
                self.peer.settle(REASON);
                self.peer.feed(SourceEvent::WriteFailed(text));
            }
            _ => self.peer.feed(SourceEvent::Failed(text)),
        }
        self.failure = Some(error);
    }

    fn carry_out(mut self) -> anyhow::Result<Moved> {
        loop {
            match self.peer.next_action() {
                SourceAction::Freeze | SourceAction::SendFinal => {} // the work of capture
                SourceAction::Prepare => match self.prepare() {
                    Ok(()) => self.peer.feed(SourceEvent::Prepared),
                    Err(error) => self.failed(error),
                },
                SourceAction::SendCommit => self.send_commit(),
                SourceAction::SendCancel(why) => self.send_cancel(&why),
                SourceAction::Resume => self.resume(),
                SourceAction::EndOriginal => self.end_original(),
                SourceAction::Finish(outcome) => return self.finish(outcome),
            }
        }
    }

    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.lap, now)).as_micros() as u64
    }

    /// The last looks, and the stop that outlives us.
    fn prepare(&mut self) -> Result<(), CaptureError> {
        self.times.ready = self.lap();
        let frozen = self.held.get()?;
        if let Some(writer) = &mut self.writer {
            frozen.last_signals(writer)?;
        }
        let pid = self.pid;
        let lost = |source| CaptureError::Kernel { pid, what: "telling the guardian".into(), source };
        self.guardian.stopping(frozen.was_stopped()).map_err(lost)?;
        frozen.set_stop()?;
        self.guardian.committing().map_err(lost)?;
        self.hooks.committing(self.args).map_err(|error| self.hook_failed(&error))
    }

    fn hook_failed(&self, error: &anyhow::Error) -> CaptureError {
        if pc_cli::exit_of(error) == Exit::Cancelled {
            return CaptureError::Cancelled(self.pid);
        }
        CaptureError::Refused { pid: self.pid, why: pc_cli::chain(error) }
    }

    fn send_commit(&mut self) {
        self.held.committed = true;
        let Some(mut writer) = self.writer.take() else { return };
        let sent = writer.commit().and_then(|()| writer.end());
        if let Some(frozen) = &mut self.held.frozen {
            frozen.committed();
        }
        self.times.commit = self.lap();
        match sent {
            // Until Running is heard the stream stays open: some that pass it on end soon after it.
            Ok(()) => self.writer = Some(writer),
            // All of it may have gone out all the same.
            Err(error) => self.peer.feed(SourceEvent::WriteFailed(error.to_string())),
        }
    }

    fn send_cancel(&mut self, why: &Why) {
        let Some(mut writer) = self.writer.take() else { return };
        writer.get_mut().give_up_at(Instant::now() + CANCEL);
        // The destination gives up in any case when the stream ends.
        let _ = writer.cancel(&why.to_string());
    }

    fn resume(&mut self) {
        self.held.committed = false;
        self.held.frozen = None;
        self.guardian.over();
    }

    fn end_original(&mut self) {
        self.times.running = self.lap();
        let Some(mut frozen) = self.held.frozen.take() else { return };
        frozen.taken_over();
        match frozen.kill() {
            Ok((figures, _)) => self.figures = Some(figures),
            Err(error) => self.failure = Some(error),
        }
        self.guardian.over();
    }

    fn finish(mut self, outcome: SourceOutcome) -> anyhow::Result<Moved> {
        let pid = self.pid;
        match outcome {
            SourceOutcome::Moved { pid: there } => {
                self.writer = None; // the stream is at its end
                self.peer.hear_out(LAST_WORD);
                let failure = self.failure.take().unwrap_or(CaptureError::Died(pid));
                let figures = self.figures.take().ok_or(failure);
                let stopped = || {
                    let resolves = resolves(pid);
                    format!("the copy runs as pid {there}, and pid {pid} is left stopped ({resolves})")
                };
                let figures = coded(figures).with_context(stopped).exit(Exit::InDoubt)?;
                Ok(Moved { figures, times: self.times, pid: there })
            }
            SourceOutcome::Kept(why) => Err(self.kept(why)),
            SourceOutcome::InDoubt(why) => {
                let error = anyhow!(why).context(in_doubt(pid));
                match self.held.frozen.take() {
                    Some(frozen) => Err(leave_stopped(frozen, error)),
                    None => Err(error).exit(Exit::InDoubt),
                }
            }
        }
    }

    /// The original runs. Of what failed here, the error itself says most.
    fn kept(&mut self, why: Why) -> anyhow::Error {
        let exit = exit_for(&why);
        if let (Why::Failed(_), Some(error)) = (&why, self.failure.take()) {
            return crate::with_code(error);
        }
        let told = anyhow::Error::new(why).context(format!("pid {} runs on", self.pid));
        pc_cli::coded(told, exit)
    }
}

fn in_doubt(pid: i32) -> String {
    format!(
        "in doubt: Commit was sent and no answer came, so pid {pid} is left stopped. If the copy runs: \
         pc-dump --resolve gone {pid}; if none does and none will: pc-dump --resolve running {pid}"
    )
}

/// Between capture and the machine.
struct Watcher<'a> {
    progress: &'a Progress,
    peer: &'a Peer,
    guardian: &'a mut Guardian,
    freeze_timeout: Duration,
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
        0 // that a round was applied says more
    }

    fn applied(&mut self, round: u32) -> Option<bool> {
        Some(self.peer.has_applied(round, MOMENT))
    }

    fn stopping(&mut self) -> std::io::Result<()> {
        match self.peer.ask_to_stop(self.freeze_timeout) {
            true => Ok(()),
            false => Err(std::io::Error::other("the destination has not accepted")),
        }
    }

    fn holds(&mut self, held: bool) -> std::io::Result<()> {
        if held { self.guardian.holding() } else { self.guardian.letting_go() }
    }
}
