//! Links that break, stall, damage bytes, and come back: a relay between pc-send and pc-recv sees to it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pc_tests::link::{Fault, LIMIT, Relay, Tool, file, key, noise, recv, send};
use pc_tests::net::{Host, Hosts};
use pc_tests::{Folder, patient, patient_option, program, wait_for};

#[test]
fn a_broken_connection_goes_on_where_it_was() {
    let folder = Folder::new();
    let key = key(&folder, "key");
    let input = noise(30_000_000, 10);
    let path = file(&folder, "input", &input);
    for streams in ["1", "3"] {
        let args = ["--key-file", &key, "--reconnect", "20"];
        let mut receiver = recv(&folder, &[&args[..], &["--", "cat"]].concat());
        // Each of the first six connections is cut in both directions after some megabytes.
        let relay = Relay::start(&receiver.addr(), Fault::CutEach { after: 3_000_000, times: 6 });
        let stats = folder.file("stats").display().to_string();
        let more = ["--streams", streams, "--stats", &stats];
        let mut sender = send(&folder, Some(&path), &relay.addr, &[&args[..], &more].concat());
        let codes = (sender.code(), receiver.code());
        assert_eq!(codes, (Some(0), Some(0)), "{}{}", sender.said(), receiver.said());
        assert!(sender.out() == input, "all of it, once, in order");
        let figures: serde_json::Value =
            serde_json::from_slice(&fs::read(&stats).expect("statistics")).expect("JSON");
        assert!(figures["reconnects"].as_u64() >= Some(3), "{figures}");
        assert_eq!(figures["bytes_received"], 30_000_000);
    }
}

#[test]
fn without_patience_a_broken_connection_is_exit_5_on_both_sides() {
    let folder = Folder::new();
    let input = noise(30_000_000, 11);
    let path = file(&folder, "input", &input);
    for streams in ["1", "3"] {
        let mut receiver = recv(&folder, &[]);
        let relay = Relay::start(&receiver.addr(), Fault::CutEach { after: 3_000_000, times: 1 });
        let mut sender = send(&folder, Some(&path), &relay.addr, &["--streams", streams]);
        assert_eq!((sender.code(), receiver.code()), (Some(5), Some(5)));
        assert!(input.starts_with(&receiver.out()), "what was written is a beginning of it");
    }
    // Nobody listens.
    let mut sender = send(&folder, Some(&path), "127.0.0.1:1", &[]);
    assert_eq!(sender.code(), Some(5));
}

#[test]
fn patience_has_an_end() {
    let folder = Folder::new();
    let path = file(&folder, "input", &noise(30_000_000, 12));
    let args = ["--reconnect", "2"];
    let mut receiver = recv(&folder, &args);
    let relay = Relay::start(&receiver.addr(), Fault::CutEach { after: 3_000_000, times: u32::MAX });
    let mut sender = send(&folder, Some(&path), &relay.addr, &args);
    wait_for("a cut", LIMIT, || relay.cuts() > 0);
    relay.close();
    let began = Instant::now();
    assert_eq!((sender.code(), receiver.code()), (Some(5), Some(5)));
    assert!(began.elapsed() < patient(Duration::from_secs(20)));
    assert!(receiver.said().contains("did not come back"), "{}", receiver.said());
}

#[test]
fn a_connection_that_stalls_holds_up_nothing() {
    let folder = Folder::new();
    let input = noise(60_000_000, 13);
    let path = file(&folder, "input", &input);
    let mut receiver = recv(&folder, &["--timeout", "60"]);
    // The second of four connections takes nothing any more after some bytes.
    let relay = Relay::start(&receiver.addr(), Fault::Stall { connection: 1, after: 1_000_000 });
    let args = ["--streams", "4", "--timeout", "60"];
    let mut sender = send(&folder, Some(&path), &relay.addr, &args);
    wait_for("all bytes arrive", Duration::from_secs(30), || receiver.out().len() == input.len());
    relay.close();
    sender.code();
    receiver.code();
    assert!(receiver.out() == input);
}

#[test]
fn a_damaged_byte_is_noticed_wherever_it_is() {
    let folder = Folder::new();
    let key = key(&folder, "key");
    let input = noise(3_000_000, 14);
    let path = file(&folder, "input", &input);
    // The greeting, the handshake or Join, the first frame's header, payload near and far.
    for at in [2, 6, 20, 40, 100, 150, 1000, 300_000, 2_000_000] {
        for args in [&[][..], &["--key-file", &key]] {
            let mut receiver = recv(&folder, args);
            let relay = Relay::start(&receiver.addr(), Fault::Flip { at });
            let mut sender = send(&folder, Some(&path), &relay.addr, args);
            assert_eq!(sender.code(), Some(5), "byte {at}, {args:?}: {}", sender.said());
            assert!(input.starts_with(&receiver.out()), "byte {at}, {args:?}");
            if receiver.said().contains("dropped") {
                // It never came to a transfer: pc-recv still waits for one.
                assert!(receiver.child.try_wait().expect("wait").is_none());
            } else {
                assert_eq!(receiver.code(), Some(5), "byte {at}, {args:?}");
            }
        }
    }
}

