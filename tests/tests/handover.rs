//! The two-way hand-over: the original ends once its copy runs, and runs on if none will.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pc_tests::handing::{Blow, Ended, HandOver, Part, SAME_PID, Way, When, state};
use pc_tests::{
    Alone, Folder, Guest, Patience, Tool, Writer, descriptors, is_stopped, patient, patient_option, program,
    said, sleeper, status, strays, wait_for,
};

/// The copy that pc-restore has told of in `pid`; the original was ended.
fn adopted(mut original: Guest, folder: &Folder) -> Guest {
    let pid = fs::read_to_string(folder.file("pid")).expect("a pidfile");
    original.ended(Duration::from_secs(10));
    Guest::adopt(pid.trim().parse().expect("a pid"))
}

/// Nothing but these is left of a move.
fn nothing_left(known: &[i32]) {
    let mut patience = Patience::new(Duration::from_secs(5));
    loop {
        let left = strays(known);
        if left.is_empty() {
            return;
        }
        let names: Vec<_> = left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/stat"))).collect();
        assert!(!patience.is_over(), "left: {names:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A second of an idle machine, for an option.
fn a_second(option: &str) -> String {
    patient_option(option, Duration::from_secs(1))
}

fn at(way: Way, frame: &'static str, part: Part) -> When {
    When { way, frame, number: 0, part }
}

#[test]
fn many_moves_in_a_row_leave_the_guest_as_it_was_and_end_each_original() {
    let _one = Alone::new();
    let mut writer = Writer::start();
    for i in 0..12 {
        let tuned: &[&str] = if i % 3 == 0 { &["--rounds=3", "--downtime-limit=0"] } else { &[] };
        let kept: &[&str] = match i % 4 {
            1 => &["--no-pipeline"],
            3 => &["--start-round=1"],
            _ => &[],
        };
        let ended = HandOver::start(&writer.guest.arg(), tuned, kept, None).finish();
        assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
        assert!(ended.said.contains("runs at the destination as pid"), "{}", ended.said);
        writer = writer.moved_by(|guest| adopted(guest, &ended.folder));
        nothing_left(&[writer.guest.child()]);
        writer.goes_on();
    }
    writer.end();
}

#[test]
fn figures_of_a_hand_over_run_until_the_copy_is_known_to_run() {
    let _one = Alone::new();
    let writer = Writer::start();
    let began = Instant::now();
    let ended = HandOver::start(&writer.guest.arg(), &[], &[], None).finish();
    let whole = began.elapsed().as_micros() as u64;
    assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
    let (dump, restore) = (ended.stats("dump"), ended.stats("restore"));
    let figure =
        |of: &serde_json::Value, name: &str| of[name].as_u64().unwrap_or_else(|| panic!("{name}: {of}"));
    let parts: u64 = ["ready", "commit", "running"].iter().map(|part| figure(&dump["handover"], part)).sum();
    let frozen = figure(&dump, "frozen_time");
    assert!(0 < parts && parts < frozen && frozen < whole, "{parts} {frozen} {whole}");
    assert!(figure(&dump["handover"], "running") > 0);
    assert!(figure(&restore, "restore_time") <= frozen, "{restore} {dump}");
    writer.moved_by(|guest| adopted(guest, &ended.folder)).end();
}

/// A move over a FIFO, as people make it in a shell.
#[test]
fn a_fifo_carries_the_answers_back() {
    let _one = Alone::new();
    let writer = Writer::start();
    let folder = Folder::new();
    let script = "mkfifo $1/back && set -o pipefail && \
        $2 --handover $4 <$1/back | $3 --handover --detach --new-pid-ns --pidfile $1/pid >$1/back";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "bash"]).arg(folder.file(""));
    shell.args([program("pc-dump"), program("pc-restore")]).arg(writer.guest.arg());
    shell
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.file("said")).expect("a file"));
    let status = shell.status().expect("bash");
    assert!(
        status.success(),
        "{status}: {}",
        fs::read_to_string(folder.file("said")).expect("what was said")
    );
    writer.moved_by(|guest| adopted(guest, &folder)).end();
}

