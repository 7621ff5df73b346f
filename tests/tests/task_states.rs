//! What few programs set of a process and its threads is the same after a move, or refused by name.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Way, dump_to_file, moved, program, restored, run, said, status, wait_for};

fn started(guest: &str, args: &[&str], folder: &Folder) -> Guest {
    let mut command = Command::new(program(guest));
    let guest = Guest::start(command.args(args));
    let ready = folder.file("report.ready");
    wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
    guest
}

fn path(folder: &Folder, name: &str) -> String {
    folder.file(name).to_str().expect("a name").to_owned()
}

fn same_after_a_move(args: &[&str], way: Way) {
    let folder = Folder::new();
    let (report, place) = (path(&folder, "report"), path(&folder, ""));
    let args: Vec<&str> =
        [&report, &place].into_iter().map(String::as_str).chain(args.iter().copied()).collect();
    let mut copy = moved(started("guest-tasks", &args, &folder), way);
    copy.signal(Signal::SIGUSR1);
    let code = copy.ended(Duration::from_secs(20));
    let report = fs::read_to_string(report).unwrap_or_default();
    assert!(code == Some(0) && report == "OK\n", "exit {code:?}:\n{report}");
}

#[test]
fn controls_timers_and_queued_signals_are_the_same_in_the_copy() {
    same_after_a_move(&[], Way::File);
}

#[test]
fn controls_timers_and_queued_signals_are_the_same_after_a_hand_over() {
    same_after_a_move(&[], Way::HandOver);
}

#[test]
fn an_ignored_sigtrap_and_all_else_are_the_same_in_another_pid_namespace() {
    same_after_a_move(&["--ignore-trap"], Way::NewPidNs);
}

#[test]
fn a_timer_set_to_a_date_ends_at_that_date_however_long_the_image_lay() {
    let folder = Folder::new();
    let report = path(&folder, "report");
    let began = Instant::now();
    let mut guest = started("guest-odd", &["dates", &report], &folder);
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(10));
    let lay = Duration::from_secs(3).saturating_sub(began.elapsed());
    std::thread::sleep(lay);
    let mut copy = restored(&image, &[]);
    copy.ended(Duration::from_secs(30));
    let text = fs::read_to_string(&report).expect("a report");
    let find = |name: &str| -> u64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        value.trim().parse().expect("a number")
    };
    let (date, time) = (find("date"), find("time"));
    assert!((5990..7500).contains(&date), "it came after {date} ms, 6000 are right");
    assert!(time > date + 1000 * lay.as_secs_f64() as u64, "time that was left is left: {text}");
}

fn dumped(args: &[&str], guest: &Guest) -> Output {
    let mut tool = Command::new(program("pc-dump"));
    let tool = tool.args(args).arg(guest.arg()).stdin(Stdio::null()).stdout(Stdio::piped());
    tool.stderr(Stdio::piped()).output().expect("pc-dump runs")
}

/// Refused with exit 6 and these words, by `--check`, too, where that can tell; the guest is as it was.
fn refused(what: &str, words: &str, by_check: bool) {
    let folder = Folder::new();
    fs::set_permissions(folder.file(""), fs::Permissions::from_mode(0o777)).expect("a folder");
    let guest = started("guest-odd", &[what, &path(&folder, "report")], &folder);
    let kept = |field| status(guest.pid(), field);
    let before = [kept("Threads"), kept("SigCgt"), kept("SigIgn")];
    let ways: [&[&str]; 2] = [&["--once", "--leave-running"], &["--leave-running"]];
    for args in ways {
        let output = dumped(args, &guest);
        let text = said(&output);
        assert!(
            output.status.code() == Some(6) && text.contains(words),
            "{what}: {:?}: {text}",
            output.status
        );
    }
    let output = run("pc-dump", &["--check", &guest.arg()]);
    let text = said(&output);
    if by_check {
        assert!(
            output.status.code() == Some(6) && text.contains(words),
            "{what}: {:?}: {text}",
            output.status
        );
    }
    assert_eq!(before, [kept("Threads"), kept("SigCgt"), kept("SigIgn")], "{what}");
    assert_eq!(kept("TracerPid"), "0", "{what}");
}

#[test]
fn confinement_that_cannot_be_moved_is_refused_by_name() {
    refused("landlock", "has a Landlock domain", false);
    refused("landlock-as-nobody", "has a Landlock domain", false);
    refused("dispatch", "PR_SET_SYSCALL_USER_DISPATCH", false);
    refused("user-notif", "SECCOMP_RET_USER_NOTIF", false);
}

#[test]
fn what_of_a_process_cannot_be_moved_is_refused_by_name() {
    refused("sem-undo", "SEM_UNDO", true);
    refused("cpu-clock", "runs on the CPU time of process", true);
    refused("keyring", "keyring", false);
    refused("without-main", "its main thread has ended while others run, which cannot be moved yet", true);
}
