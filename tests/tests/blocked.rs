//! Threads caught in every kind of blocking call go on as if nothing had been: in the original, and in the copy.

#![forbid(unsafe_code)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use pc_tests::{Folder, Guest, Way, moved, program, said, wait_for};

struct Blocked {
    guest: Guest,
    folder: Folder,
}

impl Blocked {
    /// All of its threads wait, and have done so for a while.
    fn start(args: &[&str]) -> Blocked {
        let folder = Folder::new();
        let mut command = Command::new(program("guest-blocked"));
        let guest = Guest::start(command.arg(folder.file("report")).args(args));
        let ready = folder.file("report.ready");
        wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
        std::thread::sleep(Duration::from_millis(1100));
        Blocked { guest, folder }
    }

    fn ends_well(mut self) {
        let code = self.guest.ended(Duration::from_secs(20));
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
    let Blocked { guest, folder } = Blocked::start(&[]);
    let guest = moved(guest, Way::File);
    Blocked { guest, folder }.ends_well();
}

#[test]
fn a_copy_of_a_copy_caught_in_every_kind_of_call_goes_on() {
    let Blocked { guest, folder } = Blocked::start(&["--twice"]);
    let guest = moved(moved(guest, Way::NewPidNs), Way::NewPidNs);
    Blocked { guest, folder }.ends_well();
}
