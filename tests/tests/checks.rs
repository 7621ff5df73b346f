//! `pc-dump --check`: what it accepts is restored, what it refuses is named before anything is touched, and what to know
//! is said.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pc_tests::{Folder, Guest, dump_to_file, program, restored, run, said, wait_for};

type Arguments = fn(&Folder) -> Vec<PathBuf>;

/// How each guest program is started that takes more than a report, or a report and a folder.
const GUESTS: [(&str, Arguments); 12] = [
    ("guest-apart", |folder| {
        let file = folder.file("file");
        fs::write(&file, "x").unwrap();
        vec![folder.file("report"), file]
    }),
    ("guest-blocked", |folder| vec![folder.file("report")]),
    ("guest-direct", |folder| {
        ["data", "report"]
            .map(|name| folder.file(name))
            .into_iter()
            .chain(["16", "16", "--late"].map(PathBuf::from))
            .collect()
    }),
    ("guest-edges", |folder| vec![folder.file("report"), "64".into(), "moved".into()]),
    ("guest-fds", |folder| vec![folder.file("report"), folder.file("")]),
    ("guest-holes", |folder| {
        let below = folder.file("below");
        fs::write(&below, vec![7; 64 << 12]).unwrap();
        vec![folder.file("report"), below]
    }),
    ("guest-memory", |folder| vec![folder.file("report"), folder.file(""), "settings".into()]),
    ("guest-odd", |folder| vec!["dates".into(), folder.file("report")]),
    ("guest-shared", |folder| vec![folder.file("report")]),
    ("guest-state", |folder| vec![folder.file("report"), folder.file("")]),
    ("guest-tcp", |folder| vec![folder.file("report"), "127.0.0.1:0".into(), "echo".into()]),
    ("guest-writer", |folder| vec![folder.file("report")]),
];

/// Starts a guest and gives it the time to have all that it makes.
fn started(name: &str, arguments: &[PathBuf], folder: &Folder) -> Guest {
    let mut guest = Guest::start(Command::new(program(name)).args(arguments));
    let began = std::time::Instant::now();
    while !folder.file("report.ready").exists() && began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(10));
    }
    if !Path::new(&format!("/proc/{}/exe", guest.pid())).exists() {
        let code = guest.ended(Duration::from_secs(1));
        let report = fs::read_to_string(folder.file("report")).unwrap_or_default();
        panic!("{name} has ended: {code:?} {report}");
    }
    guest
}

#[test]
fn what_the_check_accepts_of_every_guest_is_not_refused_by_the_restore() {
    let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin")).unwrap();
    let all = all.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned());
    // Puppets carry out a plan of births: they are no process to be moved.
    for name in all.filter(|name| name.starts_with("guest-") && name != "guest-puppets") {
        let usual: Arguments = |folder| vec![folder.file("report"), folder.file("")];
        let own = GUESTS.iter().find(|(guest, _)| *guest == name);
        let arguments = own.map_or(usual, |(_, arguments)| *arguments);
        let folder = Folder::new();
        let mut guest = started(&name, &arguments(&folder), &folder);
        let check = run("pc-dump", &["--check", &guest.arg()]);
        let first = String::from_utf8_lossy(&check.stdout).lines().next().map(str::to_owned);
        if own.is_none() && check.status.code() == Some(6) {
            continue;
        }
        let movable = Some(format!("pid {} can be moved", guest.pid()));
        assert!(check.status.success() && first == movable, "{name}: {}: {}", check.status, said(&check));
        let image = folder.file("image");
        dump_to_file(&guest, &image, &["--kill"]);
        guest.ended(Duration::from_secs(10));
        drop(restored(&image, &["--leave-stopped"]));
    }
}

/// A process that does as a script says, and then waits.
fn python(folder: &Folder, script: &str) -> Guest {
    let ready = folder.file("ready");
    let script = format!(
        "import ctypes, os, socket, sys, time\nos.closerange(3, 1000)\n{script}\nopen({ready:?}, 'w').close()\n\
         while True: time.sleep(100)"
    );
    let guest = Guest::start(Command::new("python3").args(["-c", &script]));
    wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
    guest
}

fn refused(guest: &Guest, words: &[&str]) {
    for mode in ["--check", "--once", "--rounds=2"] {
        let output = run("pc-dump", &[mode, &guest.arg()]);
        let text = said(&output);
        let named = words.iter().all(|word| text.contains(word));
        assert!(output.status.code() == Some(6) && named, "{mode}: {:?}: {text}", output.status);
    }
}

