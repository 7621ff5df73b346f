//! pc-send and pc-recv over loopback, with a relay between them that cuts, stalls, damages and records.

#![forbid(unsafe_code)]

#[path = "links/relay.rs"]
mod relay;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_tests::{Folder, program, wait_for};
use relay::{Fault, Relay};

const LIMIT: Duration = Duration::from_secs(60);

/// A tool that runs, its output and talk in files.
struct Tool {
    child: Child,
    out: PathBuf,
    talk: PathBuf,
}

impl Tool {
    fn start(name: &str, folder: &Folder, input: Option<&Path>, args: &[&str]) -> Tool {
        let (out, talk) = (folder.file(&format!("{name}.out")), folder.file(&format!("{name}.talk")));
        let mut command = Command::new(program(name));
        command.args(args).stdout(File::create(&out).expect("a file"));
        command.stderr(File::create(&talk).expect("a file"));
        match input {
            Some(path) => command.stdin(File::open(path).expect("the input")),
            None => command.stdin(Stdio::null()),
        };
        Tool { child: command.spawn().expect("the tool starts"), out, talk }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.talk).unwrap_or_default()
    }

    fn out(&self) -> Vec<u8> {
        fs::read(&self.out).expect("the output")
    }

    /// Where pc-recv listens.
    fn addr(&self) -> String {
        let mut addr = None;
        wait_for("pc-recv listens", LIMIT, || {
            let said = self.said();
            let line = said.lines().find_map(|line| line.strip_prefix("pc-recv: listening on "));
            addr = line.filter(|_| said.ends_with('\n')).map(str::to_owned);
            addr.is_some() || !said.is_empty() && said.ends_with('\n')
        });
        addr.unwrap_or_else(|| panic!("pc-recv does not listen: {}", self.said()))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the tool is there");
    }

    fn status(&mut self) -> ExitStatus {
        let mut status = None;
        let talk = self.talk.clone();
        wait_for(&format!("the end of a tool that said {}", talk.display()), LIMIT, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("a status")
    }

    /// Its exit code; 0 is 0.
    fn code(&mut self) -> Option<i32> {
        self.status().code()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// pc-recv on a free port of the loopback.
fn recv(folder: &Folder, args: &[&str]) -> Tool {
    Tool::start("pc-recv", folder, None, &[&["127.0.0.1:0"], args].concat())
}

fn send(folder: &Folder, input: Option<&Path>, addr: &str, args: &[&str]) -> Tool {
    Tool::start("pc-send", folder, input, &[&[addr], args].concat())
}

fn run(name: &str, args: &[impl AsRef<OsStr>]) -> Output {
    Command::new(program(name)).args(args).stdin(Stdio::null()).output().expect("the tool runs")
}

/// Bytes that do not compress, the same ones for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

fn file(folder: &Folder, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.file(name);
    fs::write(&path, bytes).expect("a file");
    path
}

fn key(folder: &Folder, name: &str) -> String {
    let path = folder.file(name).display().to_string();
    assert!(run("pc-recv", &["--new-key", &path]).status.success());
    path
}

/// One way and whole: `input` goes through, both end with 0.
fn moves(folder: &Folder, input: &[u8], recv_args: &[&str], send_args: &[&str]) -> (Tool, Tool) {
    let path = file(folder, "input", input);
    let mut receiver = recv(folder, recv_args);
    let mut sender = send(folder, Some(&path), &receiver.addr(), send_args);
    let codes = (sender.code(), receiver.code());
    assert_eq!(codes, (Some(0), Some(0)), "{}{}", sender.said(), receiver.said());
    assert!(receiver.out() == input, "{} bytes came of {}", receiver.out().len(), input.len());
    (sender, receiver)
}

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
    assert!(began.elapsed() < Duration::from_secs(30));
}

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
    assert!(began.elapsed() < Duration::from_secs(15));

    let path = file(&folder, "input", &noise(50_000_000, 6));
    let mut receiver = recv(&folder, &["--", "head", "-c", "10"]);
    let mut sender = send(&folder, Some(&path), &receiver.addr(), &[]);
    assert_eq!((sender.code(), receiver.code()), (Some(1), Some(0)));
    assert!(sender.said().contains("took only part"), "{}", sender.said());
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
    std::thread::sleep(Duration::from_millis(300));
    let try_it = Command::new("socat")
        .args(["-u", "/dev/null", "VSOCK-CONNECT:1:70216"])
        .stderr(Stdio::null())
        .status();
    let _ = listener.kill();
    let _ = listener.wait();
    try_it.is_ok_and(|status| status.success())
}

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
    assert!(cut.expect("it is cut off") < Duration::from_secs(15));
    silent.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
    assert!(receiver.said().contains("silent or slow for too long"), "{}", receiver.said());
    // Two hundred connections that say nothing do not keep the true one out.
    let crowd: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(&addr).ok()).collect();
    let mut sender = send(&folder, None, &addr, &[]);
    assert_eq!(sender.code(), Some(0), "{}", sender.said());
    drop(crowd);
}

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
    assert!(began.elapsed() < Duration::from_secs(20));
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
    let mut receiver = recv(&folder, &["--timeout", "2"]);
    let relay = Relay::start(&receiver.addr(), Fault::Stall { connection: 0, after: 1_000_000 });
    let began = Instant::now();
    let mut sender = send(&folder, Some(&path), &relay.addr, &["--timeout", "2"]);
    assert_eq!((sender.code(), receiver.code()), (Some(5), Some(5)));
    assert!(began.elapsed() < Duration::from_secs(20));
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
    assert!(took > Duration::from_millis(1000) && took < Duration::from_secs(12), "{took:?}");

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
