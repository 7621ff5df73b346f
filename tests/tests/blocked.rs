//! Threads caught in every kind of blocking call go on as if nothing had been: in the original, and in the copy.

#![forbid(unsafe_code)]

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pc_tests::{Folder, Guest, Way, moved, program, said, slowness, wait_for};

struct Blocked {
    guest: Guest,
    folder: Folder,
    /// How many times longer its waits last than on an idle machine.
    times: f64,
}

impl Blocked {
    /// All of its threads wait, and have done so for a while.
    fn start(args: &[&str]) -> Blocked {
        let folder = Folder::new();
        // On a busy machine a move takes a part of the waits that it takes of shorter ones on an idle machine.
        let times = slowness().ceil().min(10.0);
        let mut command = Command::new(program("guest-blocked"));
        command.arg(folder.file("report")).arg(format!("--times={times}"));
        let guest = Guest::start(command.args(args));
        let ready = folder.file("report.ready");
        wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
        std::thread::sleep(Duration::from_millis(1100).mul_f64(times));
        Blocked { guest, folder, times }
    }

    fn ends_well(self) {
        self.ends_well_within(Duration::from_secs(20));
    }

    fn ends_well_within(mut self, limit: Duration) {
        let code = self.guest.ended(limit.mul_f64(self.times));
        let report = fs::read_to_string(self.folder.file("report")).unwrap_or_default();
        assert!(code == Some(0) && report == "OK\n", "exit {code:?}: {report}");
    }
}

#[test]
fn an_original_caught_in_every_kind_of_call_goes_on() {
    let blocked = Blocked::start(&[]);
    for _ in 0..5 {
        let mut tool = Command::new(program("pc-dump"));
        let tool = tool.args(["--once", "--leave-running", &blocked.guest.arg()]);
        let output = tool.stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("pc-dump runs");
        assert!(output.status.success(), "{}", said(&output));
        std::thread::sleep(Duration::from_millis(50));
    }
    blocked.ends_well();
}

#[test]
fn a_copy_caught_in_every_kind_of_call_goes_on() {
    let Blocked { guest, folder, times } = Blocked::start(&[]);
    let guest = moved(guest, Way::File);
    Blocked { guest, folder, times }.ends_well();
}

#[test]
fn a_copy_of_a_copy_caught_in_every_kind_of_call_goes_on() {
    let Blocked { guest, folder, times } = Blocked::start(&["--twice"]);
    let guest = moved(moved(guest, Way::NewPidNs), Way::NewPidNs);
    Blocked { guest, folder, times }.ends_well();
}

/// Threads that are seldom given a CPU are still on their way back into their calls when the second dump comes.
#[test]
fn a_copy_of_a_copy_that_was_still_going_on_with_its_calls_goes_on() {
    let Blocked { guest, folder, times } = Blocked::start(&["--twice", "--busy"]);
    yields_to_all(&guest);
    let _load = [Load::start(), Load::start()];
    let guest = moved(moved(guest, Way::NewPidNs), Way::NewPidNs);
    Blocked { guest, folder, times }.ends_well_within(Duration::from_secs(60));
}

fn yields_to_all(guest: &Guest) {
    let threads = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("its threads");
    let threads = threads.map(|entry| entry.expect("a thread").file_name());
    let output = Command::new("renice").args(["-n", "19", "-p"]).args(threads).output().expect("renice runs");
    assert!(output.status.success(), "{}", said(&output));
}

/// A thread that computes, until it is dropped.
struct Load(#[expect(dead_code, reason = "counted")] Arc<()>);

impl Load {
    fn start() -> Load {
        let wanted = Arc::new(());
        let still = Arc::downgrade(&wanted);
        std::thread::spawn(move || while std::hint::black_box(still.strong_count()) > 0 {});
        Load(wanted)
    }
}
