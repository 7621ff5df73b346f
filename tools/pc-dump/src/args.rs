//! The command line of pc-dump.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use pc_capture::{Rounds, Settings};
use pc_cli::CommonArgs;

/// Writes a checkpoint of a running process to standard output.
///
/// The stream goes to a file or a pipe: `pc-dump 1234 > image.pcs`, `pc-dump 1234 | ssh host pc-restore`. The memory is
/// sent in rounds while the process runs; it is stopped only when little is left. What cannot be moved is
/// refused by name, most of it before the process is touched. Afterwards the original is left stopped unless told otherwise; if anything fails it runs on as before.
#[derive(Debug, Parser)]
#[command(name = "pc-dump", version, max_term_width = 100)]
pub struct Args {
    /// The process to capture
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,

    /// Stop the process and copy it, without sending memory ahead while it runs
    #[arg(long, conflicts_with_all = ["rounds", "downtime_limit", "require_downtime", "track"])]
    pub once: bool,

    /// Send memory in N rounds at the most before the process is stopped
    #[arg(long, value_name = "N", default_value_t = Rounds::default().most, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Stop the process once what is left can be sent in DUR (such as 100ms)
    #[arg(long, value_name = "DUR", default_value = "100ms", value_parser = pc_cli::parse_duration)]
    pub downtime_limit: Duration,

    /// Give up, and let the original run on, rather than stop it for longer than the limit
    #[arg(long)]
    pub require_downtime: bool,

    /// How written pages are found
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub track: Track,

    /// Let the original run on afterwards
    #[arg(long, group = "fate")]
    pub leave_running: bool,

    /// Leave the original stopped afterwards (this is the default)
    #[arg(long, group = "fate")]
    pub leave_stopped: bool,

    /// End the original once the stream is written (and on disk, if it goes to a file)
    #[arg(long, group = "fate")]
    pub kill: bool,

    /// Only say whether the process can be moved, and what to know, and end
    #[arg(long, conflicts_with = "handover")]
    pub check: bool,

    /// With --check: say it as JSON
    #[arg(long, requires = "check")]
    pub json: bool,

    /// Move the process to a pc-restore --handover whose answers come on standard input: the original is ended once the
    /// copy runs, and runs on if none will
    #[arg(long, conflicts_with_all = ["once", "fate"])]
    pub handover: bool,

    /// With --handover: take the destination for gone after so much silence
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = pc_cli::parse_timeout, requires = "handover")]
    pub timeout: Duration,

    /// With --handover: let the original run on if it has been stopped for so long and the destination is not ready
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = pc_cli::parse_duration, requires = "handover")]
    pub freeze_timeout: Duration,

    /// Capture nothing: let an original that was left stopped run on, or end it as its copy runs
    #[arg(long, value_name = "HOW", value_enum, conflicts_with_all = ["handover", "once", "fate", "check", "rounds",
        "downtime_limit", "require_downtime", "track", "tcp_close", "tcp_established", "on_frozen", "retry"])]
    pub resolve: Option<Resolve>,

    /// Take established TCP connections along; their packets are held back meanwhile
    #[arg(long, conflicts_with = "tcp_close")]
    pub tcp_established: bool,

    /// Capture connected TCP sockets too; the copy finds them closed by the other side
    #[arg(long)]
    pub tcp_close: bool,

    /// How packets are held back while connections move
    #[arg(long, value_name = "HOW", value_enum, default_value_t, requires = "tcp_established")]
    pub network_lock: NetworkLock,

    /// Where a child, a lock or a temporary file is in the way, wait for a moment without it for DUR at the most
    #[arg(long, value_name = "DUR", value_parser = pc_cli::parse_duration, conflicts_with = "check")]
    pub retry: Option<Duration>,

    /// Run CMD by sh once the process is stopped; if it fails, the process runs on
    #[arg(long, value_name = "CMD")]
    pub on_frozen: Option<String>,

    /// Run CMD by sh when the process runs on after the command of --on-frozen
    #[arg(long, value_name = "CMD", requires = "on_frozen")]
    pub on_resumed: Option<String>,

    #[command(flatten)]
    pub common: CommonArgs,
}

