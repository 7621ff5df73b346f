//! What the caller decides, and what is reported to it.

use std::time::Duration;

use crate::figures::RoundFigures;

/// What to capture, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// The process, in the caller's pid namespace.
    pub pid: i32,
    /// Connected TCP sockets are not taken along: the copy finds them reset.
    pub tcp_close: bool,
    /// Connected TCP sockets are taken along; comes before `tcp_close`.
    pub tcp_established: bool,
    /// How the packets of those are held back.
    pub network_lock: NetworkLock,
    /// How the pages that were written are found, if there are rounds.
    pub track: Track,
    /// How long to wait for a moment without what passes by itself: a child, a lock, a temporary file. At least a moment,
    /// at the stop.
    pub retry: Duration,
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

/// How written pages are found (see `pc-track`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Track {
    /// userfaultfd, else soft-dirty bits, else hashing; said in a notice.
    #[default]
    Auto,
    /// userfaultfd in asynchronous write-protect mode (Linux 6.7).
    Uffd,
    /// soft-dirty bits, on kernels built with them.
    SoftDirty,
    /// Hashing every page.
    Hash,
}

/// When to stop the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds before the stop, at the most.
    pub most: u32,
    /// How long the process may stand still, as far as that can be foretold.
    pub downtime_limit: Duration,
    /// Give up rather than stop it for longer.
    pub require_downtime: bool,
}

impl Default for Rounds {
    /// 30 rounds, 100 milliseconds.
    fn default() -> Self {
        Self { most: 30, downtime_limit: Duration::from_millis(100), require_downtime: false }
    }
}

/// The caller, while a capture goes on.
pub trait Caller {
    /// A round is through.
    fn round(&mut self, figures: &RoundFigures);
    /// All threads stand still: what is left is sent, and they run on only if something fails.
    fn frozen(&mut self);
    /// Something that people should know.
    fn notice(&mut self, text: &str);
    /// Bytes that were put into the sink and wait on this machine, as far as the caller can tell (in a pipe, say).
    fn queued(&mut self) -> u64;
    /// Whether the destination says that it has applied a round, for which the caller waits a moment; `None` where nobody
    /// says so (one-way).
    fn applied(&mut self, round: u32) -> Option<bool>;
    /// The process is about to be stopped for good. An error, which is passed on, keeps it running.
    fn stopping(&mut self) -> std::io::Result<()>;
    /// The process is about to be held, for a moment or for the stop (an error keeps it running); or it goes on after
    /// being held for a moment.
    fn holds(&mut self, held: bool) -> std::io::Result<()>;
}
