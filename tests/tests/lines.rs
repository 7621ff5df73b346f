//! Hand-overs between two hosts over lines as they are: narrow, long, and lossy. A client on a third host writes to
//! the server that is moved all the while.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pc_tests::asking::{moved_under, redis, sets_and_counts};
use pc_tests::link::{Fault, Relay, Tool, key};
use pc_tests::net::{Host, Hosts, Pattern, service};
use pc_tests::{Folder, Guest, adopt_orphans, program};

/// Hands a guest over to the other host by pc-send and pc-recv, which hear each other so much later.
fn handed_over(hosts: &Hosts, mut guest: Guest, from: Host, late: Duration) -> Guest {
    adopt_orphans();
    let folder = Folder::new();
    let (key, pidfile) = (key(&folder, "key"), folder.file("pid").display().to_string());
    let addr = if from == Host::One { "10.77.0.2:7000" } else { "10.77.0.1:7000" };
    let (give, take) = (hosts.move_addresses("give"), hosts.move_addresses("take"));
    let mut recv = hosts.command(from.other(), program("pc-recv"));
    recv.args([addr, "--key-file", &key, "--"]).arg(program("pc-restore"));
    recv.args(["--handover", "--detach", "--new-pid-ns", "--tcp-established", "--pidfile", &pidfile]);
    recv.args(["--on-ready", &take, "--on-failed", &give]).stdin(Stdio::null());
    let mut recv = Tool::run(&mut recv, "pc-recv", &folder);
    let addr = recv.addr();
    let relay = hosts.on(from, move || Relay::start(&addr, Fault::Late(late)));
    let mut send = hosts.command(from, program("pc-send"));
    send.args([&relay.addr, "--key-file", &key, "--"]).arg(program("pc-dump"));
    send.args(["--handover", "--tcp-established", "--on-frozen", &give, "--on-resumed", &take]);
    send.arg(guest.arg()).stdin(Stdio::null());
    let mut send = Tool::run(&mut send, "pc-send", &folder);
    let codes = (send.code(), recv.code());
    assert_eq!(codes, (Some(0), Some(0)), "{} | {}", send.said(), recv.said());
    guest.ended(Duration::from_secs(10));
    let pid = fs::read_to_string(&pidfile).expect("a pidfile");
    Guest::adopt(pid.trim().parse().expect("a pid"))
}

#[test]
fn a_client_whose_packets_get_lost_loses_no_write_while_its_server_goes_a_long_way_there_and_back() {
    const LATE: Duration = Duration::from_millis(20);
    let (hosts, address) = (Hosts::new(), service(false, 6379));
    let guest = redis(&hosts, address);
    let stream = hosts.connect(address);
    hosts.lossy(2);
    let long_way = |guest, from| {
        let began = Instant::now();
        let guest = handed_over(&hosts, guest, from, LATE);
        // Welcome, Accepted, a round, Ready, Running: each has been both ways.
        assert!(began.elapsed() > LATE * 8, "{:?}: that was no long way", began.elapsed());
        guest
    };
    moved_under(&hosts, guest, 2, long_way, |stop| sets_and_counts(stream, &stop));
    let [to, from] = hosts.lost();
    println!("{to} packets to the client were lost, and {from} from it");
    assert!(to > 0 && from > 0, "{to} {from}: nothing was lost");
}

/// Bytes in redis, in megabytes.
const FILLING: usize = 24;

/// Puts as much into redis.
fn fill(stream: &mut TcpStream) {
    for i in 0..FILLING {
        let value = Pattern::default().next((1 << 20) + i);
        let head = format!("*3\r\n$3\r\nSET\r\n$6\r\nfill{i:02}\r\n${}\r\n", value.len());
        stream.write_all(head.as_bytes()).expect("it lives");
        stream.write_all(&value).expect("it lives");
        stream.write_all(b"\r\n").expect("it lives");
        let mut stored = [0; 5];
        stream.read_exact(&mut stored).expect("an answer");
        assert_eq!(&stored, b"+OK\r\n");
    }
}

#[test]
fn a_narrow_line_between_the_hosts_makes_a_hand_over_slow_and_not_wrong() {
    let (hosts, address) = (Hosts::new(), service(false, 6379));
    let guest = redis(&hosts, address);
    let mut stream = hosts.connect(address);
    fill(&mut stream);
    // 25 megabytes a second.
    hosts.shaped("200mbit");
    let narrow = |guest, from| {
        let began = Instant::now();
        let guest = handed_over(&hosts, guest, from, Duration::ZERO);
        let (took, (sent, waits)) = (began.elapsed(), hosts.shaped_bytes(from));
        println!("{sent} bytes in {took:?}, {waits} waits");
        assert!(sent > (FILLING as u64) << 20 && waits > 0, "it did not go over the line");
        assert!(took > Duration::from_millis(900), "{took:?}: the line was not narrow");
        guest
    };
    moved_under(&hosts, guest, 2, narrow, |stop| sets_and_counts(stream, &stop));
}
