//! pc-send and pc-recv: what goes in comes out, whatever joins the ends and the machines.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pc_tests::link::{LIMIT, Tool, file, key, moves, noise, recv, send};
use pc_tests::{Folder, patient, program, wait_for};

#[test]
fn bytes_of_any_kind_and_number_arrive_bit_for_bit() {
    let folder = Folder::new();
    let key = key(&folder, "key");
    let keyed = ["--key-file", &key];
    let mixed = [noise(3_000_000, 1), vec![7; 9_000_000], noise(1_000_001, 2)].concat();
    for input in [&b""[..], b"x", &noise(262_144, 3), &noise(262_145, 4), &mixed] {
        moves(&folder, input, &[], &[]);
        moves(&folder, input, &keyed, &keyed);
        let all = [&keyed[..], &["--streams", "5", "--compress=3"]].concat();
        moves(&folder, input, &keyed, &all);
    }
}

#[test]
fn a_command_is_joined_in_both_directions() {
    let folder = Folder::new();
    let input = noise(5_000_000, 5);
    let path = file(&folder, "input", &input);
    let mut receiver = recv(&folder, &["--compress", "--", "cat"]);
    let mut sender = send(&folder, Some(&path), &receiver.addr(), &["--streams", "3"]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)));
    assert!(sender.out() == input && receiver.out().is_empty());

    // A thousand questions and answers, one after the other: nothing is held back.
    let asks = "for i in $(seq 1000); do echo $i; read a; [ \"$a\" = $((i * 2)) ] || exit 9; done";
    let answers = "while read n; do echo $((n * 2)); done";
    let began = Instant::now();
    let mut receiver = recv(&folder, &["--", "bash", "-c", answers]);
    let mut sender = send(&folder, None, &receiver.addr(), &["--", "bash", "-c", asks]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)), "{}", sender.said());
    assert!(began.elapsed() < patient(Duration::from_secs(30)));
}

#[test]
fn a_reader_that_does_not_read_costs_neither_side_more_memory_than_its_window() {
    let folder = Folder::new();
    let mut receiver = recv(&folder, &["--", "sleep", "300"]);
    let endless = Path::new("/dev/zero");
    let mut sender = send(&folder, Some(endless), &receiver.addr(), &["--streams", "4", "--reconnect", "9"]);
    let read = |tool: &Tool| {
        let io = fs::read_to_string(format!("/proc/{}/io", tool.child.id())).expect("its figures");
        io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok()).expect("rchar")
    };
    // 32 MiB are under way, and nothing more is read.
    let mut before = 0;
    wait_for("the sender stands still", LIMIT, || {
        std::thread::sleep(Duration::from_millis(500));
        let now = read(&sender);
        std::mem::replace(&mut before, now) == now && now > 32 << 20
    });
    for tool in [&sender, &receiver] {
        let most = pc_tests::status(tool.child.id() as i32, "VmHWM");
        let kib: u64 = most.trim_end_matches(" kB").trim().parse().expect("a number");
        assert!(kib < 96 << 10, "{most}");
    }
    sender.signal(Signal::SIGTERM);
    assert_eq!(sender.code(), Some(7), "{}", sender.said());
    receiver.signal(Signal::SIGTERM);
    receiver.code();
}

#[test]
fn ipv6_unix_and_vsock_addresses_work() {
    let folder = Folder::new();
    let path = file(&folder, "input", b"hello");
    let socket = folder.file("socket");
    let unix = format!("unix:{}", socket.display());
    let mut addrs = vec!["[::1]:0".to_owned(), "localhost:0".to_owned(), unix];
    match vsock_loopback() {
        true => addrs.push("vsock:1:70217".to_owned()),
        false => println!("SKIP vsock addresses: no vsock loopback in this kernel"),
    }
    for addr in addrs {
        let mut receiver = Tool::start("pc-recv", &folder, None, &[&addr]);
        let at = receiver.addr();
        if addr.starts_with("unix") {
            assert_eq!(fs::metadata(&socket).expect("the socket").permissions().mode() & 0o777, 0o600);
        }
        let mut sender = send(&folder, Some(&path), &at, &[]);
        assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)), "{addr}: {}", sender.said());
        assert_eq!(receiver.out(), b"hello");
    }
    assert!(!socket.exists(), "the socket is removed");
}

