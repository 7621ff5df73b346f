//! The one place that prints an error.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::exit::{Exit, exit_of};

/// Runs a tool: prints an error's chain once as `tool: what: why` and gives its exit code.
///
/// A panic has been printed by the panic hook when it arrives here; it ends as [`Exit::Failed`],
/// after every guard on the way has been dropped.
pub fn main(tool: &'static str, run: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            lines(&error).iter().for_each(|line| notice(tool, line));
            exit_of(&error).into()
        }
        Err(_panic) => Exit::Failed.into(),
    }
}

/// The causes of an error in one line, joined with `: `. A cause that the text before it already
/// ends with is not said twice.
pub fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().trim().replace('\n', "; ");
        if text.is_empty() || line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

/// The same with a line for each line of the last cause: an error may have several reasons.
fn lines(error: &anyhow::Error) -> Vec<String> {
    let (whole, last) = (chain(error), error.root_cause().to_string());
    let said = last.trim().replace('\n', "; ");
    match whole.strip_suffix(&said) {
        Some(before) => last.trim().lines().map(|reason| format!("{before}{reason}")).collect(),
        None => vec![whole],
    }
}

/// Says one line on stderr as `tool: text`. A stderr that is gone is not an error.
pub fn notice(tool: &str, text: &str) {
    // One write, so that two tools in a pipe do not mix their lines.
    let line = format!("{tool}: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn each_reason_has_a_line_with_all_before_it() {
        let error = Err::<(), _>(anyhow::anyhow!("one\ntwo")).context("refused").unwrap_err();
        assert_eq!(lines(&error), ["refused: one", "refused: two"]);
        assert_eq!(lines(&anyhow::anyhow!("one")), ["one"]);
    }

    #[test]
    fn the_chain_is_one_line_and_says_nothing_twice() {
        let error = Err::<(), _>(anyhow::anyhow!("no such\nprocess"))
            .context("seizing 7: no such; process")
            .context("dump")
            .unwrap_err();
        assert_eq!(chain(&error), "dump: seizing 7: no such; process");
    }
}