/// A port of the loopback that nobody listened on a moment ago.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port()
}

fn listens(port: u16) -> bool {
    let own = format!("0100007F:{port:04X} 00000000:0000 0A");
    fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&own))
}

#[test]
fn socat_joins_both_sides() {
    let _one = Alone::new();
    let writer = Writer::start();
    let (folder, port) = (Folder::new(), free_port());
    let path = |name: &str| folder.file(name).display().to_string();
    let restore = format!(
        "EXEC:{} --handover --detach --new-pid-ns --pidfile {}",
        program("pc-restore").display(),
        path("pid")
    );
    let dump = format!("EXEC:{} --handover {}", program("pc-dump").display(), writer.guest.arg());
    let start = |args: [String; 2], name: &str| {
        let said = fs::File::create(folder.file(name)).expect("a file");
        let mut socat = Command::new("socat");
        Tool(socat.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().expect("socat"))
    };
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr");
    let mut there = start([listen, restore], "there");
    wait_for("socat listens", Duration::from_secs(10), || listens(port));
    let mut here = start([format!("TCP:127.0.0.1:{port}"), dump], "here");
    let (here, there) = (here.ended(), there.ended());
    let text = |name: &str| fs::read_to_string(folder.file(name)).expect("what it said");
    assert!(here.success() && there.success(), "{here} {there}: {} | {}", text("here"), text("there"));
    writer.moved_by(|guest| adopted(guest, &folder)).end();
}

/// As socat and others do, which fail where they cannot pass it on.
#[test]
fn the_end_of_what_the_destination_says_still_finds_the_source() {
    let _one = Alone::new();
    let guest = sleeper();
    let late = (at(Way::Back, "End", Part::None), Blow::Run("sleep 0.3"));
    let ended = HandOver::start(&guest.arg(), &[], &[], Some(late)).finish();
    assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
    assert_eq!(ended.passed.iter().filter(|passed| **passed == (Way::Back, "End")).count(), 1);
    drop(adopted(guest, &ended.folder));
}

#[test]
fn pc_send_and_pc_recv_carry_both_directions_plain_and_encrypted() {
    let _one = Alone::new();
    let mut writer = Writer::start();
    for (keyed, streams) in [(false, "1"), (true, "1"), (true, "3")] {
        let (folder, port) = (Folder::new(), free_port());
        let path = |name: &str| folder.file(name).display().to_string();
        let (addr, key, pidfile) = (format!("127.0.0.1:{port}"), path("key"), path("pid"));
        let (dump, restore) = (program("pc-dump"), program("pc-restore"));
        if keyed {
            assert!(pc_tests::run("pc-recv", &["--new-key", &key]).status.success());
        }
        let security: &[&str] = if keyed { &["--key-file", &key] } else { &[] };
        let restore = restore.to_str().expect("a path");
        let command = ["--", restore, "--handover", "--detach", "--new-pid-ns", "--pidfile", &pidfile];
        let args = [&[addr.as_str()], security, &command].concat();
        let mut recv = Tool::start("pc-recv", &args, &folder, |_| {});
        wait_for("pc-recv listens", Duration::from_secs(10), || listens(port));
        let pid = writer.guest.arg();
        let command = ["--", dump.to_str().expect("a path"), "--handover", &pid];
        let args = [&[addr.as_str(), "--streams", streams], security, &command].concat();
        let mut send = Tool::start("pc-send", &args, &folder, |_| {});
        let (sent, received) = (send.ended(), recv.ended());
        let text = |name: &str| fs::read_to_string(folder.file(name)).expect("what it said");
        let good = sent.success() && received.success();
        assert!(good, "{sent} {received}: {} | {}", text("pc-send"), text("pc-recv"));
        writer = writer.moved_by(|guest| adopted(guest, &folder));
        writer.goes_on();
    }
    writer.end();
}