/// Whether this kernel can connect to itself by vsock.
fn vsock_loopback() -> bool {
    let socat =
        Command::new("socat").args(["-u", "VSOCK-LISTEN:70216", "/dev/null"]).stderr(Stdio::null()).spawn();
    let Ok(mut listener) = socat else { return false };
    std::thread::sleep(patient(Duration::from_millis(300)));
    let try_it = Command::new("socat")
        .args(["-u", "/dev/null", "VSOCK-CONNECT:1:70216"])
        .stderr(Stdio::null())
        .status();
    let _ = listener.kill();
    let _ = listener.wait();
    try_it.is_ok_and(|status| status.success())
}

#[test]
fn serve_takes_many_up_to_its_limit_and_ends_with_a_signal() {
    let folder = Folder::new();
    let mut receiver = recv(&folder, &["--serve=2", "--", "cat"]);
    let addr = receiver.addr();
    let start = |name: &str| {
        let out = folder.file(name);
        let mut command = Command::new(program("pc-send"));
        command.args([&addr]).stdin(Stdio::piped()).stdout(File::create(&out).expect("a file"));
        command.stderr(Stdio::null()).spawn().expect("pc-send starts")
    };
    let (mut one, mut two) = (start("1"), start("2"));
    for (child, name) in [(&mut one, "1"), (&mut two, "2")] {
        child.stdin.as_mut().expect("a pipe").write_all(name.as_bytes()).expect("a write");
        wait_for("both are served at once", LIMIT, || {
            fs::read(folder.file(name)).expect("out") == name.as_bytes()
        });
    }
    let mut third = send(&folder, None, &addr, &[]);
    assert_eq!(third.code(), Some(5));
    assert!(third.said().contains("2 transfers take place"), "{}", third.said());
    drop(one.stdin.take());
    assert!(one.wait().expect("wait").success());
    wait_for("a place is free", LIMIT, || send(&folder, None, &addr, &[]).code() == Some(0));
    drop(two.stdin.take());
    assert!(two.wait().expect("wait").success());
    receiver.signal(Signal::SIGTERM);
    assert_eq!(receiver.code(), Some(0), "{}", receiver.said());
}

#[test]
fn the_rate_is_kept_and_compression_saves_what_it_can() {
    let folder = Folder::new();
    let began = Instant::now();
    moves(&folder, &noise(1_500_000, 16), &[], &["--rate", "1MB"]);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1000) && took < patient(Duration::from_secs(12)), "{took:?}");

    let stats = folder.file("stats").display().to_string();
    let wire = |input: &[u8]| {
        // A line slower than the packers, so that none is left out.
        moves(&folder, input, &[], &["--compress", "--rate", "2MB", "--stats", &stats]);
        let figures: serde_json::Value =
            serde_json::from_slice(&fs::read(&stats).expect("statistics")).expect("JSON");
        figures["wire_bytes_sent"].as_u64().expect("a number") as usize
    };
    let text: Vec<u8> = (0..400_000).flat_map(|n: u32| format!("line {n}\n").into_bytes()).collect();
    assert!(wire(&text) < text.len() / 2);
    let noise = noise(2_000_000, 17);
    assert!(wire(&noise) < noise.len() + noise.len() / 100, "what does not shrink is stored");
}

#[test]
fn what_is_no_socket_at_the_path_is_left_as_it_is_and_a_dead_socket_goes() {
    let folder = Folder::new();
    let path = folder.file("place");
    let address = format!("unix:{}", path.display());
    let listen = || {
        let mut tool = Command::new(program("pc-recv"));
        tool.arg(&address).stdin(Stdio::null()).stdout(Stdio::null()).output().expect("pc-recv runs")
    };
    fs::write(&path, "precious").expect("a file");
    let output = listen();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && text.contains("no socket"), "{:?}: {text}", output.status);
    assert_eq!(fs::read(&path).expect("still there"), b"precious");
    fs::remove_file(&path).expect("removed");
    // A socket of somebody who is gone.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let mut receiver = Tool::start("pc-recv", &folder, None, &[&address]);
    wait_for("pc-recv listens", Duration::from_secs(10), || receiver.said().contains("listening"));
    let mut sender = send(&folder, Some(Path::new("/dev/null")), &address, &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)), "{}", sender.said());
    assert!(!path.exists(), "its own goes with it");
}
