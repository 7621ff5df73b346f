//! Live moves: the memory goes in rounds while the guest writes it.

#![forbid(unsafe_code)]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pc_tests::{Folder, Guest, Writer, program, said};
use serde_json::Value;

/// How many moves in a row: `PC_MOVES`, else as many as a test run has time for.
fn moves() -> usize {
    std::env::var("PC_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(15)
}

struct Moved {
    writer: Writer,
    dump: Value,
}

/// Through a pipe into a file, by rounds; the copy takes the pid.
fn moved(writer: Writer, args: &[&str], restore: &[&str]) -> Moved {
    let folder = Folder::new();
    let (image, stats) = (folder.file("image"), folder.file("stats"));
    let mut dump = Command::new(program("pc-dump"));
    let dump = dump.args(["--kill", "--stats"]).arg(&stats).args(args).arg(writer.guest.arg());
    let output = dump.stdin(Stdio::null()).stdout(File::create(&image).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    let dump = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    let writer = writer.moved_by(|mut guest| {
        guest.ended(Duration::from_secs(10));
        pc_tests::restored(&image, restore)
    });
    Moved { writer, dump }
}

fn moved_in_a_row(guest: &[&str], args: &[&str], restore: &[&str]) {
    let mut writer = Writer::start_with(guest);
    let began = Instant::now();
    let mut rounds = 0;
    for _ in 0..moves() {
        let one = moved(writer, args, restore);
        writer = one.writer;
        writer.goes_on();
        let all = one.dump["rounds"].as_array().unwrap();
        assert!(all.len() >= 2, "there was no round before the stop: {}", one.dump);
        rounds += all.len();
    }
    println!("{} moves {args:?} {restore:?} in {:?}, {rounds} rounds", moves(), began.elapsed());
    writer.end();
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_tracked_by_userfaultfd() {
    moved_in_a_row(&["--fork"], &["--track", "uffd"], &[]);
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_found_by_hashing() {
    moved_in_a_row(&["--fork"], &["--track", "hash"], &[]);
}

#[test]
fn no_byte_and_no_signal_is_lost_when_writes_are_found_by_soft_dirty_bits() {
    let guest = Guest::start(Command::new("sleep").arg("60"));
    let tried = Command::new(program("pc-dump"))
        .args(["--leave-running", "--track", "soft-dirty", &guest.arg()])
        .stdout(Stdio::null())
        .output()
        .unwrap();
    if tried.status.code() == Some(6) && said(&tried).contains("soft-dirty") {
        println!("SKIP tracking by soft-dirty bits: this kernel has none");
        return;
    }
    moved_in_a_row(&["--fork"], &["--track", "soft-dirty"], &[]);
}

#[test]
fn rounds_may_be_kept_and_applied_late() {
    moved_in_a_row(&[], &["--rounds=4", "--downtime-limit=0"], &["--start-round", "2"]);
    moved_in_a_row(&[], &["--rounds=4", "--downtime-limit=0"], &["--no-pipeline"]);
}
