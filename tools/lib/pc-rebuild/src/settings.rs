//! What the caller decides.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::RebuildError;
use crate::namespace::Joins;

/// What an external descriptor becomes.
#[derive(Debug, Clone)]
pub enum Attach {
    /// A file that is opened.
    Path(PathBuf),
    /// A descriptor of ours.
    Fd(Arc<OwnedFd>),
    /// /dev/null.
    Null,
}

impl Attach {
    /// A descriptor of ours by its number.
    pub fn of_number(number: i32) -> io::Result<Self> {
        Ok(Self::Fd(Arc::new(pc_sys::fcntl::duplicate(number)?)))
    }
}

/// Takes lines for people.
pub type Notices<'a> = &'a mut dyn FnMut(&str);

/// How far a restore has come, reported to a caller that hands it on to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What the skeleton needs is there: the source may stop the process.
    Judged,
    /// A round was applied.
    Round(u32),
    /// All is built; Commit is awaited.
    Built,
    /// Commit was read: the process is let go unless the caller objects.
    Committed,
}

/// Hears of stages. An error ends the restore, and nothing is left of it.
pub type Stages<'a> = &'a mut dyn FnMut(Stage) -> Result<(), RebuildError>;

/// How a process is to be restored.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The process lives on without us, in a session of its own.
    pub detach: bool,
    /// In a pid namespace of its own, with a small init of ours.
    pub new_pid_ns: bool,
    /// Keep everything and build only when the stream is complete.
    pub no_pipeline: bool,
    /// Only keep the pages of the rounds before this one.
    pub start_round: u32,
    /// Let the process run at Commit, not only at the end of input.
    pub run_at_commit: bool,
    /// The source waits until all is built before it commits: build it as soon as all is known, and let it run at Commit.
    pub handover: bool,
    /// Leave the process stopped (SIGSTOP), before its first instruction.
    pub leave_stopped: bool,
    /// TCP connections go on.
    pub tcp_established: bool,
    /// TCP connections are found reset by the process; `tcp_established` comes before.
    pub tcp_close: bool,
    /// How the packets of those that go on are held back until they do.
    pub network_lock: NetworkLock,
    /// Addresses need not be this machine's before the process is about to run.
    pub late_addresses: bool,
    /// Called when everything is built, right before the process runs.
    pub on_ready: Option<OnReady>,
    /// What externals become, by their ids.
    pub attach: BTreeMap<String, Attach>,
    /// The namespaces that it is to have, where these are not those of its birth here.
    pub join: Joins,
    /// The cgroups that it is to be in.
    pub cgroups: Cgroups,
    /// Set from a signal handler: give up.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// The cgroups of the copy.
#[derive(Debug, Clone, Default)]
pub enum Cgroups {
    /// Ours.
    #[default]
    None,
    /// Those with the same paths here, which have to be there.
    Keep,
    /// These, by their folders; ours in other hierarchies.
    At(Vec<PathBuf>),
}

/// How packets of TCP connections are held back while they move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkLock {
    /// By rules of nf_tables.
    #[default]
    Nftables,
    /// Not at all: the caller sees to it.
    Skip,
}

/// Something to be done with the pid of the process; an error, which is for people, makes the restore fail.
#[derive(Clone)]
pub struct OnReady(pub Arc<dyn Fn(i32) -> Result<(), String> + Send + Sync>);

impl fmt::Debug for OnReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnReady")
    }
}

impl Settings {
    /// Fails if the caller asked to stop.
    pub(crate) fn check_cancel(&self) -> Result<(), RebuildError> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(RebuildError::Interrupted),
            _ => Ok(()),
        }
    }
}
