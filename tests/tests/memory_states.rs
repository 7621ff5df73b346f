//! Address spaces of every kind are the same after a move, or are refused by name before anything is touched.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, Way, moved, program, restored, run, said, status, wait_for};

/// A guest that is asked twice, with its report.
struct Asked {
    guest: Guest,
    folder: Folder,
}

impl Asked {
    fn start(what: &[&str]) -> Asked {
        Asked::start_as(&program("guest-memory"), Folder::new(), what)
    }

    fn start_as(program: &Path, folder: Folder, what: &[&str]) -> Asked {
        let mut command = Command::new(program);
        let guest = Guest::start(command.arg(folder.file("report")).arg(folder.file("")).args(what));
        let ready = folder.file("report.ready");
        wait_for("the guest is ready", Duration::from_secs(60), || ready.exists());
        Asked { guest, folder }
    }

    fn moved(self, way: impl FnOnce(Guest) -> Guest) -> Asked {
        let Asked { guest, folder } = self;
        Asked { guest: way(guest), folder }
    }

    /// Fails with what it complains of.
    fn ends_the_same(self) {
        let Asked { mut guest, folder } = self;
        guest.signal(Signal::SIGUSR1);
        let code = guest.ended(Duration::from_secs(40));
        let report = fs::read_to_string(folder.file("report")).unwrap_or_default();
        assert!(code == Some(0) && report == "OK\n", "exit {code:?}:\n{report}");
    }
}

fn by_file(guest: Guest) -> Guest {
    moved(guest, Way::File)
}

/// Moved in rounds, the running process being tracked.
fn in_rounds(guest: Guest) -> Guest {
    moved_by(guest, &["--rounds", "2"])
}

/// Moved by pc-dump with these options.
fn moved_by(mut guest: Guest, args: &[&str]) -> Guest {
    let folder = Folder::new();
    let image = folder.file("image");
    let mut dump = Command::new(program("pc-dump"));
    let dump = dump.args(args).args(["--kill", &guest.arg()]).stdin(Stdio::null());
    let dumped = dump.stdout(File::create(&image).expect("a file")).stderr(Stdio::piped()).spawn();
    let dumped = dumped.and_then(|dump| dump.wait_with_output()).expect("pc-dump runs");
    assert!(dumped.status.success(), "{}", said(&dumped));
    guest.ended(Duration::from_secs(10));
    restored(&image, &[])
}

/// Fails unless pc-dump refuses the guest by these words and leaves it as it was.
fn refused(guest: &Guest, args: &[&str], words: &[&str]) {
    let output = Command::new(program("pc-dump")).args(args).arg(guest.arg()).stdin(Stdio::null()).output();
    let output: Output = output.expect("pc-dump runs");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert_eq!(status(guest.pid(), "TracerPid"), "0");
    assert!(!status(guest.pid(), "State").starts_with('T'));
}

fn skip_without_keys() {
    if !fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" ospke")) {
        println!("SKIP protection keys: the CPU has none (all else is tested)");
    }
}

/// Protection keys, MAP_DROPPABLE, mseal, mbind, set_mempolicy, modify_ldt, PR_SET_MDWE, PR_SET_THP_DISABLE with flags,
/// PR_SET_MEMORY_MERGE, and memory that may only be executed.
#[test]
fn settings_of_an_address_space_are_the_same_in_the_copy() {
    skip_without_keys();
    Asked::start(&["settings"]).moved(by_file).ends_the_same();
}

#[test]
fn settings_of_an_address_space_are_the_same_in_a_copy_of_a_copy_made_in_rounds() {
    skip_without_keys();
    Asked::start(&["settings"]).moved(in_rounds).moved(in_rounds).ends_the_same();
}

#[test]
fn a_process_whose_limits_of_memory_are_used_up_is_moved_and_has_them_still() {
    Asked::start(&["limits"]).moved(by_file).ends_the_same();
}

#[test]
fn a_memfd_that_could_be_executed_can_be_so_in_the_copy_and_another_cannot() {
    Asked::start(&["memfd"]).moved(by_file).ends_the_same();
}

#[test]
fn names_that_are_no_text_or_look_like_others_are_the_same_in_the_copy() {
    let folder = Folder::new();
    let own = folder.file("").join(OsStr::from_bytes(b"guest\xff\n\\012 (deleted)"));
    fs::copy(program("guest-memory"), &own).expect("a copy");
    Asked::start_as(&own, folder, &["names"]).moved(in_rounds).moved(by_file).ends_the_same();
}

fn most_mappings() -> usize {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
    text.trim().parse().expect("a number")
}