#[test]
fn a_peer_that_falls_silent_is_given_up() {
    let folder = Folder::new();
    let path = file(&folder, "input", &noise(30_000_000, 15));
    let timeout = patient_option("--timeout", Duration::from_secs(2));
    let mut receiver = recv(&folder, &[&timeout]);
    let relay = Relay::start(&receiver.addr(), Fault::Stall { connection: 0, after: 1_000_000 });
    let began = Instant::now();
    let mut sender = send(&folder, Some(&path), &relay.addr, &[&timeout]);
    assert_eq!((sender.code(), receiver.code()), (Some(5), Some(5)));
    assert!(began.elapsed() < patient(Duration::from_secs(20)));
}

/// Two links between hosts, a busy one and one on which nothing is sent, of which packets vanish from then on.
fn vanish(cut: impl FnOnce(&Hosts)) {
    let timeout = patient(Duration::from_secs(2));
    let (hosts, folder) = (Hosts::new(), Folder::new());
    let both = [&format!("--timeout={}ms", timeout.as_millis()), "--key-file", &key(&folder, "key")];
    let pair = |name: &str, addr: &str, input: Stdio| {
        let mut recv = hosts.command(Host::Two, program("pc-recv"));
        let recv = Tool::run(recv.arg(addr).args(both).stdin(Stdio::null()), &format!("to-{name}"), &folder);
        let mut send = hosts.command(Host::Client, program("pc-send"));
        send.arg(recv.addr()).args(both).args(["--rate", "5M"]).stdin(input);
        let send = Tool::run(&mut send, &format!("from-{name}"), &folder);
        [send, recv]
    };
    let busy = pair("busy", "10.77.0.2:7000", File::open("/dev/zero").expect("zeros").into());
    let mut idle = pair("idle", "10.77.0.2:7001", Stdio::piped());
    let mut input = idle[0].child.stdin.take().expect("a pipe");
    input.write_all(b"x").expect("it is read");
    wait_for("both pass bytes", LIMIT, || busy[1].out().len() > 1_000_000 && idle[1].out() == b"x");
    cut(&hosts);
    let began = Instant::now();
    for mut tool in busy.into_iter().chain(idle) {
        assert_eq!(tool.code(), Some(5), "{}", tool.said());
        let took = began.elapsed();
        println!("{took:?}: {}", tool.said().lines().last().unwrap_or_default());
        assert!(took > timeout / 2 && took < timeout * 2 + patient(Duration::from_secs(1)), "{took:?}");
    }
    drop(input);
}

#[test]
fn a_host_whose_packets_all_vanish_is_noticed_in_time_on_both_sides() {
    vanish(|hosts| hosts.client_link(false));
}

#[test]
fn a_host_that_hears_nothing_any_more_is_noticed_in_time_on_both_sides() {
    vanish(|hosts| hosts.client_deaf(true));
}

#[test]
fn a_signal_gives_up_on_both_sides() {
    let folder = Folder::new();
    // A command may end as it likes (8: in doubt, say); without one it is 7.
    for (ending, code) in [("exit 8", 8), ("exit 0", 7)] {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut receiver = recv(&folder, &["--reconnect", "30"]);
            let command = format!("trap '{ending}' TERM; echo begun; while :; do sleep 0.1; done");
            let feed = ["--reconnect", "30", "--", "sh", "-c", &command];
            let mut sender = send(&folder, None, &receiver.addr(), &feed);
            wait_for("the transfer begins", LIMIT, || receiver.out() == b"begun\n");
            sender.signal(signal);
            let codes = (sender.code(), receiver.code());
            assert_eq!(codes, (Some(code), Some(5)), "{}{}", sender.said(), receiver.said());
            assert!(receiver.said().contains("gave up"), "{}", receiver.said());
        }
    }
    // The same before anybody has come.
    let mut receiver = recv(&folder, &[]);
    receiver.addr();
    receiver.signal(Signal::SIGTERM);
    assert_eq!(receiver.code(), Some(7));
    let mut sender = send(&folder, None, "127.0.0.1:1", &["--reconnect", "30"]);
    std::thread::sleep(Duration::from_millis(300));
    sender.signal(Signal::SIGTERM);
    assert_eq!(sender.code(), Some(7));
}

#[test]
fn a_killed_peer_is_exit_5_and_its_command_hears_the_end() {
    let folder = Folder::new();
    for victim in ["pc-send", "pc-recv"] {
        let mut receiver = recv(&folder, &["--", "sh", "-c", "echo ready; exec cat"]);
        let feed = ["--", "sh", "-c", "read ready; echo begun >&2; exec cat"];
        let mut sender = send(&folder, None, &receiver.addr(), &feed);
        wait_for("the transfer begins", LIMIT, || sender.said().contains("begun"));
        let (killed, other) =
            if victim == "pc-send" { (&mut sender, &mut receiver) } else { (&mut receiver, &mut sender) };
        killed.signal(Signal::SIGKILL);
        // `cat` ends with the end of its input, and so does the tool.
        assert_eq!(other.code(), Some(5), "{victim} killed: {}", other.said());
    }
}