#[test]
fn a_tcp_socket_with_keys_is_refused_by_the_check_too_whatever_its_state() {
    // struct tcp_md5sig, for 127.0.0.2.
    let keys = "import struct\n\
        def key(s, text):\n    \
            head = struct.pack('=HH4s120xBBHi', 2, 0, socket.inet_aton('127.0.0.2'), 0, 0, len(text), 0)\n    \
            s.setsockopt(6, 14, head + text.ljust(80, b'\\0'))\n";
    let states = [
        ("s = socket.create_server(('127.0.0.1', 0))", "a TCP socket with keys (TCP-MD5)"),
        (
            "l = socket.create_server(('127.0.0.1', 0))\ns = socket.create_connection(l.getsockname())",
            "a TCP socket with keys (TCP-MD5)",
        ),
        ("s = socket.socket()\ns.bind(('127.0.0.1', 0))", "keys of TCP-MD5"),
        ("s = socket.socket()", "keys of TCP-MD5"),
    ];
    for (state, words) in states {
        for (then, code) in [("", 6), ("\nkey(s, b'')", 0)] {
            let folder = Folder::new();
            let guest = python(&folder, &format!("{keys}{state}\nkey(s, b'secret'){then}"));
            for modes in [&["--check"][..], &["--once", "--leave-running"]] {
                let output = run("pc-dump", &[modes, &["--tcp-close", &guest.arg()]].concat());
                let text = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.code() == Some(code) && text.contains(words) == (code == 6),
                    "{state}{then}, {modes:?}: {:?}: {text}",
                    output.status
                );
            }
        }
    }
}

/// timer_create(2) on the clock of clock_getcpuclockid(3).
fn timer_on_cpu_of(pid: &str) -> String {
    format!(
        "t = ctypes.c_int()\nassert ctypes.CDLL(None).syscall(222, (~{pid} << 3) | 2, 0, ctypes.byref(t)) == 0"
    )
}

#[test]
fn a_timer_on_the_cpu_time_of_another_process_is_refused_by_the_check_too_and_on_its_own_moves() {
    let folder = Folder::new();
    refused(
        &python(&folder, &timer_on_cpu_of("os.getppid()")),
        &["its timer 0 runs on the CPU time of process"],
    );
    let folder = Folder::new();
    let mut guest = python(&folder, &timer_on_cpu_of("os.getpid()"));
    let timers = |guest: &Guest| fs::read_to_string(format!("/proc/{}/timers", guest.pid())).unwrap();
    let before = timers(&guest);
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(10));
    assert_eq!(timers(&restored(&image, &[])), before);
}

#[test]
fn a_32_bit_program_is_refused_by_the_check_too() {
    let folder = Folder::new();
    let path = folder.file("program");
    fs::write(&path, elf_32()).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let guest = Guest::start(&mut Command::new(&path));
    wait_for("the program", Duration::from_secs(10), || {
        fs::read_link(format!("/proc/{}/exe", guest.pid())).is_ok_and(|exe| exe == path)
    });
    refused(&guest, &["it is a 32-bit program"]);
}

/// A program of i386 that calls pause(2) for ever.
fn elf_32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov eax, 29; int 0x80; jmp back
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let len = HEADERS + code.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |elf: &mut Vec<u8>, all: &[u16]| all.iter().for_each(|half| elf.extend(half.to_le_bytes()));
    let words = |elf: &mut Vec<u8>, all: &[u32]| all.iter().for_each(|word| elf.extend(word.to_le_bytes()));
    halves(&mut elf, &[2, 3]); // an executable, of i386
    words(&mut elf, &[1, BASE + HEADERS, 52, 0, 0]);
    halves(&mut elf, &[52, 32, 1, 40, 0, 0]);
    words(&mut elf, &[1, 0, BASE, BASE, len, len, 5, 0x1000]); // PT_LOAD, readable and executable
    elf.extend(code);
    elf
}

