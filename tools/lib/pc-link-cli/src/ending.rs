//! From how a transfer ended to the exit code.

use std::process::ExitCode;

use pc_cli::{Exit, WithExit as _};
use pc_link::{Failure, LinkError, Outcome};

/// The exit code: the status of a command here says most, then the one that the other side (`at`) reports; with none of them it
/// is for `judge` to say what is missing of an orderly end.
///
/// # Errors
/// The transfer failed, or `judge` says so.
pub fn finish(
    tool: &str,
    at: &str,
    result: Result<Outcome, Failure>,
    judge: impl FnOnce(Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(Failure { error, status: 0, .. }) => {
            let exit = exit_for(&error);
            return Err(error).exit(exit);
        }
        Err(Failure { error, status, .. }) => {
            pc_cli::notice(tool, &error.to_string());
            return Ok(ExitCode::from(status));
        }
    };
    if outcome.status != 0 {
        return Ok(ExitCode::from(outcome.status));
    }
    if outcome.peer_status != 0 {
        pc_cli::notice(tool, &format!("at {at} it ended with status {}", outcome.peer_status));
        return Ok(ExitCode::from(outcome.peer_status));
    }
    judge(outcome).map(|()| ExitCode::SUCCESS)
}

/// The exit code for an error.
pub fn exit_for(error: &LinkError) -> Exit {
    match error {
        LinkError::Usage(_) | LinkError::Key { .. } => Exit::Usage,
        LinkError::Cancelled => Exit::Cancelled,
        error if error.is_transport() => Exit::Transport,
        _ => Exit::Failed,
    }
}
