//! Who may speak to pc-recv: keys, and everybody who has none.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use pc_tests::link::{Fault, Relay, Tool, file, key, noise, recv, run, send};
use pc_tests::{Folder, patient};

#[test]
fn without_a_key_only_the_loopback_is_used() {
    let folder = Folder::new();
    for args in [&["pc-recv", ":0"][..], &["pc-recv", "0.0.0.0:0"], &["pc-send", "192.0.2.1:9", "--", "true"]]
    {
        let output = run(args[0], &args[1..]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("--key-file") && said.contains("--plaintext"), "{said}");
    }
    let path = file(&folder, "input", b"hello");
    let mut receiver = Tool::start("pc-recv", &folder, None, &["0.0.0.0:0", "--plaintext"]);
    let port = receiver.addr().rsplit(':').next().expect("a port").to_owned();
    let mut sender = send(&folder, Some(&path), &format!("127.0.0.1:{port}"), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)));
}

#[test]
fn key_files_are_private_new_and_never_overwritten() {
    let folder = Folder::new();
    let path = key(&folder, "key");
    assert_eq!(fs::metadata(&path).expect("the key").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&path).expect("the key");
    assert_eq!(run("pc-recv", &["--new-key", &path]).status.code(), Some(1));
    assert_eq!(fs::read(&path).expect("the key"), before);
    assert_ne!(fs::read(key(&folder, "other")).expect("a key"), before);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
    for (tool, addr) in [("pc-recv", "127.0.0.1:0"), ("pc-send", "127.0.0.1:1")] {
        let output = run(tool, &[addr, "--key-file", &path, "--", "true"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("others can use it"), "{said}");
    }
}

/// Sends bytes to a listener and waits until it hangs up.
fn intrude(addr: &str, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(addr).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

#[test]
fn intruders_are_named_and_dropped_and_the_true_sender_still_gets_in() {
    let folder = Folder::new();
    let (right, wrong) = (key(&folder, "key"), key(&folder, "wrong"));
    let path = file(&folder, "input", b"the true one");
    let began = folder.file("began");
    let command = format!("touch {}; exec cat", began.display());
    let keyed = ["--key-file", right.as_str()];

    // A session is recorded on its way, to be played again later.
    let mut first = recv(&folder, &keyed);
    let relay = Relay::start(&first.addr(), Fault::None);
    let mut sender = send(&folder, Some(&path), &relay.addr, &keyed);
    assert_eq!((sender.code(), first.code()), (Some(0), Some(0)));
    let recorded = relay.recorded();
    assert!(recorded.len() > 100);
    let holds = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
    assert!(!holds(&recorded, b"the true one"), "whoever listens on the line reads nothing");

    let mut receiver = recv(&folder, &[&keyed[..], &["--", "sh", "-c", &command]].concat());
    let addr = receiver.addr();
    drop(TcpStream::connect(&addr).expect("a port scan"));
    intrude(&addr, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    intrude(&addr, &vec![0; 65_536]);
    intrude(&addr, &noise(100_000, 9));
    intrude(&addr, b"\x16\x03\x01\x02\x00\x01\x00");
    intrude(&addr, &recorded);
    intrude(&addr, &recorded[..30]);
    let mut flipped = recorded.clone();
    flipped[20] ^= 1;
    intrude(&addr, &flipped);
    let said_to = |args: &[&str]| {
        let mut sender = send(&folder, Some(&path), &addr, args);
        assert_eq!(sender.code(), Some(5));
        sender.said()
    };
    assert!(said_to(&["--key-file", &wrong]).contains("handshake"));
    assert!(said_to(&[]).contains("a key is needed"));
    let half_open = TcpStream::connect(&addr).expect("half-open");
    let mut slow = TcpStream::connect(&addr).expect("slow-loris");
    slow.write_all(b"\x89P").expect("the first bytes");
    assert!(!began.exists(), "nothing is started for an intruder");

    // The true one gets in beside those that still linger.
    let mut sender = send(&folder, Some(&path), &addr, &keyed);
    assert_eq!((sender.code(), receiver.code()), (Some(0), Some(0)), "{}", receiver.said());
    assert_eq!(sender.out(), b"the true one");
    drop((half_open, slow));
    let said = receiver.said();
    for named in [
        "port scan",
        "HTTP",
        "TLS",
        "replay",
        "does not hold the key",
        "without a key",
        "language of pc-send",
    ] {
        assert!(said.contains(named), "{named} is not in the log:\n{said}");
    }
}

#[test]
fn a_sender_gives_nothing_to_who_does_not_hold_the_key() {
    let folder = Folder::new();
    let key = key(&folder, "key");
    let path = file(&folder, "input", b"a secret of the memory");
    let began = folder.file("began");
    let command = format!("touch {}; cat {}", began.display(), path.display());
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n", &[0; 4096], &noise(4096, 21)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let mut sender = send(&folder, None, &addr, &["--key-file", &key, "--", "sh", "-c", &command]);
        let (mut socket, _) = listener.accept().expect("a connection");
        socket.set_read_timeout(Some(patient(Duration::from_millis(500)))).expect("a time limit");
        let mut heard = [0; 4096];
        let first = socket.read(&mut heard).expect("a greeting");
        socket.write_all(answer).expect("a write");
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        drop(socket);
        assert_eq!(sender.code(), Some(5), "{}", sender.said());
        let heard = [&heard[..first], &rest].concat();
        assert!(heard.len() < 200, "no more than a handshake: {} bytes", heard.len());
        assert!(!began.exists(), "nothing is started for an impostor");
    }
}

#[test]
fn who_is_slow_to_greet_is_dropped_in_time() {
    let folder = Folder::new();
    let receiver = recv(&folder, &["--", "true"]);
    let addr = receiver.addr();
    let mut silent = TcpStream::connect(&addr).expect("a connection");
    let mut drips = TcpStream::connect(&addr).expect("a connection");
    let began = Instant::now();
    // A good greeting, then a Join byte by byte: each in time, all together not.
    drips.write_all(b"\x89PCL\n\0\0\0").expect("the greeting");
    let mut cut = None;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(500));
        if drips.write_all(b"\x01").is_err() {
            cut = Some(began.elapsed());
            break;
        }
    }
    assert!(cut.expect("it is cut off") < patient(Duration::from_secs(15)));
    silent.set_read_timeout(Some(patient(Duration::from_secs(1)))).expect("a time limit");
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
    assert!(receiver.said().contains("silent or slow for too long"), "{}", receiver.said());
    // Two hundred connections that say nothing do not keep the true one out.
    let crowd: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(&addr).ok()).collect();
    let mut sender = send(&folder, None, &addr, &[]);
    assert_eq!(sender.code(), Some(0), "{}", sender.said());
    drop(crowd);
}