/// How written pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Track {
    /// The best that the kernel has
    #[default]
    Auto,
    /// userfaultfd (Linux 6.7 or later)
    Uffd,
    /// soft-dirty bits, where the kernel was built with them
    SoftDirty,
    /// Hashes of all pages
    Hash,
}

/// What becomes of an original in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Resolve {
    /// No copy runs, and none will: it goes on
    Running,
    /// The copy runs: it is ended
    Gone,
}

impl Resolve {
    /// The same for the library.
    pub fn fate(self) -> pc_capture::Fate {
        match self {
            Resolve::Running => pc_capture::Fate::Running,
            Resolve::Gone => pc_capture::Fate::Gone,
        }
    }
}

/// How packets of connections are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NetworkLock {
    /// By rules of nf_tables
    #[default]
    Nftables,
    /// Not at all: you see to it
    Skip,
}

/// What becomes of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs on.
    Running,
    /// It is left stopped.
    Stopped,
    /// It is ended.
    Killed,
}

impl Args {
    /// What is to be captured.
    pub fn settings(&self) -> Settings {
        let track = match self.track {
            Track::Auto => pc_capture::Track::Auto,
            Track::Uffd => pc_capture::Track::Uffd,
            Track::SoftDirty => pc_capture::Track::SoftDirty,
            Track::Hash => pc_capture::Track::Hash,
        };
        let network_lock = match self.network_lock {
            NetworkLock::Nftables => pc_capture::NetworkLock::Nftables,
            NetworkLock::Skip => pc_capture::NetworkLock::Skip,
        };
        let Self { pid, tcp_close, tcp_established, .. } = *self;
        let retry = self.retry.unwrap_or_default();
        Settings { pid, tcp_close, tcp_established, network_lock, track, retry }
    }

    /// When the process is to be stopped; `None` = at once.
    pub fn rounds(&self) -> Option<Rounds> {
        let rounds = Rounds {
            most: self.rounds,
            downtime_limit: self.downtime_limit,
            require_downtime: self.require_downtime,
        };
        (!self.once).then_some(rounds)
    }

    /// What becomes of the original if all goes well.
    pub fn fate(&self) -> Fate {
        match (self.leave_running, self.kill) {
            (true, _) => Fate::Running,
            (_, true) => Fate::Killed,
            _ => Fate::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound_and_fates_exclude_each_other() {
        Args::command().debug_assert();
        assert!(Args::try_parse_from(["pc-dump", "1", "--kill", "--leave-running"]).is_err());
        assert!(Args::try_parse_from(["pc-dump", "0"]).is_err());
        let plain = Args::try_parse_from(["pc-dump", "1"]).unwrap();
        assert_eq!((plain.fate(), plain.rounds()), (Fate::Stopped, Some(Rounds::default())));
        assert_eq!(Args::try_parse_from(["pc-dump", "1", "--once"]).unwrap().rounds(), None);
        assert!(Args::try_parse_from(["pc-dump", "1", "--once", "--rounds", "3"]).is_err());
        assert_eq!(Args::try_parse_from(["pc-dump", "1", "--kill"]).unwrap().fate(), Fate::Killed);
    }

    #[test]
    fn a_hand_over_decides_by_itself_what_becomes_of_the_original() {
        let parse = |args: &[&str]| Args::try_parse_from([&["pc-dump", "1"], args].concat());
        let plain = parse(&["--handover"]).unwrap();
        assert_eq!((plain.timeout, plain.freeze_timeout), (Duration::from_secs(30), Duration::from_secs(5)));
        for other in ["--kill", "--leave-running", "--leave-stopped", "--once", "--check", "--resolve=gone"] {
            assert!(parse(&["--handover", other]).is_err(), "{other}");
        }
        for alone in ["--timeout=1s", "--freeze-timeout=1s"] {
            assert!(parse(&[alone]).is_err(), "{alone}");
            assert!(parse(&["--handover", alone]).is_ok(), "{alone}");
        }
        assert!(parse(&["--resolve", "running", "--kill"]).is_err());
        assert!(parse(&["--resolve", "running"]).is_ok());
    }
}
