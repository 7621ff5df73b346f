//! The commands of --on-ready, --on-failed and --on-running.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pc_cli::signals::Cancel;
use pc_cli::{Hook, Progress, Undo};
use pc_rebuild::{OnReady, Restored};

use crate::args::Args;

/// What waits to be run.
#[derive(Debug)]
pub struct Hooks {
    ready: Arc<Mutex<Ready>>,
    wants_ready: bool,
    running: Option<Hook>,
}

#[derive(Debug)]
struct Ready {
    ready: Option<Hook>,
    failed: Option<Undo>,
}

impl Ready {
    fn run(&mut self, pid: i32, cancel: &Cancel) -> anyhow::Result<Duration> {
        if let Some(failed) = &mut self.failed {
            failed.arm(pid)?;
        }
        self.ready.take().map_or(Ok(Duration::ZERO), |hook| hook.run(pid, cancel))
    }
}

impl Hooks {
    /// Starts the shells.
    pub fn prepare(args: &Args) -> anyhow::Result<Self> {
        let prepare = |name, command: &Option<String>| {
            command.as_deref().map(|command| Hook::prepare(name, command)).transpose()
        };
        let failed = args.on_failed.as_deref().map(|command| Undo::prepare("on-failed", command));
        let ready = Ready { ready: prepare("on-ready", &args.on_ready)?, failed: failed.transpose()? };
        let running = prepare("on-running", &args.on_running)?;
        Ok(Self { ready: Arc::new(Mutex::new(ready)), wants_ready: args.on_ready.is_some(), running })
    }

    /// What is to be done when everything is built.
    pub fn on_ready(&self, cancel: &Cancel) -> Option<OnReady> {
        let (ready, cancel) = (self.ready.clone(), cancel.clone());
        self.wants_ready.then(|| {
            OnReady(Arc::new(move |pid| {
                lock(&ready).run(pid, &cancel).map(drop).map_err(|error| pc_cli::chain(&error))
            }))
        })
    }

    /// The process runs, or nothing does. Gives how long the command for the former took.
    pub fn end(
        &mut self,
        restored: Option<&Restored>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> anyhow::Result<Duration> {
        let failed = lock(&self.ready).failed.take();
        let undone = match (failed, restored) {
            (Some(undo), Some(_)) => undo.not_needed(),
            (Some(undo), None) => undo.run().map(drop),
            _ => Ok(()),
        };
        if let Err(error) = undone {
            progress.notice(&pc_cli::chain(&error));
        }
        match (self.running.take(), restored) {
            (Some(hook), Some(restored)) => hook.run(restored.pid, cancel),
            _ => Ok(Duration::ZERO),
        }
    }
}

fn lock(ready: &Mutex<Ready>) -> MutexGuard<'_, Ready> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}