#[test]
fn a_process_with_nearly_as_many_mappings_as_it_may_have_is_moved() {
    let count = most_mappings() - 30;
    // Without the census that other moves take: of so many mappings it would take a minute.
    let once = |guest| moved_by(guest, &["--once"]);
    Asked::start(&["mappings", &count.to_string()]).moved(once).ends_the_same();
}

#[test]
fn a_process_with_no_room_for_the_mappings_that_a_move_takes_is_refused_by_name() {
    let count = most_mappings() - 4;
    let asked = Asked::start(&["mappings", &count.to_string()]);
    refused(&asked.guest, &["--check"], &["mappings", "vm.max_map_count"]);
    asked.ends_the_same();
}

#[test]
fn a_process_without_address_space_for_remote_calls_is_refused_by_name() {
    let mut shell = Command::new("prlimit");
    // Enough for the program itself.
    let guest = Guest::start(shell.args(["--data=1000000000", "sleep", "300"]));
    let comm = format!("/proc/{}/comm", guest.pid());
    wait_for("sleep", Duration::from_secs(10), || fs::read(&comm).is_ok_and(|name| name == b"sleep\n"));
    wait_for("it sleeps", Duration::from_secs(10), || status(guest.pid(), "State").starts_with('S'));
    let size = status(guest.pid(), "VmSize");
    let size: u64 = size.trim_end_matches(" kB").parse().expect("a number");
    let limit = format!("--as={}", (size + 64) << 10);
    let set = Command::new("prlimit").args(["--pid", &guest.arg(), &limit]).status();
    assert!(set.expect("prlimit runs").success());
    refused(&guest, &["--check"], &["RLIMIT_AS", "prlimit --pid"]);
}

#[test]
fn secret_memory_is_refused_by_name() {
    if fs::read_to_string("/proc/kallsyms").is_ok_and(|text| !text.contains("secretmem")) {
        println!("SKIP secret memory: the kernel has none");
        return;
    }
    let asked = Asked::start(&["secret"]);
    refused(&asked.guest, &["--check"], &["secret memory (memfd_secret)"]);
    asked.ends_the_same();
}

#[test]
fn a_program_that_may_no_longer_be_executed_is_refused_with_the_way_out() {
    let folder = Folder::new();
    let own = folder.file("sleep");
    fs::copy("/bin/sleep", &own).expect("a copy");
    let guest = Guest::start(Command::new(&own).arg("300"));
    let exe = format!("/proc/{}/exe", guest.pid());
    wait_for("sleep", Duration::from_secs(10), || fs::read_link(&exe).is_ok_and(|path| path == own));
    wait_for("it sleeps", Duration::from_secs(10), || status(guest.pid(), "State").starts_with('S'));
    fs::set_permissions(&own, Permissions::from_mode(0o644)).expect("chmod");
    refused(&guest, &["--check"], &["sleep", "chmod +x"]);
    fs::set_permissions(&own, Permissions::from_mode(0o755)).expect("chmod");
    let checked = run("pc-dump", &["--check", &guest.arg()]);
    assert!(checked.status.success(), "{}", said(&checked));
}

/// The smallest 32-bit program that waits: pause(2) over and over.
fn elf32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEAD: u32 = 52 + 32;
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 3] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1, BASE + HEAD, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let len = HEAD + code.len() as u32;
    for word in [1, 0, BASE, BASE, len, len, 5, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[test]
fn a_32_bit_program_is_refused_by_name() {
    let folder = Folder::new();
    let own = folder.file("small");
    fs::write(&own, elf32()).expect("a file");
    fs::set_permissions(&own, Permissions::from_mode(0o755)).expect("chmod");
    match Command::new(&own).stdin(Stdio::null()).spawn() {
        Err(err) if err.raw_os_error() == Some(8) || err.kind() == ErrorKind::Unsupported => {
            println!("SKIP 32-bit programs: the kernel runs none");
            return;
        }
        child => {
            let mut child = child.expect("it starts");
            let (_, ended) = (child.kill(), child.wait());
            ended.expect("it ends");
        }
    }
    let guest = Guest::start(&mut Command::new(&own));
    wait_for("it sleeps", Duration::from_secs(10), || status(guest.pid(), "State").starts_with('S'));
    refused(&guest, &["--check"], &["32-bit program"]);
}

#[test]
fn a_thread_in_32_bit_code_is_refused_by_name_at_the_stop_and_goes_on() {
    let asked = Asked::start(&["compat"]);
    refused(&asked.guest, &["--once"], &["runs 32-bit code"]);
    asked.ends_the_same();
}
