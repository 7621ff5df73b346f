//! What a process has besides its memory's bytes is the same after a move: settings, credentials, timers, descriptors.

#![forbid(unsafe_code)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Way, moved, program, wait_for};

/// Starts a guest that is asked twice, moves it between the questions, and fails with what it complains of.
fn same_after_a_move(guest: &str, args: &[&str], way: Way) {
    let folder = Folder::new();
    let report = folder.file("report");
    let mut command = Command::new(program(guest));
    let guest = Guest::start(command.arg(&report).arg(folder.file("")).args(args));
    let ready = folder.file("report.ready");
    wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
    let mut copy = moved(guest, way);
    copy.signal(Signal::SIGUSR1);
    let code = copy.ended(Duration::from_secs(20));
    let report = fs::read_to_string(report).unwrap_or_default();
    assert!(code == Some(0) && report == "OK\n", "exit {code:?}:\n{report}");
}

#[test]
fn settings_and_memory_of_every_kind_are_the_same_in_the_copy() {
    same_after_a_move("guest-state", &[], Way::File);
}

#[test]
fn descriptors_of_every_kind_are_the_same_in_the_copy_and_can_be_used() {
    same_after_a_move("guest-fds", &[], Way::File);
}