/// A hand-over that fails: the guest runs on as before, and nothing is left.
fn fails(dump: &[&str], restore: &[&str], plan: Option<(When, Blow)>) -> Ended {
    let writer = Writer::start();
    let fds = descriptors(writer.guest.pid());
    let ended = HandOver::start(&writer.guest.arg(), dump, restore, plan).finish();
    assert!(plan.is_none() || ended.struck, "{:?} never came: {}", plan, ended.said);
    writer.goes_on();
    assert_eq!(descriptors(writer.guest.pid()), fds, "{plan:?}: {} {}", writer.report(), ended.said);
    nothing_left(&[writer.guest.child()]);
    writer.end();
    ended
}

fn was_never_stopped(ended: &Ended) -> bool {
    !ended.passed.iter().any(|(way, frame)| *way == Way::Forth && *frame == "MmState")
}

fn sleeps(guest: &Guest) {
    wait_for("it sleeps", Duration::from_secs(5), || state(guest.pid()) == Some('S'));
}

/// A hand-over of a process that sleeps, which fails: it sleeps on, and nothing is left.
fn sleeper_stays(sleeper: &Guest, dump: &[&str], restore: &[&str], plan: Option<(When, Blow)>) -> Ended {
    let ended = HandOver::start(&sleeper.arg(), dump, restore, plan).finish();
    assert!(plan.is_none() || ended.struck, "{plan:?} never came: {}", ended.said);
    sleeps(sleeper);
    assert_eq!(status(sleeper.pid(), "TracerPid"), "0");
    nothing_left(&[sleeper.child()]);
    ended
}

#[test]
fn a_file_that_is_missing_there_is_refused_by_name_before_any_stop() {
    let _one = Alone::new();
    let folder = Folder::new();
    let file = folder.file("needed");
    fs::write(&file, "x").expect("a file");
    let mut sleep = Command::new("sh");
    let guest = Guest::start(sleep.args(["-c", "exec 5<$0; exec sleep 300"]).arg(&file));
    wait_for("the guest sleeps", Duration::from_secs(5), || {
        fs::read_to_string(format!("/proc/{}/comm", guest.pid())).is_ok_and(|comm| comm.trim() == "sleep")
            && state(guest.pid()) == Some('S')
    });
    let path: &'static str = Box::leak(file.display().to_string().into_boxed_str());
    // Once pc-dump has seen it.
    let gone = (at(Way::Forth, "File", Part::None), Blow::Remove(path));
    let ended = sleeper_stays(&guest, &[], &[], Some(gone));
    assert_eq!(ended.codes(), (Some(6), Some(6)), "{}", ended.said);
    let told = format!("the destination refused: {path}: No such file or directory");
    assert!(ended.said.contains(&told), "{}", ended.said);
    assert!(was_never_stopped(&ended), "{:?}", ended.passed);
}

#[test]
fn a_number_that_is_taken_there_is_refused_before_any_stop_however_the_copy_is_built() {
    let _one = Alone::new();
    let guest = sleeper();
    for kept in [&[][..], &["--no-pipeline"], &["--start-round=2"]] {
        let ended = sleeper_stays(&guest, &[], &[kept, &[SAME_PID]].concat(), None);
        assert_eq!(ended.codes(), (Some(6), Some(6)), "{}", ended.said);
        let told = ended.said.contains("runs on: the destination refused: pid")
            && ended.said.contains("is taken by");
        assert!(told, "{}", ended.said);
        assert!(was_never_stopped(&ended), "{:?}", ended.passed);
    }
}

