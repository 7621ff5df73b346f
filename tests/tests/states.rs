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

#[test]
fn every_option_of_every_socket_and_what_waits_in_it_is_the_same_in_the_copy() {
    same_after_a_move("guest-sockets", &[], Way::File);
}

#[test]
fn sockets_are_the_same_in_a_copy_that_was_built_from_rounds() {
    let folder = Folder::new();
    let (report, image) = (folder.file("report"), folder.file("image"));
    let mut command = Command::new(program("guest-sockets"));
    let mut guest = Guest::start(command.arg(&report).arg(folder.file("")));
    let ready = folder.file("report.ready");
    wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
    let out = fs::File::create(&image).expect("an image");
    let mut dump = Command::new(program("pc-dump"));
    let output =
        dump.args(["--rounds", "3", "--kill", &guest.arg()]).stdout(out).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", pc_tests::said(&output));
    guest.ended(Duration::from_secs(10));
    let mut copy = pc_tests::restored(&image, &[]);
    copy.signal(Signal::SIGUSR1);
    let code = copy.ended(Duration::from_secs(20));
    let report = fs::read_to_string(report).unwrap_or_default();
    assert!(code == Some(0) && report == "OK\n", "exit {code:?}:\n{report}");
}
