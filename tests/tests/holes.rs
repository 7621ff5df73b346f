//! Pages that are replaced or dropped while rounds are sent: those beside them, and what takes their place, arrive.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, end_original, program, restored, said, wait_for};

/// As often as it takes for a page to be replaced between the look at mappings and the look at pages.
const TIMES: usize = 4;

#[test]
fn no_page_is_lost_beside_those_that_are_replaced_and_none_stays_that_was_dropped() {
    for track in ["uffd", "hash"] {
        for _ in 0..TIMES {
            moves(track);
        }
    }
}

fn moves(track: &str) {
    let folder = Folder::new();
    let [report, ready, image, below] =
        ["report", "report.ready", "image", "below"].map(|name| folder.file(name));
    fs::write(&below, (0..64 * 4096).map(|i| (i / 7 % 255 + 1) as u8).collect::<Vec<_>>()).unwrap();
    let mut guest = Guest::start(Command::new(program("guest-holes")).arg(&report).arg(&below));
    wait_for("the guest is ready", Duration::from_secs(20), || ready.exists());
    let mut dump = Command::new(program("pc-dump"));
    dump.args(["--rounds=20", "--downtime-limit=0", "--track", track]).arg(guest.arg());
    let output = dump.stdin(Stdio::null()).stdout(File::create(&image).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    end_original(&mut guest, &image);
    let mut copy = restored(&image, &[]);
    copy.signal(Signal::SIGUSR1);
    let code = copy.ended(Duration::from_secs(20));
    let said = fs::read_to_string(&report).unwrap_or_default();
    assert!(code == Some(0) && said == "OK\n", "{track}, exit {code:?}:\n{said}");
}