#[test]
fn what_cannot_be_moved_is_named_here_and_the_destination_hears_that_nothing_comes() {
    let _one = Alone::new();
    let guest = Guest::start(Command::new("sh").args(["-c", "sleep 300 & wait"]));
    wait_for("it has a child", Duration::from_secs(5), || state(guest.pid()) == Some('S'));
    let ended = sleeper_stays(&guest, &[], &[], None);
    assert_eq!(ended.codes(), (Some(6), Some(7)), "{}", ended.said);
    let both = ended.said.matches("children").count() >= 2;
    assert!(
        both && ended.said.contains("cancelled") && !ended.said.contains("where Machine was due"),
        "{}",
        ended.said
    );
    // The child goes with it.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", guest.pid())).expect("children");
    for child in children.split_whitespace() {
        pc_tests::handing::send(child.parse().expect("a pid"), Signal::SIGKILL, 0);
    }
}

#[test]
fn a_signal_to_either_side_before_commit_cancels_and_both_say_so() {
    let _one = Alone::new();
    let whens = [
        at(Way::Forth, "Preamble", Part::None),
        at(Way::Forth, "Pages", Part::Half),
        at(Way::Back, "Accepted", Part::None),
        at(Way::Forth, "MmState", Part::All),
        at(Way::Back, "Ready", Part::None),
    ];
    for (i, when) in whens.into_iter().enumerate() {
        let signal = if i % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
        for blow in [Blow::Dump(signal, 0), Blow::Restore(signal, 0)] {
            let ended = fails(&[], &[], Some((when, blow)));
            // In the midst of a frame there is no place for a Cancel: then the stream ends early.
            let amid = matches!(blow, Blow::Dump(..));
            let good =
                matches!(ended.codes(), (Some(7), Some(7))) || amid && ended.codes() == (Some(7), Some(4));
            assert!(good, "{:?} {when:?} {blow:?}: {}", ended.codes(), ended.said);
        }
    }
}

#[test]
fn a_destination_that_is_not_ready_in_time_lets_the_original_go_on() {
    let _one = Alone::new();
    let args = ["--freeze-timeout=300ms"];
    let held = (at(Way::Forth, "MmState", Part::None), Blow::Stall);
    let began = Instant::now();
    let ended = fails(&args, &[&a_second("--timeout")], Some(held));
    assert_eq!(ended.codes().0, Some(7), "{}", ended.said);
    assert!(ended.said.contains("the destination was not ready in time"), "{}", ended.said);
    assert!(began.elapsed() < patient(Duration::from_secs(20)));
    // The same where it stands still itself.
    let held = (at(Way::Forth, "MmState", Part::None), Blow::Restore(Signal::SIGSTOP, 1500));
    let ended = fails(&args, &[], Some(held));
    assert_eq!(ended.codes().0, Some(7), "{}", ended.said);
}

#[test]
fn a_silent_side_is_taken_for_gone_after_the_timeout() {
    let _one = Alone::new();
    let held = (at(Way::Forth, "Pages", Part::None), Blow::Stall);
    let timeout = a_second("--timeout");
    let ended = fails(&[&timeout], &[&timeout], Some(held));
    assert_eq!(ended.codes(), (Some(5), Some(5)), "{}", ended.said);
    assert_eq!(ended.said.matches("nothing").count(), 2, "{}", ended.said);
}

#[test]
fn a_pc_dump_that_stands_still_while_its_target_is_frozen_is_ended_by_its_guardian() {
    let _one = Alone::new();
    // It must come to Ready in the time that the original may be frozen, and stand still for longer than that.
    let (most, still) = (patient(Duration::from_millis(200)), patient(Duration::from_secs(4)));
    let held = (at(Way::Back, "Ready", Part::None), Blow::Dump(Signal::SIGSTOP, still.as_millis() as u64));
    let began = Instant::now();
    let ended = fails(&[&format!("--freeze-timeout={}ms", most.as_millis())], &[], Some(held));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.dumped), Some(9), "{}", ended.said);
    assert!(began.elapsed() < still, "{:?}", began.elapsed());
    assert!(ended.said.contains("by a pc-dump that stood still"), "{}", ended.said);
    assert!(!ended.restored.success());
}

