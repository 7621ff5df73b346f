//! pc-dump against a guest that checks itself: what must leave the original unharmed, and what must be refused.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Tool, Writer, program, run, said, status, traces, wait_for};

fn sleeper() -> Guest {
    let guest = Guest::start(Command::new("sleep").arg("300"));
    let comm = format!("/proc/{}/comm", guest.pid());
    wait_for("exec of sleep", Duration::from_secs(5), || {
        fs::read_to_string(&comm).unwrap().trim() == "sleep"
    });
    // Not in the loader any more.
    wait_for("sleep sleeps", Duration::from_secs(5), || status(guest.pid(), "State").starts_with('S'));
    guest
}

fn dump_to(out: Stdio, pid: &str) -> Output {
    let mut tool = Command::new(program("pc-dump"));
    let tool = tool.args(["--once", "--leave-running", pid]).stdin(Stdio::null()).stdout(out);
    tool.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

/// Exit code, and one message that names the tool.
fn refused(output: &Output, code: i32, word: &str) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.starts_with("pc-dump: ") && text.contains(word), "{text:?} does not say {word:?}");
}

#[test]
fn a_guest_that_checks_itself_runs_on_through_twenty_dumps() {
    let writer = Writer::start();
    for _ in 0..20 {
        let output = dump_to(Stdio::piped(), &writer.guest.arg());
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(status(writer.guest.pid(), "TracerPid"), "0");
        writer.goes_on();
    }
    writer.end();
}

#[test]
fn a_dump_leaves_no_trace_in_the_original() {
    let guest = sleeper();
    let before = traces(guest.pid());
    let output = dump_to(Stdio::piped(), &guest.arg());
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(traces(guest.pid()), before);
}

#[test]
fn the_original_is_left_as_the_option_says() {
    let mut guest = sleeper();
    let pid = guest.arg();
    let output = run("pc-dump", &["--once", &pid]);
    assert!(output.status.success(), "{}", said(&output));
    let first = status(guest.pid(), "State");
    let stopped = || status(guest.pid(), "State").starts_with('T');
    wait_for("left stopped by default", Duration::from_secs(2), stopped);
    assert!(first.starts_with('T'), "stopped only after pc-dump had ended: {first}");
    guest.signal(Signal::SIGCONT);
    let output = run("pc-dump", &["--once", "--kill", &pid]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(guest.ended(Duration::from_secs(5)), None, "ended by a signal");
}

#[test]
fn a_stream_that_was_cut_or_bent_is_noticed() {
    let guest = sleeper();
    let stream = dump_to(Stdio::piped(), &guest.arg()).stdout;
    let folder = Folder::new();
    let path = folder.file("image");
    let show = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        run("pc-show", &[path.to_str().unwrap()]).status.code()
    };
    assert_eq!(show(&stream), Some(0));
    assert_eq!(show(&[]), Some(4), "empty");
    for part in 1..8 {
        assert_eq!(show(&stream[..stream.len() * part / 8]), Some(4), "cut at {part}/8");
        let mut bent = stream.clone();
        bent[stream.len() * part / 8] ^= 4;
        let code = show(&bent);
        assert!(matches!(code, Some(3 | 4)), "bent at {part}/8: {code:?}");
    }
}

#[test]
fn output_that_fails_leaves_the_original_running() {
    let writer = Writer::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    refused(&dump_to(full.into(), &writer.guest.arg()), 1, "No space left");
    writer.goes_on();

    let mut tool = Command::new(program("pc-dump"));
    let tool = tool.args(["--once", "--leave-running", &writer.guest.arg()]);
    let mut tool = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut reader = tool.stdout.take().unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    drop(reader);
    refused(&tool.wait_with_output().unwrap(), 1, "roken pipe");
    writer.goes_on();

    let script = "exec \"$0\" --once --leave-running \"$1\" >&-";
    let closed =
        Command::new("sh").args(["-c", script]).arg(program("pc-dump")).arg(writer.guest.arg()).output();
    assert!(!closed.as_ref().unwrap().status.success());
    writer.goes_on();
    writer.end();
}

#[test]
fn pc_dump_killed_at_any_moment_leaves_a_guest_that_goes_on() {
    let writer = Writer::start();
    // Else what is killed below could be a tool that has refused before it touched anything.
    let whole = dump_to(Stdio::null(), &writer.guest.arg());
    assert!(whole.status.success(), "{}", said(&whole));
    for i in 0..200 {
        let mut tool = Command::new(program("pc-dump"));
        let tool = tool.args(["--once", "--leave-running", &writer.guest.arg()]);
        let mut tool = tool.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(i * 150));
        let _ = tool.kill();
        tool.wait().unwrap();
        assert_eq!(writer.report(), "", "killed after {} us", i * 150);
        if i % 10 == 0 {
            writer.goes_on();
        }
    }
    writer.goes_on();
    writer.end();
}

#[test]
fn pids_that_cannot_be_dumped_are_refused_by_name() {
    let check = |pid: &str, word: &str| {
        let output = run("pc-dump", &["--once", pid]);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 6)), "{pid}: {code:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{pid}: {:?} does not say {word:?}", said(&output));
    };
    check("4194303", "no such process");
    check(&std::process::id().to_string(), "ancestor");
    let mut zombie = Command::new("true").spawn().unwrap();
    let state = || status(zombie.id() as i32, "State");
    wait_for("a zombie", Duration::from_secs(5), || state().starts_with('Z'));
    check(&zombie.id().to_string(), "zombie");
    zombie.wait().unwrap();
    if fs::metadata("/proc/2/exe").is_err()
        && fs::read_to_string("/proc/2/comm").is_ok_and(|c| c.trim() == "kthreadd")
    {
        check("2", "kernel thread");
    } else {
        println!("SKIP kernel thread: none is visible here");
    }
}

#[test]
fn another_users_process_is_refused_and_unharmed() {
    let guest = sleeper();
    // The build folder need not be open to others: the tool is copied to where it is.
    let folder = Folder::new();
    let tool = folder.file("pc-dump");
    fs::copy(program("pc-dump"), &tool).unwrap();
    let mut dump = Command::new(&tool);
    let dump = dump.args(["--once", &guest.arg()]).uid(65534).gid(65534).output().unwrap();
    refused(&dump, 1, "ermi");
    assert!(status(guest.pid(), "State").starts_with('S'));
}

/// As a shell's Ctrl-Z does it: the reader takes nothing, so that the guest is frozen when pc-dump is stopped.
#[test]
fn a_pc_dump_that_is_stopped_while_it_holds_the_guest_is_ended_and_the_guest_goes_on() {
    let writer = Writer::start();
    let folder = Folder::new();
    let mut dump = Tool::start("pc-dump", &["--once", "--kill", &writer.guest.arg()], &folder, |tool| {
        tool.stdout(Stdio::piped());
    });
    let held = || status(writer.guest.pid(), "State").starts_with('t');
    wait_for("the guest is frozen", Duration::from_secs(10), held);
    dump.signal(Signal::SIGSTOP);
    let ended = dump.ended();
    let text = fs::read_to_string(folder.file("pc-dump")).unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{text}");
    wait_for("what the guardian says", Duration::from_secs(10), || {
        fs::read_to_string(folder.file("pc-dump")).unwrap().contains("stood still")
    });
    assert_eq!(status(writer.guest.pid(), "TracerPid"), "0");
    writer.goes_on();
    writer.end();
}
