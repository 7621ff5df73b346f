//! The commands of --on-frozen and --on-resumed.

use std::time::Duration;

use pc_cli::signals::Cancel;
use pc_cli::{Exit, Hook, Progress, Running, Undo};

use crate::args::{Args, Fate};

/// What waits to be run, and what runs.
#[derive(Debug, Default)]
pub struct Hooks {
    frozen: Option<Hook>,
    running: Option<anyhow::Result<Running>>,
    resumed: Option<Undo>,
    /// --on-resumed, once the shell that waited for it has been sent home.
    called_off: Option<String>,
    pid: i32,
    /// How long the commands have run while the process stood still.
    pub time: Duration,
}

impl Hooks {
    /// Starts the shells.
    pub fn prepare(args: &Args) -> anyhow::Result<Self> {
        let frozen = args.on_frozen.as_deref().map(|command| Hook::prepare("on-frozen", command));
        let resumed = args.on_resumed.as_deref().map(|command| Undo::prepare("on-resumed", command));
        Ok(Self {
            frozen: frozen.transpose()?,
            resumed: resumed.transpose()?,
            pid: args.pid,
            ..Self::default()
        })
    }

    /// The process stands still: what is to be done then begins, beside the rest of the work.
    pub fn frozen(&mut self) {
        let armed = self.resumed.as_mut().map_or(Ok(()), |resumed| resumed.arm(self.pid));
        self.running = self.frozen.take().map(|hook| armed.and_then(|()| hook.begin(self.pid)));
    }

    /// Waits until it is done.
    pub fn done(&mut self, cancel: &Cancel) -> anyhow::Result<()> {
        if let Some(running) = self.running.take() {
            self.time += running?.wait(cancel)?;
        }
        Ok(())
    }

    /// From here on a copy may run: if we are killed now, nothing is undone.
    pub fn committing(&mut self, args: &Args) -> anyhow::Result<()> {
        let Some(resumed) = self.resumed.take().filter(|_| args.handover || args.fate() != Fate::Running)
        else {
            return Ok(());
        };
        self.called_off.clone_from(&args.on_resumed);
        resumed.not_needed()
    }

    /// It is clear what becomes of the original. Where it runs on, what was done is undone, if anything was.
    pub fn end(mut self, args: &Args, failure: Option<&anyhow::Error>, cancel: &Cancel, progress: &Progress) {
        drop(self.running.take());
        let runs_on = match failure {
            None => !args.handover && args.fate() == Fate::Running,
            Some(error) => pc_cli::exit_of(error) != Exit::InDoubt,
        };
        let ended = match (self.resumed, self.called_off) {
            (Some(undo), _) if runs_on => undo.run().map(drop),
            (Some(undo), _) => undo.not_needed(),
            (None, Some(command)) if runs_on => {
                Hook::prepare("on-resumed", &command).and_then(|hook| hook.run(self.pid, cancel)).map(drop)
            }
            _ => Ok(()),
        };
        if let Err(error) = ended {
            progress.notice(&pc_cli::chain(&error));
        }
    }
}