#[test]
fn a_guardian_is_there_before_the_freeze_holds_no_pipe_and_ends_with_pc_dump() {
    let _one = Alone::new();
    let guest = sleeper();
    let held = (at(Way::Forth, "RoundBegin", Part::None), Blow::Stall);
    let timeout = a_second("--timeout");
    let moving = HandOver::start(&guest.arg(), &[&timeout], &[&timeout], Some(held));
    let dump = moving.dump.pid();
    let mut guardian = 0;
    wait_for("the guardian", Duration::from_secs(5), || {
        let children = fs::read_to_string(format!("/proc/{dump}/task/{dump}/children")).unwrap_or_default();
        guardian = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
        guardian > 0
            && fs::read_to_string(format!("/proc/{guardian}/comm"))
                .is_ok_and(|comm| comm.trim() == "pc-guardian")
            && fs::read_dir(format!("/proc/{dump}/fd")).is_ok()
            && links(guardian).iter().any(|link| link == "/dev/null")
    });
    let (own, theirs) = (links(guardian), links(dump));
    let shared: Vec<_> =
        own.iter().filter(|link| link.starts_with("socket:") && theirs.contains(link)).collect();
    assert!(shared.is_empty(), "{own:?} {theirs:?}");
    let ended = moving.finish();
    assert!(!ended.dumped.success());
    wait_for("the guardian's end", Duration::from_secs(2), || {
        state(guardian).is_none_or(|state| state == 'Z')
    });
    nothing_left(&[guest.child()]);
}

/// What a process's descriptors are.
fn links(pid: i32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let links = fds.filter_map(|fd| Some(fs::read_link(fd.ok()?.path()).ok()?.display().to_string()));
    links.collect()
}

/// Lost between Commit and Running: what the copy does at this moment is the test's.
fn in_doubt(writer: &Writer, when: When, blow: Blow) -> Ended {
    let timeout = a_second("--timeout");
    let ended = HandOver::start(&writer.guest.arg(), &[&timeout], &[], Some((when, blow))).finish();
    assert_eq!(ended.dumped.code(), Some(8), "{}", ended.said);
    let pid = writer.guest.arg();
    assert!(ended.said.contains(&format!("pc-dump --resolve gone {pid}")), "{}", ended.said);
    assert!(is_stopped(writer.guest.pid()));
    ended
}

#[test]
fn in_doubt_with_a_copy_the_original_stays_stopped_until_it_is_told_to_end() {
    let _one = Alone::new();
    let writer = Writer::start();
    let ended = in_doubt(&writer, at(Way::Back, "Running", Part::None), Blow::Cut);
    assert_eq!(ended.restored.code(), Some(0), "{}", ended.said);
    let pid = writer.guest.arg();
    let resolved = pc_tests::run("pc-dump", &["--resolve", "gone", &pid]);
    assert!(resolved.status.success(), "{}", said(&resolved));
    writer.moved_by(|guest| adopted(guest, &ended.folder)).end();
}

#[test]
fn in_doubt_without_a_copy_the_original_goes_on_when_it_is_told_to() {
    let _one = Alone::new();
    let writer = Writer::start();
    let ended = in_doubt(&writer, at(Way::Forth, "Commit", Part::None), Blow::Restore(Signal::SIGKILL, 0));
    assert!(!ended.restored.success());
    nothing_left(&[writer.guest.child()]);
    let pid = writer.guest.arg();
    let resolved = pc_tests::run("pc-dump", &["--resolve", "running", &pid]);
    assert!(resolved.status.success(), "{}", said(&resolved));
    writer.goes_on();
    writer.end();
}

