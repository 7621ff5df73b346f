//! `--check`: whether a process can be moved, and what to know.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use pc_capture::{CaptureError, Report, Settings, Unsupported};
use serde::Serialize;

use crate::args::Args;
use crate::with_code;

/// What `--check --json` prints.
#[derive(Debug, Default, Serialize)]
struct Answer<'a> {
    pid: i32,
    movable: bool,
    needs: Vec<Need<'a>>,
    notices: &'a [String],
    refusals: Vec<Refusal<'a>>,
}

#[derive(Debug, Serialize)]
struct Need<'a> {
    option: &'a str,
    why: &'a str,
}

#[derive(Debug, Serialize)]
struct Refusal<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptor: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mapping: Option<String>,
    what: &'a str,
    passes: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// Prints what was found; what cannot be moved is an error.
pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let found = pc_capture::check(settings);
    let text = match &found {
        _ if args.json => Some(json(args.pid, &found)?),
        Ok(report) => Some(text(args.pid, report)),
        Err(_) => None,
    };
    if let Some(text) = text {
        std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    }
    found.map(|_| ExitCode::SUCCESS).map_err(with_code)
}

fn text(pid: i32, report: &Report) -> String {
    let mut text = format!("pid {pid} can be moved\n");
    for need in &report.needs {
        text += &format!("needs {}: {}\n", need.option, need.why);
    }
    for notice in &report.notices {
        text += &format!("note: {notice}\n");
    }
    text
}

fn json(pid: i32, found: &Result<Report, CaptureError>) -> anyhow::Result<String> {
    let answer = match found {
        Ok(report) => {
            let needs =
                report.needs.iter().map(|need| Need { option: &need.option, why: &need.why }).collect();
            Answer { pid, movable: true, needs, notices: &report.notices, refusals: Vec::new() }
        }
        Err(CaptureError::Unsupported(all)) => {
            Answer { pid, refusals: all.iter().map(refusal).collect(), ..Answer::default() }
        }
        // Nothing is known of it: the error says why.
        Err(_) => return Ok(String::new()),
    };
    Ok(serde_json::to_string_pretty(&answer)? + "\n")
}

fn refusal(it: &Unsupported) -> Refusal<'_> {
    let mapping = it.mapping.map(|start| format!("{start:#x}"));
    Refusal { descriptor: it.fd, mapping, what: &it.what, passes: it.passes(), hint: it.way_out() }
}
