//! The command line of pc-dump.

use clap::Parser;
use pc_cli::CommonArgs;

/// Writes a checkpoint of a running process to standard output.
///
/// The stream goes to a file or a pipe: `pc-dump 1234 > image.pcs`, `pc-dump 1234 | pc-restore --detach`. What
/// cannot be moved is named before the process is touched. Afterwards the original is left stopped unless told
/// otherwise; if anything fails it runs on as before.
#[derive(Debug, Parser)]
#[command(name = "pc-dump", version, max_term_width = 100)]
pub struct Args {
    /// The process to capture
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,

    /// Stop the process and copy it, without sending memory ahead while it runs
    #[arg(long)]
    pub once: bool,

    /// Let the original run on afterwards
    #[arg(long, group = "fate")]
    pub leave_running: bool,

    /// Leave the original stopped afterwards (this is the default)
    #[arg(long, group = "fate")]
    pub leave_stopped: bool,

    /// End the original once the stream is written (and on disk, if it goes to a file)
    #[arg(long, group = "fate")]
    pub kill: bool,

    /// Only say what could not be moved, and end
    #[arg(long)]
    pub check: bool,

    /// Capture connected TCP sockets too; the copy finds them closed by the other side
    #[arg(long)]
    pub tcp_close: bool,

    #[command(flatten)]
    pub common: CommonArgs,
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
        assert_eq!(Args::try_parse_from(["pc-dump", "1"]).unwrap().fate(), Fate::Stopped);
        assert_eq!(Args::try_parse_from(["pc-dump", "1", "--kill"]).unwrap().fate(), Fate::Killed);
    }
}
