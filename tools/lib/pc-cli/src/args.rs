//! Reading the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::exit;

use clap::{Args, Command, Parser};
use clap_complete::Shell;

use crate::exit::Exit;
use crate::progress::ProgressMode;

/// Options that every tool has; use with `#[command(flatten)]`.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// Write figures about the run to FILE as JSON (whole microseconds, bytes)
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// How to show progress on stderr
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub progress: ProgressMode,

    // `parse` does so itself: always None in what it returns.
    /// Print a completion script for SHELL and end
    #[arg(long, value_name = "SHELL", value_enum, exclusive = true)]
    pub completions: Option<Shell>,
}

/// Reads the command line. Help, version and completions go to stdout and end the tool with 0;
/// a wrong command line is said on stderr and ends it with [`Exit::Usage`].
pub fn parse<T: Parser>() -> T {
    parse_from(std::env::args_os())
}

/// [`parse`] with arguments given; the first is the tool's name.
pub fn parse_from<T: Parser>(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> T {
    let mut command = T::command();
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| {
        if let Ok(Some(shell)) = matches.try_get_one::<Shell>("completions") {
            print_completions(&mut command, *shell);
        }
        T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    });
    parsed.unwrap_or_else(|error| {
        // Nobody is left to be informed if this fails.
        let _ = error.print();
        exit(if error.use_stderr() { Exit::Usage } else { Exit::Done }.code().into())
    })
}

fn print_completions(command: &mut Command, shell: Shell) -> ! {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, command, name, &mut script);
    let written = std::io::Write::write_all(&mut std::io::stdout(), &script);
    exit(if written.is_ok() { Exit::Done } else { Exit::Failed }.code().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[derive(Parser, Debug)]
    #[command(name = "pc-x")]
    struct Cli {
        pid: i32,
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn common_options_stand_beside_a_required_argument() {
        let cli: Cli = parse_from(["pc-x", "7", "--stats", "f", "--progress", "json"]);
        assert_eq!(cli.pid, 7);
        assert_eq!(cli.common.stats.as_deref(), Some("f".as_ref()));
        assert_eq!(cli.common.progress, ProgressMode::Json);
        Cli::command().debug_assert();
    }

    #[test]
    fn completions_need_no_other_argument() {
        let matches = Cli::command().try_get_matches_from(["pc-x", "--completions", "bash"]);
        assert!(matches.is_ok(), "{matches:?}");
        assert!(Cli::command().try_get_matches_from(["pc-x", "7", "--completions", "bash"]).is_err());
    }
}
