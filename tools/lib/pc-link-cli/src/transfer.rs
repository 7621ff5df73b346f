//! What surrounds a transfer: signals, progress, statistics, and this process's own input.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use pc_cli::signals::{self, Cancel};
use pc_cli::{Exit, Pending, Progress, WithExit as _};
use pc_link::{Failure, Figures, Key, Outcome, Settings};
use serde::Serialize;

use crate::LinkArgs;

/// Which bytes the progress shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those that go out.
    Sent,
    /// Those that come in.
    Received,
}

/// A transfer's surroundings, ready for it.
pub struct Transfer {
    /// For pc-link.
    pub settings: Settings,
    /// Where to talk.
    pub progress: Arc<Progress>,
    stats: Option<Pending>,
    /// Keeps the signals coming.
    _cancel: Cancel,
}

impl Transfer {
    /// Reads the key, takes signals over, and opens the file for statistics. `streams` is for the side that connects.
    ///
    /// # Errors
    /// A key that cannot be used ([`Exit::Usage`]), statistics that cannot be written.
    pub fn begin(
        tool: &'static str,
        args: &LinkArgs,
        streams: usize,
        shown: Direction,
    ) -> anyhow::Result<Self> {
        let cancel = signals::install().context("signals")?;
        let stats = args.common.stats.as_deref().map(Pending::create).transpose()?;
        let progress = Arc::new(Progress::new(tool, args.common.progress));
        let key = args.key_file.as_deref().map(Key::load).transpose().exit(Exit::Usage)?;
        let (says, shows) = (progress.clone(), progress.clone());
        let settings = Settings {
            key,
            plaintext: args.plaintext,
            streams,
            compress: args.compress,
            rate: args.rate,
            reconnect: args.reconnect,
            timeout: args.timeout,
            cancel: Some(Arc::new(cancel.as_fd().try_clone_to_owned().context("signals")?)),
            log: Arc::new(move |text| says.notice(text)),
            moved: Arc::new(move |sent, received| match shown {
                Direction::Sent => shows.moved(sent, None),
                Direction::Received => shows.moved(received, None),
            }),
        };
        Ok(Transfer { settings, progress, stats, _cancel: cancel })
    }

    /// Ends the progress and writes the statistics; `streams` where there is a choice of them.
    ///
    /// # Errors
    /// The statistics cannot be written.
    pub fn end(self, result: &Result<Outcome, Failure>, streams: Option<usize>) -> anyhow::Result<()> {
        self.progress.finish();
        let figures = match result {
            Ok(outcome) => outcome.figures,
            Err(failure) => failure.figures,
        };
        self.stats.map_or(Ok(()), |stats| stats.put_figures(&Stats::new(figures, streams)))
    }
}

/// Standard input as what is to be sent, no terminal, and taken from this process: so that whoever writes hears of it when no
/// more is read.
///
/// # Errors
/// A terminal ([`Exit::Usage`]).
pub fn input(tool: &str) -> anyhow::Result<OwnedFd> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let why =
            anyhow!("{tool} does not read a stream from a terminal; give it a file, a pipe or a command");
        return Err(why).exit(Exit::Usage);
    }
    let source = stdin.as_fd().try_clone_to_owned().context("standard input")?;
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(null).context("standard input")?;
    Ok(source)
}

#[derive(Serialize)]
struct Stats {
    bytes_sent: u64,
    bytes_received: u64,
    wire_bytes_sent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<usize>,
    reconnects: u64,
    elapsed_us: u64,
}

impl Stats {
    fn new(figures: Figures, streams: Option<usize>) -> Self {
        Stats {
            bytes_sent: figures.sent,
            bytes_received: figures.received,
            wire_bytes_sent: figures.wire_sent,
            streams,
            reconnects: figures.reconnects,
            elapsed_us: figures.elapsed.as_micros() as u64,
        }
    }
}
