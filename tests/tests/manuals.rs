//! Help, manual page and shell completions of each tool name the same options.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLS: [&str; 5] = ["pc-dump", "pc-restore", "pc-send", "pc-recv", "pc-show"];

/// Where the tools were built: beside the folder of this test.
fn tool(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program");
    let folder = own.parent().and_then(Path::parent).expect("a target folder");
    let tool = folder.join(name);
    assert!(tool.exists(), "build the workspace first");
    tool
}

fn output(name: &str, args: &[&str]) -> String {
    let output = Command::new(tool(name)).args(args).output().expect("the tool runs");
    assert!(output.status.success(), "{name} {args:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The long options that stand in a text.
fn options(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for piece in text.split("--").skip(1) {
        let name: String = piece.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            found.insert(name.trim_end_matches('-').to_owned());
        }
    }
    found
}

/// The options that a manual page describes: those that stand in a line of their own paragraph.
fn manual(name: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let page = std::fs::read_to_string(root.join(format!("man/{name}.1"))).expect("a manual page");
    let lines: Vec<_> = page.lines().map(|line| line.replace("\\-", "-")).collect();
    let heads = lines.windows(2).filter(|pair| pair[0].starts_with(".TP") || pair[0].starts_with(".TQ"));
    options(&heads.map(|pair| pair[1].clone()).collect::<Vec<_>>().join("\n"))
}

#[test]
fn help_and_manual_page_describe_the_same_options() {
    for name in TOOLS {
        let help = output(name, &["--help"]);
        let heads = help.lines().filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-'));
        let help = options(&heads.collect::<Vec<_>>().join("\n"));
        assert_eq!(help, manual(name), "left: {name} --help; right: man/{name}.1");
    }
}

#[test]
fn completions_know_every_option_of_the_help() {
    for name in TOOLS {
        let help = output(name, &["--help"]);
        let heads = help.lines().filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-'));
        for shell in ["bash", "zsh", "fish"] {
            let script = output(name, &["--completions", shell]);
            for option in options(&heads.clone().collect::<Vec<_>>().join("\n")) {
                assert!(script.contains(&option), "{name}: {shell} does not complete --{option}");
            }
        }
    }
}

#[test]
fn wrong_usage_is_exit_2_and_said_on_stderr() {
    for name in TOOLS {
        let output = Command::new(tool(name)).arg("--no-such-option").output().expect("the tool runs");
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{name}");
    }
}
