//! The arrows between the crates, and where unsafe code may stand.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Which crates of the workspace each crate may use.
const ARROWS: [(&str, &[&str]); 16] = [
    ("pc-frame", &[]),
    ("pc-image", &["pc-frame"]),
    ("pc-ctl", &["pc-frame"]),
    ("pc-sys", &[]),
    ("pc-trace", &["pc-sys"]),
    ("pc-track", &["pc-sys", "pc-trace"]),
    ("pc-cli", &["pc-sys"]),
    ("pc-link", &[]),
    ("pc-link-cli", &["pc-link", "pc-cli"]),
    ("pc-send", &["pc-link", "pc-link-cli", "pc-cli"]),
    ("pc-recv", &["pc-link", "pc-link-cli", "pc-cli"]),
    ("pc-capture", &["pc-sys", "pc-trace", "pc-track", "pc-image"]),
    ("pc-rebuild", &["pc-sys", "pc-trace", "pc-image"]),
    ("pc-dump", &["pc-capture", "pc-ctl", "pc-image", "pc-frame", "pc-cli"]),
    ("pc-restore", &["pc-rebuild", "pc-ctl", "pc-image", "pc-frame", "pc-cli"]),
    ("pc-show", &["pc-image", "pc-frame", "pc-cli"]),
];

fn packages() -> BTreeMap<String, Value> {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let all: Value = serde_json::from_slice(&cargo.stdout).expect("JSON");
    let packages = all["packages"].as_array().expect("packages").clone();
    packages.into_iter().map(|p| (p["name"].as_str().expect("a name").to_owned(), p)).collect()
}

#[test]
fn no_arrow_between_crates_turns_back() {
    let arrows: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    for (name, package) in packages() {
        if name == "pc-tests" {
            continue;
        }
        let allowed =
            arrows.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no arrows in this test"));
        for used in package["dependencies"].as_array().expect("dependencies") {
            let normal = used["kind"].is_null();
            let used = used["name"].as_str().expect("a name");
            assert!(
                !(normal && used.starts_with("pc-")) || allowed.contains(used),
                "{name} must not use {used}"
            );
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_outside_the_kernel_edge() {
    for (name, package) in packages() {
        if ["pc-sys", "pc-trace"].contains(&name.as_str()) {
            continue;
        }
        for target in package["targets"].as_array().expect("targets") {
            let path = target["src_path"].as_str().expect("a path");
            // Tests and examples are no part of what people run.
            if !["lib", "bin"].iter().any(|kind| target["kind"][0] == *kind) {
                continue;
            }
            // Guests do on purpose what only unsafe code can do.
            if Path::new(path).file_name().is_some_and(|file| file.to_string_lossy().starts_with("guest-")) {
                continue;
            }
            let text = std::fs::read_to_string(path).expect("a source file");
            assert!(text.contains("#![forbid(unsafe_code)]"), "{path} does not forbid unsafe code");
        }
    }
}