#[test]
fn the_check_says_what_a_move_needs_and_what_will_be_different() {
    let folder = Folder::new();
    let script = "l = socket.create_server(('127.0.0.1', 0))\nc = socket.create_connection(l.getsockname())\n\
                  s, _ = l.accept()\nl.close()";
    let guest = python(&folder, script);
    let check = |args: &[&str]| {
        let output = run("pc-dump", &[&["--check"], args, &[&guest.arg()]].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = check(&["--tcp-established"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("needs pc-restore --tcp-established: descriptor 4 is a TCP connection from"),
        "{text}"
    );
    let (code, text) = check(&["--tcp-close"]);
    assert!(code == Some(0) && text.contains("note: descriptor 4 is a TCP connection from"), "{text}");

    let (code, text) = check(&["--json", "--tcp-established"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["movable"]), (Some(0), &serde_json::json!(true)), "{text}");
    assert_eq!(json["needs"][0]["option"], "pc-restore --tcp-established", "{text}");
    let (code, text) = check(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["movable"]), (Some(6), &serde_json::json!(false)), "{text}");
    assert!(json["refusals"].as_array().unwrap().iter().any(|it| it["descriptor"] == 4), "{text}");
}

#[test]
fn the_check_names_pipes_that_reach_outside_with_the_option_to_type() {
    let (_read, write) = std::io::pipe().unwrap();
    let mut command = Command::new("sleep");
    let null = || File::open("/dev/null").unwrap();
    let guest = Guest::start_as_is(command.arg("60").stdin(null()).stdout(write).stderr(Stdio::null()));
    let output = run("pc-dump", &["--check", &guest.arg()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("pc-restore --attach pipe:1=WHERE"), "{text}");
}

/// A library that was replaced while it was in use.
#[test]
fn what_has_one_reason_is_said_in_one_line_with_all_its_places_and_the_way_out() {
    let folder = Folder::new();
    let library = folder.file("libreplaced.so");
    let script = format!(
        "import _ctypes, shutil, glob\npath = glob.glob('/lib*/*/libm.so.6')[0]\nshutil.copy(path, {library:?})\n\
         ctypes.CDLL({library:?})\na = open({library:?})\nb = open({library:?})\nos.unlink({library:?})"
    );
    let guest = python(&folder, &script);
    let output = run("pc-dump", &["--check", &guest.arg()]);
    let text = said(&output);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("libreplaced.so (deleted)")).collect();
    assert!(output.status.code() == Some(6) && lines.len() == 1, "{text}");
    let places =
        lines[0].contains(" mappings, descriptors 3, 4 (") && lines[0].contains("start the program again");
    assert!(places, "{text}");
    assert!(lines[0].starts_with("pc-dump: pid "), "{text}");
}

/// Takes a lock for a while over and over, and is without it in between.
const LOCKS: &str = "import fcntl\nf = open(sys.executable)\ndef locks():\n    while True:\n        \
                     fcntl.flock(f, fcntl.LOCK_SH)\n        time.sleep(0.04)\n        fcntl.flock(f, fcntl.LOCK_UN)\n        \
                     time.sleep(0.02)";

#[test]
fn a_moment_without_what_passes_is_waited_for_before_the_process_is_touched_and_at_the_stop() {
    let folder = Folder::new();
    let script =
        format!("import sys\n{LOCKS}\nimport threading\nthreading.Thread(target=locks, daemon=True).start()");
    let guest = python(&folder, &script);
    for mode in [&["--once"][..], &["--rounds=3"]].repeat(4) {
        let output = run("pc-dump", &[mode, &["--leave-running", "--retry=30s", &guest.arg()]].concat());
        assert!(output.status.success(), "{mode:?}: {:?}: {}", output.status, said(&output));
    }
    let held =
        python(&Folder::new(), "import fcntl, sys\nf = open(sys.executable)\nfcntl.flock(f, fcntl.LOCK_SH)");
    let began = std::time::Instant::now();
    let output = run("pc-dump", &["--once", "--retry=500ms", &held.arg()]);
    let text = said(&output);
    assert!(output.status.code() == Some(6) && text.contains("a lock or lease"), "{text}");
    assert!(
        began.elapsed() >= Duration::from_millis(500) && text.contains("it may pass: --retry DUR"),
        "{text}"
    );
    // What does not pass is not waited for.
    let stays = python(&Folder::new(), "os.pidfd_open(os.getpid())");
    let began = std::time::Instant::now();
    let output = run("pc-dump", &["--once", "--retry=60s", &stays.arg()]);
    assert!(
        output.status.code() == Some(6) && began.elapsed() < Duration::from_secs(20),
        "{}",
        said(&output)
    );
}

/// sqlite's message: a transaction is open.
#[test]
fn an_open_transaction_of_sqlite_is_told_as_one_and_waited_for() {
    let folder = Folder::new();
    let base = folder.file("app.db");
    let script = format!(
        "import sqlite3, threading\nbase = sqlite3.connect({base:?}, check_same_thread=False, isolation_level=None)\n\
         base.execute('create table t (x)')\nbase.execute('begin immediate')\n\
         def commit():\n    time.sleep(4)\n    base.execute('commit')\n\
         threading.Thread(target=commit).start()"
    );
    let guest = python(&folder, &script);
    let output = run("pc-dump", &["--check", &guest.arg()]);
    let text = said(&output);
    assert!(output.status.code() == Some(6) && text.contains("transaction"), "{text}");
    let output = run("pc-dump", &["--once", "--leave-running", "--retry=60s", &guest.arg()]);
    assert!(output.status.success(), "{}", said(&output));
}
