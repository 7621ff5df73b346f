//! Help, manual page and shell completions of each tool name the same options.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pc_tests::{Folder, Guest};

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

/// The names in an object and in the objects below it.
fn names(value: &serde_json::Value, into: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => object.iter().for_each(|(name, value)| {
            into.insert(name.clone());
            names(value, into);
        }),
        serde_json::Value::Array(all) => all.iter().for_each(|value| names(value, into)),
        _ => {}
    }
}

#[test]
fn the_manual_page_names_every_figure_of_the_statistics() {
    let folder = Folder::new();
    let (image, dumped, restored) = (folder.file("image"), folder.file("dumped"), folder.file("restored"));
    let guest = Guest::start(Command::new("sleep").arg("60"));
    let mut dump = Command::new(tool("pc-dump"));
    dump.args(["--leave-running", "--stats"]).arg(&dumped).arg(guest.arg());
    let status = dump.stdout(std::fs::File::create(&image).unwrap()).status().expect("pc-dump runs");
    assert!(status.success());
    let stats = restored.to_str().unwrap();
    let copy = pc_tests::restored(&image, &["--new-pid-ns", "--stats", stats]);
    drop((guest, copy));
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../man/pc-tools.7")).unwrap();
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for path in [dumped, restored] {
        let figures = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut all = BTreeSet::new();
        names(&figures, &mut all);
        assert!(all.len() > 8, "{figures}");
        let unknown: Vec<_> = all.iter().filter(|name| !words.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "pc-tools(7) does not name {unknown:?}");
    }
}

#[test]
fn the_manual_page_names_every_socket_option_that_a_copy_lacks_or_that_is_refused() {
    use pc_image::sockopt::{Fate, TABLE};
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../man/pc-dump.1")).unwrap();
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let told = |fate: Fate| matches!(fate, Fate::Lost(_) | Fate::Refused);
    let missing: Vec<_> =
        TABLE.iter().filter(|o| told(o.fate) && !words.contains(o.label)).map(|o| o.label).collect();
    assert!(missing.is_empty(), "pc-dump(1) does not name {missing:?}");
}
