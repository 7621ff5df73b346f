//! What a program has used, measured by a process between it and us.
//!
//! The kernel counts as a program's peak what its process had before exec(2), and a child of ours begins with all
//! that we have. So a small process stands between, which is this program too.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use wait4::Wait4 as _;

/// What a program and its children have used.
#[derive(Debug, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// The most memory that one of them had resident, in bytes.
    pub peak_memory: u64,
}

/// The same command, with what it uses left in a file.
pub fn measured(command: &Command, file: &Path) -> anyhow::Result<Command> {
    let mut measured = Command::new(std::env::current_exe()?);
    measured.arg("--measured").arg(file).arg("--").arg(command.get_program()).args(command.get_args());
    Ok(measured)
}

/// Runs the command, with our own descriptors, and ends as it does.
pub fn run(file: PathBuf, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, args) = command.split_first().context("no command")?;
    let used = Command::new(program).args(args).spawn().with_context(|| program.clone())?.wait4()?;
    let usage = Usage {
        cpu_seconds: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
        peak_memory: used.rusage.maxrss,
    };
    std::fs::write(file, serde_json::to_vec(&usage)?)?;
    // nsenter has no status for a death by signal either.
    let code = used.status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
