//! The exit codes, and how an error comes to carry one.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use crate::input::CompressedInput;
use crate::signals::{Cancelled, Silence};

/// How a tool ended, as its caller sees it. The numbers never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for a reason that has no number of its own.
    Failed = 1,
    /// The command line is wrong, or a stream would go to or come from a terminal.
    Usage = 2,
    /// The stream is not one of ours, or is damaged.
    BadStream = 3,
    /// The stream ended before its end record.
    Truncated = 4,
    /// The connection could not be made, was refused, or broke.
    Transport = 5,
    /// This kernel, machine or object is not supported.
    Unsupported = 6,
    /// Cancelled; the original runs on.
    Cancelled = 7,
    /// It is not known whether the copy runs; the original is stopped.
    InDoubt = 8,
    /// pc-restore in the foreground, where all other codes are the restored program's own.
    Own = 125,
}

impl Exit {
    /// The number given to the caller.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Attaches an exit code to an error. The code said last (outermost) wins.
pub trait WithExit<T> {
    /// Makes the tool end with `exit` if this error reaches [`crate::main`].
    fn exit(self, exit: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| coded(error.into(), exit))
    }
}

/// Attaches an exit code to an error at hand.
pub fn coded(error: anyhow::Error, exit: Exit) -> anyhow::Error {
    anyhow::Error::new(Coded { exit, inner: error })
}

/// An error and what caused it, in one line, for the other side.
pub fn in_a_line(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<String> = anyhow::Chain::new(error).map(ToString::to_string).collect();
    causes.join(": ").replace('\n', "; ")
}

/// The exit code for an error: the outermost that was attached, else what the error itself says
/// (compressed input that is damaged or cut, a wait that was cancelled or too long), else [`Exit::Failed`].
pub fn exit_of(error: &anyhow::Error) -> Exit {
    let attached = error.chain().find_map(|cause| cause.downcast_ref::<Coded>());
    match attached.map(|coded| coded.exit) {
        Some(exit) if exit != Exit::Failed => exit,
        _ => error.chain().find_map(by_itself).unwrap_or(Exit::Failed),
    }
}

fn by_itself(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if let Some(coded) = cause.downcast_ref::<Coded>() {
        return by_itself(coded.inner.as_ref());
    }
    let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
    if inner.is::<Cancelled>() {
        return Some(Exit::Cancelled);
    }
    if inner.is::<Silence>() {
        return Some(Exit::Transport);
    }
    inner.downcast_ref::<CompressedInput>().map(CompressedInput::exit)
}

/// An error with its exit code; reads like the error that it holds.
struct Coded {
    exit: Exit,
    inner: anyhow::Error,
}

impl fmt::Debug for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_code_said_last_wins_and_is_seen_through_context() {
        let inner: Result<(), _> = Err(std::io::Error::other("no")).exit(Exit::BadStream);
        let error = inner.context("reading").unwrap_err();
        assert_eq!(exit_of(&error), Exit::BadStream);
        let error = Err::<(), _>(error).exit(Exit::Own).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Own);
        assert_eq!(crate::chain(&error), "reading: no");
    }

    #[test]
    fn an_error_without_a_code_is_a_failure() {
        assert_eq!(exit_of(&anyhow::anyhow!("x")), Exit::Failed);
    }

    #[test]
    fn compressed_input_says_its_own_code_even_under_failed() {
        let io = std::io::Error::from(CompressedInput::Truncated);
        assert_eq!(exit_of(&anyhow::Error::new(io).context("reading")), Exit::Truncated);
        let io = std::io::Error::from(CompressedInput::Damaged("x".into()));
        let error = Err::<(), _>(io).exit(Exit::Failed).context("reading").unwrap_err();
        assert_eq!(exit_of(&error), Exit::BadStream);
    }
}
