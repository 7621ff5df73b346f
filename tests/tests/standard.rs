//! Standard descriptors as callers give them: `/dev/null` for reading and writing is no closed one.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use pc_tests::{Folder, Guest, dump_to_file, program, said, wait_for};

fn sleeper() -> Guest {
    let guest = Guest::start(Command::new("sleep").arg("300"));
    let asleep = || {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", guest.pid())).unwrap_or_default();
        comm.trim() == "sleep" && pc_tests::handing::state(guest.pid()) == Some('S')
    };
    wait_for("it sleeps", Duration::from_secs(10), asleep);
    guest
}

/// As `subprocess.DEVNULL` of Python, `'ignore'` of node.js and systemd give it.
fn null() -> File {
    OpenOptions::new().read(true).write(true).open("/dev/null").expect("a device")
}

fn with_null(tool: &str, args: &[&str]) -> Output {
    Command::new(program(tool)).args(args).stdin(null()).stdout(null()).output().expect("it runs")
}

/// By a shell that closes it.
fn with_closed(fds: &str, tool: &str, args: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    let shell = shell.args(["-c", &format!("exec \"$0\" \"$@\" {fds}")]).arg(program(tool)).args(args);
    shell.stdin(Stdio::null()).output().expect("it runs")
}

#[test]
fn a_stream_goes_to_a_dev_null_that_the_caller_gave_and_not_to_a_closed_output() {
    let guest = sleeper();
    let args = ["--once", "--leave-running", &guest.arg()];
    let output = with_null("pc-dump", &args);
    assert!(output.status.success(), "{}", said(&output));
    let output = with_closed(">&-", "pc-dump", &args);
    assert!(
        output.status.code() == Some(2) && said(&output).contains("standard output is closed"),
        "{}",
        said(&output)
    );
    // Standard error alone, or the input, says nothing about the output.
    for others in ["2>&-", "<&-", "<&- 2>&-"] {
        let output = with_closed(others, "pc-dump", &args);
        assert!(output.status.success(), "{others}: {:?}", output.status);
    }
}

#[test]
fn both_ends_of_a_link_work_with_dev_null_in_the_place_of_both_descriptors() {
    let folder = Folder::new();
    let path = folder.file("socket");
    let address = format!("unix:{}", path.display());
    let mut receiver = Command::new(program("pc-recv"));
    let mut receiver =
        receiver.arg(&address).stdin(null()).stdout(null()).stderr(Stdio::null()).spawn().expect("it runs");
    wait_for("pc-recv listens", Duration::from_secs(10), || path.exists());
    let output = with_null("pc-send", &[&address]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(receiver.wait().expect("it ends").success());
}

#[test]
fn a_copy_in_the_foreground_is_followed_to_its_end_where_the_caller_gave_dev_null() {
    let folder = Folder::new();
    let image = folder.file("image");
    let mut guest = Guest::start(
        Command::new("sh").args(["-c", "while [ ! -e \"$0\" ]; do :; done; exit 7"]).arg(folder.file("go")),
    );
    dump_to_file(&guest, &image, &["--kill"]);
    guest.ended(Duration::from_secs(10));
    File::create(folder.file("go")).expect("a file");
    let mut tool = Command::new(program("pc-restore"));
    let output = tool
        .stdin(File::open(&image).expect("an image"))
        .stdout(null())
        .stderr(null())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn gzip_and_xz_are_told_by_name_with_the_command_to_type() {
    let folder = Folder::new();
    let guest = sleeper();
    let image = folder.file("image");
    dump_to_file(&guest, &image, &["--leave-running"]);
    for (packer, format) in [("gzip", "gzip"), ("xz", "xz"), ("bzip2", "bzip2")] {
        let packed = folder.file(packer);
        let mut pack = Command::new(packer);
        let ended = pack
            .arg("-c")
            .stdin(File::open(&image).expect("an image"))
            .stdout(File::create(&packed).expect("a file"))
            .status();
        assert!(ended.expect("it is installed").success());
        for tool in ["pc-restore", "pc-show"] {
            let output = Command::new(program(tool))
                .stdin(File::open(&packed).expect("a file"))
                .output()
                .expect("it runs");
            let text = said(&output);
            let named = text.contains(&format!("this is {format}"))
                && text.contains(&format!("{packer} -dc … | {tool}"));
            // In the foreground, all codes of pc-restore but one are the program's.
            let codes = [Some(3), Some(125)];
            assert!(named && codes.contains(&output.status.code()), "{tool}: {:?}: {text}", output.status);
        }
    }
}