#[test]
fn resolve_touches_nothing_but_an_original_that_was_left_stopped() {
    let _one = Alone::new();
    let refused = |pid: &str, why: &str| {
        for how in ["running", "gone"] {
            let output = pc_tests::run("pc-dump", &["--resolve", how, pid]);
            assert_eq!(output.status.code(), Some(1), "{how}: {}", said(&output));
            assert!(said(&output).contains(why), "{}", said(&output));
        }
    };
    // In a group of its own: an orphaned one, as a runner's may be, is not stopped from a terminal.
    let guest = Guest::start(Command::new("sleep").arg("300").process_group(0));
    sleeps(&guest);
    refused(&guest.arg(), "is not stopped");
    // As a shell's job control does it.
    guest.signal(Signal::SIGTSTP);
    wait_for("it stops", Duration::from_secs(5), || is_stopped(guest.pid()));
    refused(&guest.arg(), "was not stopped by SIGSTOP");
    assert!(is_stopped(guest.pid()));
    guest.signal(Signal::SIGCONT);
    sleeps(&guest);
    // One that a pc-dump holds.
    let held = (at(Way::Back, "Ready", Part::None), Blow::Stall);
    let freeze = patient_option("--freeze-timeout", Duration::from_millis(1500));
    let timeout = patient_option("--timeout", Duration::from_secs(3));
    let moving = HandOver::start(&guest.arg(), &[&freeze], &[&timeout], Some(held));
    wait_for("it is frozen", Duration::from_secs(10), || moving.is_struck());
    assert_eq!(state(guest.pid()), Some('t'));
    refused(&guest.arg(), "is held by process");
    drop(moving.finish());
    sleeps(&guest);
    refused("2000000000", "no such process");
    // One that a one-way dump has left.
    for how in ["running", "gone"] {
        let image = Folder::new();
        pc_tests::dump_to_file(&guest, &image.file("image"), &["--leave-stopped"]);
        assert!(is_stopped(guest.pid()));
        let output = pc_tests::run("pc-dump", &["--resolve", how, &guest.arg()]);
        assert!(output.status.success(), "{}", said(&output));
        let after = if how == "gone" { 'Z' } else { 'S' };
        wait_for(how, Duration::from_secs(5), || state(guest.pid()) == Some(after));
    }
}

/// The thread that waits in vfork(2), until its child has opened a FIFO, does not stop before that.
#[test]
fn resolve_waits_for_a_thread_that_has_not_taken_its_stop_yet() {
    let folder = Folder::new();
    let fifo = folder.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let script = "import os, sys, threading, time\n\
        opened = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n\
        waits = lambda: os.posix_spawn('/bin/true', ['true'], {}, file_actions=opened)\n\
        threading.Thread(target=waits, daemon=True).start()\n\
        time.sleep(300)";
    let guest = Guest::start(Command::new("python3").args(["-c", script]).arg(&fifo));
    let states = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("threads");
        let tids = tasks.map(|task| task.expect("a thread").file_name().into_string().expect("a number"));
        let mut states: Vec<_> = tids.filter_map(|tid| state(tid.parse().expect("a number"))).collect();
        states.sort_unstable();
        states
    };
    wait_for("one waits", Duration::from_secs(20), || states() == ['D', 'S']);
    guest.signal(Signal::SIGSTOP);
    wait_for("the other stops", Duration::from_secs(5), || states() == ['D', 'T']);
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        fs::OpenOptions::new().write(true).open(fifo).map(drop)
    });
    let output = pc_tests::run("pc-dump", &["--resolve", "running", &guest.arg()]);
    waiting.join().expect("no panic").expect("it is opened");
    assert!(output.status.success(), "{}", said(&output));
    sleeps(&guest);
}

