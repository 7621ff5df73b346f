//! Shared memory that a process alone has: all of its mappings and descriptors show one object after a move, with every
//! byte, however it was written.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Way, end_original, moved, program, restored, run, said, wait_for};

fn start(folder: &Folder, args: &[&str]) -> Guest {
    let mut command = Command::new(program("guest-shared"));
    let guest = Guest::start(command.arg(folder.file("report")).args(args));
    let ready = folder.file("report.ready");
    wait_for("the guest is ready", Duration::from_secs(20), || ready.exists());
    guest
}

fn is_right(mut guest: Guest, folder: &Folder) {
    guest.signal(Signal::SIGUSR1);
    let code = guest.ended(Duration::from_secs(20));
    let report = fs::read_to_string(folder.file("report")).unwrap_or_default();
    assert!(code == Some(0) && report == "OK\n", "exit {code:?}:\n{report}");
}

fn dump(guest: &Guest, image: &Path, args: &[&str]) -> Command {
    let mut dump = Command::new(program("pc-dump"));
    dump.args(args).arg(guest.arg());
    dump.stdin(Stdio::null()).stdout(File::create(image).unwrap()).stderr(Stdio::piped());
    dump
}

fn moved_in_rounds(mut guest: Guest, args: &[&str], restore: &[&str]) -> Guest {
    let folder = Folder::new();
    let image = folder.file("image");
    let args = [&["--rounds=4", "--downtime-limit=0"], args].concat();
    let output = dump(&guest, &image, &args).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    let shown = run("pc-show", &["--json", image.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("/memfd:sealed (deleted)"), "{}", said(&shown));
    end_original(&mut guest, &image);
    restored(&image, restore)
}

#[test]
fn shared_memory_is_one_object_after_a_move_at_once() {
    for (way, args) in [(Way::File, &["--still"][..]), (Way::File, &[]), (Way::NewPidNs, &[])] {
        let folder = Folder::new();
        let copy = moved(moved(start(&folder, args), way), way);
        is_right(copy, &folder);
    }
}

#[test]
fn no_write_to_shared_memory_is_lost_in_rounds() {
    for track in ["uffd", "hash"] {
        for restore in [&[][..], &["--no-pipeline"], &["--start-round", "2"]] {
            let folder = Folder::new();
            let copy = moved_in_rounds(start(&folder, &[]), &["--track", track], restore);
            is_right(copy, &folder);
        }
    }
}

#[test]
fn what_is_written_through_the_file_of_a_mapped_memfd_behind_the_first_round_is_not_lost() {
    let folder = Folder::new();
    let mut guest = start(&folder, &["--pwrite"]);
    let image = folder.file("image");
    let mut dump = dump(&guest, &image, &["--track", "uffd", "--rounds=30", "--downtime-limit=0"]);
    let progress = folder.file("progress");
    let stderr = File::create(&progress).unwrap();
    let mut dump = dump.args(["--progress", "plain"]).stderr(stderr).spawn().unwrap();
    let said = || fs::read_to_string(&progress).unwrap_or_default();
    wait_for("the first round", Duration::from_secs(20), || said().contains("round"));
    fs::write(folder.file("report.go"), "").unwrap();
    let ended = dump.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", said());
    end_original(&mut guest, &image);
    let copy = restored(&image, &[]);
    let gone = folder.file("report.gone");
    wait_for("the writes", Duration::from_secs(20), || gone.exists());
    is_right(copy, &folder);
}

#[test]
fn shared_memory_that_another_process_has_too_is_refused_by_name() {
    let file = File::from(memfd_create(c"both", MFdFlags::MFD_CLOEXEC).unwrap());
    let mut command = Command::new("sleep");
    let command = command.arg("60").stdin(file.try_clone().unwrap());
    let guest = Guest::start_as_is(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let output = run("pc-dump", &["--check", &guest.arg()]);
    drop(file);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    let text = said(&output);
    let own = format!("/memfd:both (deleted), which is shared with process {}", std::process::id());
    assert!(text.contains(&own), "{text}");
}
