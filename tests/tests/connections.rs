//! Established TCP connections on the move between two hosts, under the eyes of a client on a third.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::asking::{moved_under, pipelined, redis, sets_and_counts};
use pc_tests::net::{Host, Hosts, Pattern, service};
use pc_tests::told::Told;
use pc_tests::{Folder, Guest, patient, program, said, wait_for};

/// How many moves in a row: `PC_MOVES`, else 5.
fn moves() -> usize {
    std::env::var("PC_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(5)
}

/// One way, without a line between the hosts.
fn by_a_pipe(hosts: &Hosts) -> impl FnMut(Guest, Host) -> Guest {
    |guest, from| hosts.moved(guest, from)
}

#[test]
fn a_move_that_fails_leaves_the_connection_where_it_was_and_no_rule() {
    let mut told = Told::echoing();
    let image = told.folder.file("image");
    let (give, take) = (told.hosts.move_addresses("give"), told.hosts.move_addresses("take"));
    let killed = None;
    for (then, code) in
        [("exit 3", Some(1)), ("kill -TERM $PPID; sleep 20", Some(7)), ("kill -KILL $PPID", killed)]
    {
        let hook = format!("{give} && {{ {then}; }}");
        let args = ["--tcp-established", "--kill", "--on-frozen", &hook, "--on-resumed", &take];
        let output = told.dump_to(&image, &args).stderr(Stdio::piped()).output().expect("pc-dump runs");
        assert_eq!(output.status.code(), code, "{then}: {}", said(&output));
        told.echoes();
        told.hosts.assert_no_tables();
    }
    // Without the commands, at any moment.
    for moment in 0..40 {
        let mut dump = told.dump_to(&image, &["--tcp-established", "--leave-running"]);
        let mut dump = dump.stderr(Stdio::null()).spawn().expect("pc-dump runs");
        std::thread::sleep(Duration::from_micros(500 * moment));
        let _ = dump.kill();
        dump.wait().expect("pc-dump ends");
        told.echoes();
    }
    told.hosts.assert_no_tables();
    told.ends_echoing();
}

#[test]
fn a_copy_that_does_not_come_to_run_says_nothing_to_the_client() {
    let mut told = Told::echoing();
    let image = told.folder.file("image");
    let give = told.hosts.move_addresses("give");
    let output =
        told.dump_to(&image, &["--tcp-established", "--on-frozen", &give]).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", said(&output));
    told.at = Host::Two;
    for then in ["exit 3", "kill -KILL $PPID"] {
        let hook = format!("{} && {then}", told.hosts.move_addresses("take"));
        let args = ["--tcp-established", "--new-pid-ns", "--on-ready", &hook];
        assert!(!told.restored_from(&image, &args).status.success(), "{then}");
        told.hosts.addresses(Host::Two, "give");
        told.hosts.assert_no_tables();
    }
    // The original has been stopped all the time, and goes on.
    told.at = Host::One;
    told.hosts.addresses(Host::One, "take");
    told.guest.signal(Signal::SIGCONT);
    told.ends_echoing();
}

#[test]
fn packets_are_held_back_between_a_dump_and_a_restore_on_the_same_machine() {
    for fate in ["--kill", "--leave-stopped"] {
        let mut told = Told::echoing();
        let image = told.folder.file("image");
        let output = told.dump_to(&image, &["--tcp-established", fate]).stderr(Stdio::piped()).output();
        let output = output.expect("pc-dump runs");
        assert!(
            output.status.success() && said(&output).contains("nft delete table inet pc-held-"),
            "{}",
            said(&output)
        );
        told.send(1000);
        std::thread::sleep(Duration::from_millis(300));
        assert!(told.hosts.tables(Host::One).contains("pc-held-"));
        if fate == "--kill" {
            told.guest.ended(Duration::from_secs(10));
            let output = told.restored_from(&image, &["--tcp-established"]);
            assert!(output.status.success(), "{}", said(&output));
        } else {
            let table = told.hosts.tables(Host::One);
            let delete = format!("delete {}", table.trim());
            let done = told.hosts.command(Host::One, "nft").arg(delete).status().expect("nft runs");
            assert!(done.success());
            told.guest.signal(Signal::SIGCONT);
        }
        told.receive(1000);
        told.ends_echoing();
    }
}

#[test]
fn an_original_that_was_left_stopped_with_its_packets_held_back_can_be_dumped_again() {
    for fate in ["--leave-stopped", "--kill"] {
        let mut told = Told::echoing();
        for fate in ["--leave-stopped", fate] {
            let mut dump = told.dump_to(&told.folder.file("image"), &["--tcp-established", fate]);
            let output = dump.stderr(Stdio::piped()).output().expect("pc-dump runs");
            assert!(output.status.success(), "{}", said(&output));
            assert!(told.hosts.tables(Host::One).contains("pc-held-"));
        }
        match fate {
            "--kill" => {
                told.guest.ended(Duration::from_secs(10));
                let image = told.folder.file("image");
                let output = told.restored_from(&image, &["--tcp-established"]);
                assert!(output.status.success(), "{}", said(&output));
                told.guest.signal(Signal::SIGCONT); // it is stopped, as the original was
            }
            _ => told.resolved_to_run(),
        }
        told.ends_echoing();
    }
}

#[test]
fn connections_are_refused_by_name_unless_asked_for_and_so_are_those_still_being_made() {
    let mut told = Told::echoing();
    let image = told.folder.file("image");
    let refused = |args: &[&str], code: i32, text: &str| {
        let output = told.dump_to(&image, args).stderr(Stdio::piped()).output().expect("pc-dump runs");
        assert!(
            output.status.code() == Some(code) && said(&output).contains(text),
            "{args:?}: {}",
            said(&output)
        );
    };
    refused(&["--check"], 6, "which needs --tcp-established or --tcp-close");
    refused(&[], 6, "which needs --tcp-established or --tcp-close");
    refused(&["--check", "--tcp-established"], 0, "");
    refused(&["--tcp-established", "--leave-running"], 0, "");
    told.echoes();
    let output = told.restored_from(&image, &["--new-pid-ns"]);
    let text = said(&output);
    assert!(
        output.status.code() == Some(6) && text.contains("needs --tcp-established or --tcp-close"),
        "{text}"
    );
    told.hosts.client_deaf(true);
    let script = "import socket; socket.create_connection(('10.77.0.3', 99))";
    let connecting = Guest::start(told.hosts.command(Host::One, "/usr/bin/python3").args(["-c", script]));
    let count = || {
        let output = told.hosts.command(Host::One, "ss").args(["-Htan", "state", "syn-sent"]).output();
        output.expect("ss runs").stdout.len()
    };
    wait_for("a request", Duration::from_secs(10), || count() > 0);
    let mut check = told.hosts.command(Host::One, program("pc-dump"));
    let output =
        check.args(["--check", "--tcp-established", &connecting.arg()]).output().expect("pc-dump runs");
    let text = said(&output);
    assert!(output.status.code() == Some(6) && text.contains("is still being made"), "{text}");
    drop(connecting);
    told.hosts.client_deaf(false);
    told.ends_echoing();
}

#[test]
fn a_copy_without_its_connections_reads_what_was_received_and_then_their_end() {
    let mut told = Told::start(false, &["receive:10", "wait:move", "receive:5000", "end", "send:1"]);
    told.send(10);
    told.waits("move");
    told.send(5000);
    let image = told.folder.file("image");
    let output = told.dump_to(&image, &["--tcp-established", "--kill"]).output().expect("pc-dump runs");
    assert!(output.status.success());
    told.guest.ended(Duration::from_secs(10));
    let output = told.restored_from(&image, &["--tcp-close"]);
    assert!(output.status.success(), "{}", said(&output));
    told.goes_on("move");
    let code = told.guest.ended(Duration::from_secs(20));
    assert!(code == Some(1) && told.report().contains("send:1: Broken pipe"), "{code:?}: {}", told.report());
}

#[test]
fn packets_may_be_held_back_by_other_means_and_commands_show_in_the_figures() {
    let mut told = Told::echoing();
    let (image, stats) = (told.folder.file("image"), told.folder.file("stats"));
    let stats_arg = stats.display().to_string();
    told.hosts.client_link(false);
    let args = ["--tcp-established", "--network-lock", "skip", "--kill", "--on-frozen", "sleep 0.05"];
    let args = [&args[..], &["--stats", &stats_arg]].concat();
    let output = told.dump_to(&image, &args).stderr(Stdio::piped()).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", said(&output));
    let figure = |name: &str| {
        let text = fs::read_to_string(&stats).expect("figures");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value[name].as_u64().expect("a number")
    };
    assert!(figure("hooks") >= 50_000 && figure("frozen_time") >= figure("hooks"));
    told.hosts.assert_no_tables();
    told.guest.ended(Duration::from_secs(10));
    fs::remove_file(&stats).expect("figures");
    let ran = told.folder.file("ran").display().to_string();
    let (ready, running) = ("sleep 0.05", format!("sleep 0.05; echo $PC_HOOK $PC_PID > {ran}"));
    let args = ["--tcp-established", "--network-lock", "skip", "--on-ready", ready, "--on-running", &running];
    let output = told.restored_from(&image, &[&args[..], &["--stats", &stats_arg]].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert!(figure("hooks") >= 100_000);
    assert_eq!(fs::read_to_string(&ran).expect("it ran"), format!("on-running {}\n", told.guest.pid()));
    told.hosts.client_link(true);
    told.ends_echoing();
}

#[test]
fn a_hand_over_takes_connections_along_and_one_that_fails_lets_them_go_on_at_the_source() {
    let mut told = Told::echoing();
    let (give, take) = (told.hosts.move_addresses("give"), told.hosts.move_addresses("take"));
    let (dumped, restored, text) = told.handed_over(&format!("{take} && exit 3"), &give, None);
    assert_eq!((dumped, restored), (Some(1), Some(1)), "{text}");
    told.echoes();
    told.hosts.assert_no_tables();
    let (dumped, restored, text) = told.handed_over(&take, &give, None);
    assert_eq!((dumped, restored), (Some(0), Some(0)), "{text}");
    told.guest.ended(Duration::from_secs(10));
    let pid = fs::read_to_string(told.folder.file("pid")).expect("a pidfile").trim().parse().expect("a pid");
    told.guest = Guest::adopt(pid);
    told.at = Host::Two;
    told.ends_echoing();
}

#[test]
fn what_was_received_and_not_read_is_read_by_the_copy() {
    for v6 in [false, true] {
        let steps = ["receive:10", "wait:move", "receive:300000", "send:300000", "end"];
        let mut told = Told::start(v6, &steps);
        told.send(10);
        told.waits("move");
        told.send(60_000);
        let mut told = told.moved();
        told.send(60_000);
        let mut told = told.moved();
        told.goes_on("move");
        told.send(180_000);
        told.receive(300_000);
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.end();
    }
}

#[test]
fn what_was_not_acknowledged_reaches_the_client_from_the_copy() {
    for v6 in [false, true] {
        let steps = ["receive:10", "wait:cut", "send:70000", "wait:move", "receive:50000", "send:10", "end"];
        let mut told = Told::start(v6, &steps);
        told.send(10);
        told.waits("cut");
        told.hosts.client_link(false);
        told.goes_on("cut");
        told.waits("move");
        told.send(50_000); // waits on both sides
        let told = told.moved();
        told.hosts.client_link(true);
        let mut told = told.moved();
        told.goes_on("move");
        told.receive(70_010);
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.end();
    }
}

#[test]
fn a_writer_that_waits_for_room_goes_on_waiting() {
    let mut told = Told::start(false, &["receive:1", "wait:begin", "send:30000000", "end"]);
    told.send(1);
    told.goes_on("begin");
    std::thread::sleep(patient(Duration::from_millis(300)));
    let mut told = told.moved();
    told.receive(15_000_000);
    let mut told = told.moved();
    told.receive(15_000_000);
    told.client.shutdown(Shutdown::Write).expect("the connection lives");
    told.end();
}

#[test]
fn a_connection_whose_client_has_ended_is_in_close_wait_at_the_copy() {
    for v6 in [false, true] {
        let mut told = Told::start(v6, &["receive:10", "wait:move", "receive:5000", "end", "send:70000"]);
        told.send(10);
        told.waits("move");
        told.send(5000);
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.reaches("CLOSE-WAIT");
        let told = told.moved();
        told.reaches("CLOSE-WAIT");
        let mut told = told.moved();
        told.goes_on("move");
        told.receive(70_000);
        told.receive_end();
        told.end();
    }
}

#[test]
fn a_connection_that_the_process_has_ended_is_in_fin_wait_2_at_the_copy() {
    for v6 in [false, true] {
        let mut told = Told::start(v6, &["send:10", "shut-write", "wait:move", "receive:70000", "end"]);
        told.receive(10);
        told.receive_end();
        told.waits("move");
        told.reaches("FIN-WAIT-2");
        let told = told.moved();
        told.reaches("FIN-WAIT-2");
        let mut told = told.moved();
        told.send(70_000);
        told.goes_on("move");
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.end();
    }
}

#[test]
fn an_end_that_was_not_acknowledged_is_sent_by_the_copy() {
    for v6 in [false, true] {
        let steps = ["receive:10", "wait:cut", "send:5000", "shut-write", "wait:move", "receive:9", "end"];
        let mut told = Told::start(v6, &steps);
        told.send(10);
        told.waits("cut");
        told.hosts.client_link(false);
        told.goes_on("cut");
        told.waits("move");
        told.reaches("FIN-WAIT-1");
        let told = told.moved();
        told.reaches("FIN-WAIT-1");
        told.hosts.client_link(true);
        let mut told = told.moved();
        told.receive(5000);
        told.receive_end();
        told.send(9);
        told.goes_on("move");
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.end();
    }
}

#[test]
fn both_ends_that_were_sent_and_not_acknowledged_are_sent_and_received_by_the_copy() {
    for v6 in [false, true] {
        // The process ends after the client: LAST-ACK.
        let told = Told::start(v6, &["end", "wait:cut", "send:5000", "shut-write", "wait:move"]);
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.waits("cut");
        told.hosts.client_link(false);
        told.goes_on("cut");
        told.waits("move");
        told.reaches("LAST-ACK");
        let mut told = told.moved();
        told.reaches("LAST-ACK");
        told.hosts.client_link(true);
        told.receive(5000);
        told.receive_end();
        told.goes_on("move");
        told.end();
        // Both at once: CLOSING.
        let mut told =
            Told::start(v6, &["receive:10", "wait:cut", "send:5000", "shut-write", "wait:move", "end"]);
        told.send(10);
        told.waits("cut");
        told.hosts.client_deaf(true);
        told.goes_on("cut");
        told.waits("move");
        told.client.shutdown(Shutdown::Write).expect("the connection lives");
        told.reaches("CLOSING");
        let mut told = told.moved();
        told.reaches("CLOSING");
        told.hosts.client_deaf(false);
        told.receive(5000);
        told.receive_end();
        told.goes_on("move");
        told.end();
    }
}

#[test]
fn reading_that_was_shut_down_stays_so() {
    let mut told = Told::start(false, &["receive:10", "shut-read", "wait:move", "end", "send:10"]);
    told.send(10);
    told.waits("move");
    let mut told = told.moved();
    told.goes_on("move");
    told.receive(10);
    told.end();
}

#[test]
fn a_redis_client_sees_every_write_acknowledged_in_order_through_moves_there_and_back() {
    for v6 in [false, true] {
        let (hosts, address) = (Hosts::new(), service(v6, 6379));
        let guest = redis(&hosts, address);
        let stream = hosts.connect(address);
        moved_under(&hosts, guest, moves(), by_a_pipe(&hosts), |stop| sets_and_counts(stream, &stop));
    }
}

#[test]
fn a_memcached_client_sees_every_write_acknowledged_in_order_through_moves_there_and_back() {
    let (hosts, address) = (Hosts::new(), service(false, 11211));
    let mut memcached = hosts.command(Host::One, "memcached");
    let memcached =
        memcached.args(["-u", "root", "-l", &address.ip().to_string(), "-p", "11211", "-m", "64"]);
    let guest = Guest::start(memcached);
    let mut stream = hosts.connect(address);
    moved_under(&hosts, guest, moves(), by_a_pipe(&hosts), move |stop| {
        stream.write_all(b"set count 0 0 1\r\n0\r\n").expect("it lives");
        let mut stored = [0; 8];
        stream.read_exact(&mut stored).expect("an answer");
        assert_eq!(&stored, b"STORED\r\n");
        pipelined(&mut stream, &stop, |_| "incr count 1\r\n".to_owned(), |n| format!("{}\r\n", n + 1));
    });
}

#[test]
fn a_download_goes_on_through_moves() {
    const LEN: usize = 64 << 20;
    let (hosts, folder, address) = (Hosts::new(), Folder::new(), service(false, 8000));
    let file = Pattern::default().next(LEN);
    fs::write(folder.file("file"), &file).expect("a file");
    let mut server = hosts.command(Host::One, "/usr/bin/python3");
    let server = server.args(["-m", "http.server", "--bind", &address.ip().to_string(), "--directory"]);
    let guest = Guest::start(server.arg(folder.file("")).arg("8000"));
    let mut stream = hosts.connect(address);
    let got = Arc::new(AtomicU64::new(0));
    let moved = Arc::new(AtomicBool::new(false));
    let (progress, over) = (got.clone(), moved.clone());
    let client = std::thread::spawn(move || {
        stream.write_all(b"GET /file HTTP/1.0\r\n\r\n").expect("it lives");
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            answer.read_line(&mut line).expect("a head");
        }
        let mut body = vec![0; LEN];
        for (at, piece) in body.chunks_mut(1 << 20).enumerate() {
            answer.read_exact(piece).expect("the connection lives");
            progress.fetch_add(1, Ordering::Relaxed);
            // Ever slower, for as long as the moves take: what is half of what is left takes as long as that before.
            if !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(30) * 64 / (64 - at as u32));
            }
        }
        assert_eq!(answer.read(&mut [0]).expect("an end"), 0);
        body
    });
    wait_for("the download", Duration::from_secs(20), || got.load(Ordering::Relaxed) > 3);
    let guest = hosts.moved(guest, Host::One);
    let guest = hosts.moved(guest, Host::Two);
    assert!(got.load(Ordering::Relaxed) < 64, "it was through before the moves were");
    moved.store(true, Ordering::Relaxed);
    let body = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(body == file, "another file");
    hosts.assert_no_tables();
    drop(guest);
}
