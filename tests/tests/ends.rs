//! How a link ends: half-closed, stopped by its reader, with the statuses of commands.

#![forbid(unsafe_code)]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pc_tests::link::{Fault, Relay, Tool, file, noise, recv, send};
use pc_tests::{Folder, patient, program, said};

#[test]
fn the_end_of_one_direction_reaches_the_other_side_and_leaves_the_other_direction_open() {
    let folder = Folder::new();
    let path = file(&folder, "input", b"b\nc\na\n");
    // sort says nothing before the end of its input.
    let mut receiver = recv(&folder, &["--", "sort"]);
    let mut sender = send(&folder, Some(&path), &receiver.addr(), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)));
    assert_eq!(sender.out(), b"a\nb\nc\n");
    // The back direction ends at once, the forward one goes on.
    let mut receiver = recv(&folder, &["--two-way"]);
    let slow = "cat >/dev/null; sleep 0.5; echo late";
    let mut sender = send(&folder, None, &receiver.addr(), &["--", "sh", "-c", slow]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)));
    assert_eq!(receiver.out(), b"late\n");
}

#[test]
fn the_status_of_a_command_is_the_tool_s_own_and_tells_the_other_side() {
    let folder = Folder::new();
    let cases = [
        ("exit 0", "cat >/dev/null; exit 6", 6, 6),
        ("exit 3", "cat >/dev/null", 3, 3),
        ("exit 3", "exit 6", 3, 6),
        ("kill -9 $$", "cat >/dev/null", 137, 137),
    ];
    for (at_sender, at_receiver, sender_code, receiver_code) in cases {
        let mut receiver = recv(&folder, &["--", "sh", "-c", at_receiver]);
        let mut sender = send(&folder, None, &receiver.addr(), &["--", "sh", "-c", at_sender]);
        let codes = (sender.code(), receiver.code());
        assert_eq!(codes, (Some(sender_code), Some(receiver_code)), "{at_sender} / {at_receiver}");
    }
    let mut receiver = recv(&folder, &["--", "/nonexistent/command"]);
    let mut sender = send(&folder, None, &receiver.addr(), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(5), Some(1)));
    assert!(
        sender.said().contains("refused") && receiver.said().contains("/nonexistent"),
        "{}",
        receiver.said()
    );
}

#[test]
fn a_reader_that_has_enough_stops_the_writer_at_the_other_end() {
    let folder = Folder::new();
    let mut receiver = recv(&folder, &["--", "head", "-c", "10"]);
    let mut sender = send(&folder, None, &receiver.addr(), &["--", "yes"]);
    // `yes` dies of SIGPIPE, as it would in a pipe.
    assert_eq!((sender.code(), receiver.code()), (Some(141), Some(141)), "{}", sender.said());
    assert_eq!(sender.said(), "");

    // The reader goes while nothing is written: that is noticed too.
    let mut receiver = recv(&folder, &["--", "sh", "-c", "exec <&-; exec sleep 1"]);
    let began = Instant::now();
    let silent = "exec 2>/dev/null; sleep 0.2; echo x; sleep 0.2; echo y; exec sleep 20";
    let mut sender = send(&folder, None, &receiver.addr(), &["--", "bash", "-c", silent]);
    sender.code();
    receiver.code();
    assert!(began.elapsed() < patient(Duration::from_secs(15)));

    let path = file(&folder, "input", &noise(50_000_000, 6));
    let mut receiver = recv(&folder, &["--", "head", "-c", "10"]);
    let mut sender = send(&folder, Some(&path), &receiver.addr(), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(1), Some(0)));
    assert!(sender.said().contains("took only part"), "{}", sender.said());

    // Who takes nothing where there is nothing has had all of it.
    for _ in 0..5 {
        let mut receiver = recv(&folder, &["--", "true"]);
        let mut sender = send(&folder, None, &receiver.addr(), &[]);
        assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)), "{}", sender.said());
    }
    // Nor does it matter that the writer ends a little after the reader that has had all.
    for input in ["", "all of it"] {
        let mut receiver = recv(&folder, &["--", "head", "-c", &input.len().to_string()]);
        let addr = receiver.addr();
        let late = format!("(printf '{input}'; sleep 0.3) | {} {addr}", program("pc-send").display());
        let sender = Command::new("sh").args(["-c", &late]).stdin(Stdio::null()).output().expect("sh runs");
        assert_eq!((sender.status.code(), receiver.code()), (Some(0), Some(0)), "{input}: {}", said(&sender));
    }
}

/// The last words cross a connection that breaks: who has heard the other side's knows how all of it ended.
#[test]
fn a_connection_that_breaks_at_the_goodbyes_matters_to_nobody_with_patience_nor_to_who_heard_them() {
    let folder = Folder::new();
    let path = file(&folder, "input", &noise(100_000, 20));
    for (forward, arrives) in [(true, false), (true, true), (false, false), (false, true)] {
        for (patience, status) in [("0", 0), ("0", 3), ("20", 0), ("20", 3)] {
            let what = format!("forward {forward}, arrives {arrives}, patience {patience}, status {status}");
            let args = ["--reconnect", patience];
            let command = format!("cat; exit {status}");
            let mut receiver = recv(&folder, &[&args[..], &["--", "sh", "-c", &command]].concat());
            let relay = Relay::start(&receiver.addr(), Fault::CutAtBye { forward, arrives });
            let mut sender = send(&folder, Some(&path), &relay.addr, &args);
            let began = Instant::now();
            let codes = (sender.code(), receiver.code());
            let said = format!("{what}: {codes:?} {}{}", sender.said(), receiver.said());
            assert!(relay.cuts() > 0, "nothing was cut: {said}");
            assert!(sender.out() == noise(100_000, 20), "{said}");
            let lost = |code: Option<i32>| patience == "0" && code == Some(5);
            assert!(codes.0 == Some(status) || lost(codes.0) && (forward || !arrives), "{said}");
            // Of its own command each side knows the status in any case.
            let lost_here = status == 0 && lost(codes.1) && !(forward && arrives);
            assert!(codes.1 == Some(status) || lost_here, "{said}");
            assert!(
                began.elapsed() < patient(Duration::from_secs(10)),
                "nobody waits for who is gone: {said}"
            );
        }
    }
}

#[test]
fn a_full_disk_is_a_failure_on_both_sides() {
    let folder = Folder::new();
    let path = file(&folder, "input", &noise(5_000_000, 18));
    let mut receiver = Command::new(program("pc-recv"));
    let talk = folder.file("full.talk");
    receiver.args(["127.0.0.1:0"]).stdin(Stdio::null()).stderr(File::create(&talk).expect("a file"));
    receiver.stdout(File::options().write(true).open("/dev/full").expect("/dev/full"));
    let child = receiver.spawn().expect("pc-recv starts");
    let mut receiver = Tool { child, out: folder.file("none"), talk };
    let mut sender = send(&folder, Some(&path), &receiver.addr(), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(1), Some(1)));
    assert!(receiver.said().contains("No space left"), "{}", receiver.said());
}