#[test]
fn a_signal_that_comes_when_all_is_sent_and_before_commit_is_in_the_copy_with_its_sender() {
    let _one = Alone::new();
    let folder = Folder::new();
    let program = "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
open(sys.argv[1] + '.ready', 'w').close()
info = signal.sigwaitinfo({signal.SIGUSR1})
with open(sys.argv[1], 'w') as f: f.write('%d %d' % (info.si_code, info.si_pid))
signal.pause()";
    let report = folder.file("report");
    let guest = Guest::start(Command::new("python3").args(["-c", program]).arg(&report));
    wait_for("the guest waits", Duration::from_secs(20), || {
        folder.file("report.ready").exists() && state(guest.pid()) == Some('S')
    });
    let sent = (at(Way::Back, "Ready", Part::None), Blow::Target(Signal::SIGUSR1));
    let ended = HandOver::start(&guest.arg(), &[], &[], Some(sent)).finish();
    assert_eq!(ended.codes(), (Some(0), Some(0)), "{}", ended.said);
    let copy = adopted(guest, &ended.folder);
    let own = std::process::id();
    wait_for("the signal", Duration::from_secs(10), || {
        fs::read_to_string(&report).is_ok_and(|report| report == format!("0 {own}"))
    });
    drop(copy);
}

#[test]
fn a_pipe_to_the_outside_is_refused_before_the_original_is_stopped() {
    let _one = Alone::new();
    let (from, _to) = std::io::pipe().expect("a pipe");
    let mut command = Command::new("sleep");
    let guest =
        Guest::start_as_is(command.arg("300").stdin(from).stdout(Stdio::null()).stderr(Stdio::null()));
    let ended = HandOver::start(&guest.arg(), &[], &[], None).finish();
    assert_eq!(ended.codes(), (Some(6), Some(6)), "{}", ended.said);
    assert!(ended.said.contains("--attach pipe:0=WHERE"), "{}", ended.said);
    assert!(!ended.passed.iter().any(|(_, frame)| *frame == "Thread"), "{}", ended.said);
    sleeps(&guest);
}

#[test]
fn the_copy_never_gets_the_channel_back_to_the_source() {
    let _one = Alone::new();
    let guest = sleeper();
    for attach in [&["--attach=pipe:1=fd:1"][..], &[]] {
        let mut restore = Command::new(program("pc-restore"));
        restore.args(["--handover", "--detach"]).args(attach).stdin(Stdio::null());
        // Without a descriptor given away, standard error is the same as standard output.
        let (read, write) = std::io::pipe().expect("a pipe");
        let stderr = if attach.is_empty() {
            Stdio::from(write.try_clone().expect("a duplicate"))
        } else {
            Stdio::piped()
        };
        let output = restore.stdout(write).stderr(stderr).spawn().expect("pc-restore").wait_with_output();
        drop(restore);
        assert_eq!(output.expect("pc-restore ends").status.code(), Some(2));
        drop(read);
    }
    sleeps(&guest);
}

#[test]
fn a_guardian_resumes_the_target_of_a_dead_pc_dump_only_between_its_stop_and_commit() {
    let _one = Alone::new();
    let guest = sleeper();
    let stat = fs::read_to_string(format!("/proc/{}/stat", guest.pid())).expect("its stat");
    let started = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(19)).expect("its start");
    // In the place of pc-dump a shell that starts the guardian, says how far it is, and is killed.
    let script = "coproc G { exec -a pc-guardian \"$0\" \"$1\" \"$2\" 10000000; }; \
        read -r -n1 -u \"${G[0]}\" ready; printf \"$3\" >&\"${G[1]}\"; kill -KILL $$";
    for (said, goes_on) in
        [("F", false), ("FS", true), ("Fs", false), ("FSC", false), ("FSCD", false), ("FR", false)]
    {
        guest.signal(Signal::SIGSTOP);
        wait_for("it stops", Duration::from_secs(5), || is_stopped(guest.pid()));
        let mut shell = Command::new("bash");
        shell.args(["-c", script]).arg(program("pc-dump")).args([&guest.arg(), started, said]);
        let ended = shell.stdin(Stdio::null()).status().expect("bash");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "{said}: {ended}");
        nothing_left(&[guest.child()]); // the guardian has ended, too
        assert_eq!(!is_stopped(guest.pid()), goes_on, "{said}");
        guest.signal(Signal::SIGCONT);
        sleeps(&guest);
    }
}
