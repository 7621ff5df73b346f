//! pc-restore with streams and machines that do not do: the right exit code, a message that says why, nothing left.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use pc_frame::Preamble;
use pc_image::{Item, OpenFile, OpenFileKind, Reader, Record, Sink as _, Source as _, Writer as ImageWriter};
use pc_tests::python;
use pc_tests::{
    Folder, Guest, Patience, Way, Writer, adopt_orphans, dump_to_file, patient, program, wait_for,
};

/// A program in a folder of its own, its image, and nothing running.
struct Image {
    folder: Folder,
    bytes: Vec<u8>,
    pid: i32,
}

impl Image {
    fn of_sleep() -> Image {
        let folder = Folder::new();
        let sleep = folder.file("sleep");
        fs::copy("/bin/sleep", &sleep).expect("a copy of sleep");
        let mut guest = Guest::start(Command::new(&sleep).arg("300"));
        let wchan = format!("/proc/{}/wchan", guest.pid());
        wait_for("sleep sleeps", Duration::from_secs(5), || {
            fs::read_to_string(&wchan).is_ok_and(|place| place.contains("nanosleep"))
        });
        dump_to_file(&guest, &folder.file("image"), &["--kill"]);
        guest.ended(Duration::from_secs(5));
        let bytes = fs::read(folder.file("image")).expect("an image");
        Image { pid: guest.pid(), folder, bytes }
    }

    /// Restores `bytes`, and gives the exit code and what was said. Nothing may be left of it.
    fn restore(&self, bytes: &[u8], args: &[&str]) -> (Option<i32>, String) {
        let path = self.folder.file("input");
        fs::write(&path, bytes).expect("an input");
        let mut tool = Command::new(program("pc-restore"));
        let output = tool.args(args).stdin(File::open(&path).expect("an input")).output().expect("it runs");
        nothing_left();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Refused with this code and these words, whether detached or not.
    fn refused(&self, bytes: &[u8], code: i32, word: &str) {
        for (args, code) in [(&["--detach"][..], code), (&["--detach", "--no-pipeline"], code), (&[], 125)] {
            let (got, said) = self.restore(bytes, args);
            assert!(got == Some(code) && said.contains(word), "{got:?}, not {code}: {said:?}, not {word:?}");
            assert!(said.starts_with("pc-restore: "), "{said}");
            assert!(!Path::new(&format!("/proc/{}", self.pid)).exists(), "the pid is in use");
        }
    }

    /// The stream with its records changed, and whole again.
    fn changed(&self, mut change: impl FnMut(&mut Record)) -> Vec<u8> {
        let mut reader = Reader::new(&self.bytes[..]);
        let mut writer = ImageWriter::new(Vec::new(), [7; 16]).expect("a writer");
        while let Some(item) = reader.next().expect("a good stream") {
            match item {
                Item::Pages(pages) => {
                    writer.pages(pages.space, &pages.runs, &[pages.data()]).expect("written");
                }
                Item::Patches(it) => writer.patches(it.space, &it.patches, it.data()).expect("written"),
                Item::Record(record) => {
                    let mut record = *record;
                    change(&mut record);
                    match record {
                        Record::Commit(_) => writer.commit().expect("committed"),
                        record => writer.record(&record).expect("written"),
                    }
                }
            }
        }
        writer.finish().expect("finished")
    }
}

/// As a kernel that suspends has watches: where the kernel here drops the flag, that is said.
#[test]
fn watches_that_do_not_keep_the_machine_awake_any_more_are_named() {
    adopt_orphans();
    let folder = Folder::new();
    let first =
        "import select\nwatch = select.epoll()\nevent = os.eventfd(1)\nwatch.register(event, select.EPOLLIN)";
    let guest = python::started(&folder, &mut python::python(&folder, first, "assert watch.poll(0)"));
    let pid = guest.pid();
    let bytes = fs::read(python::image_of(&folder, guest, &[])).expect("an image");
    let image = Image { folder, bytes, pid };
    for (flag, due) in [(0, false), (1 << 29, true)] {
        let bytes = image.changed(|record| {
            if let Record::OpenFile(OpenFile { kind: OpenFileKind::Epoll(state), .. }) = record {
                state.targets.iter_mut().for_each(|target| target.events |= flag);
            }
        });
        let path = image.folder.file("awake");
        fs::write(&path, bytes).expect("an image");
        let mut tool = Command::new(program("pc-restore"));
        let mut tool =
            tool.stdin(File::open(&path).expect("an image")).stderr(Stdio::piped()).spawn().expect("it runs");
        wait_for("the copy runs", Duration::from_secs(10), || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with("python"))
                && pc_tests::status(pid, "TracerPid") == "0"
        });
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/3")).expect("the epoll instance");
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
        let mut said = String::new();
        tool.stderr.take().expect("its stderr").read_to_string(&mut said).expect("read");
        tool.wait().expect("it ends");
        assert!(info.contains("tfd:"), "{info}");
        let kept = info.contains("events: 20000001");
        assert_eq!(said.contains("EPOLLWAKEUP"), due && !kept, "{said}\n{info}");
    }
}

/// No husk and no init of a namespace is a child of ours.
fn nothing_left() {
    wait_for("husks are gone", Duration::from_secs(2), || husks().is_empty());
}

fn husks() -> Vec<String> {
    let own = std::process::id().to_string();
    let stats = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let left = stats.filter(|stat| {
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |s| s.1).split_whitespace().collect();
        (stat.contains("(pc-husk)") || stat.contains("(pc-init)")) && fields[0] != "Z" && fields[1] == own
    });
    left.collect()
}

#[test]
fn a_stream_that_is_empty_or_cut_leaves_nothing() {
    adopt_orphans();
    let image = Image::of_sleep();
    image.refused(&[], 4, "ends early");
    for part in 0..24 {
        let at = (image.bytes.len() - 1) * part / 24 + 1;
        let (code, said) = image.restore(&image.bytes[..at], &["--detach"]);
        assert!(code == Some(4) && said.contains("ends early"), "cut at {at}: {code:?}: {said}");
    }
    image.refused(&image.bytes[..image.bytes.len() - 1], 4, "ends early");
    image.refused(
        b"GET / HTTP/1.1\r\nHost: here\r\nAccept: */*\r\nUser-Agent: nobody in particular\r\n\r\n",
        3,
        "",
    );
}

#[test]
fn a_stream_with_a_wrong_bit_leaves_nothing() {
    adopt_orphans();
    let image = Image::of_sleep();
    for part in 0..48 {
        let at = (image.bytes.len() - 1) * part / 47;
        let mut bent = image.bytes.clone();
        bent[at] ^= 1 << (part % 8);
        let (code, said) = image.restore(&bent, &["--detach"]);
        assert!(matches!(code, Some(3 | 4)), "bent at {at}: {code:?}: {said}");
    }
}

#[test]
fn a_stream_of_another_machine_is_refused_by_name() {
    let image = Image::of_sleep();
    let preamble: [u8; pc_frame::PREAMBLE_LEN] =
        image.bytes[..pc_frame::PREAMBLE_LEN].try_into().expect("a preamble");
    let with = |change: fn(&mut Preamble)| {
        let mut preamble = Preamble::decode(&preamble).expect("a preamble");
        change(&mut preamble);
        [&preamble.encode()[..], &image.bytes[pc_frame::PREAMBLE_LEN..]].concat()
    };
    image.refused(&with(|p| p.arch = 183), 6, "183");
    image.refused(&with(|p| p.page_size = 16384), 6, "16384");
    image.refused(&with(|p| p.version = 99), 6, "99");
    let needy = image.changed(|record| {
        if let Record::Machine(machine) = record {
            machine.memory_needed = 1 << 50;
        }
    });
    image.refused(&needy, 6, "memory");
    let modern = image.changed(|record| {
        if let Record::Machine(machine) = record {
            machine.cpu.flags.push("teleport".into());
        }
    });
    image.refused(&modern, 6, "teleport");
    let elsewhere = image.changed(|record| {
        if let Record::Machine(machine) = record {
            machine.vdso.image[1000] ^= 1;
        }
    });
    image.refused(&elsewhere, 6, "vDSO");
}

#[test]
fn a_binary_that_is_another_or_missing_is_refused_by_name() {
    let image = Image::of_sleep();
    let sleep = image.folder.file("sleep");
    let path = sleep.to_str().expect("a path");
    fs::copy("/bin/cat", &sleep).expect("another program");
    image.refused(&image.bytes, 6, path);
    image.refused(&image.bytes, 6, "build id");
    fs::remove_file(&sleep).expect("removed");
    image.refused(&image.bytes, 6, path);
    fs::create_dir(&sleep).expect("a folder");
    image.refused(&image.bytes, 6, "another kind");
}

#[test]
fn a_pid_that_is_taken_is_refused_by_name() {
    let folder = Folder::new();
    let guest = Guest::start(Command::new("sleep").arg("300"));
    std::thread::sleep(patient(Duration::from_millis(100)));
    dump_to_file(&guest, &folder.file("image"), &["--leave-running"]);
    let mut tool = Command::new(program("pc-restore"));
    let input = File::open(folder.file("image")).expect("an image");
    let output = tool.arg("--detach").stdin(input).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(6) && said.contains(&guest.arg()) && said.contains("taken"),
        "{said}"
    );
    nothing_left();
    assert_eq!(pc_tests::status(guest.pid(), "State").chars().next(), Some('S'));
}

#[test]
fn a_terminal_is_no_stream() {
    let script = "import os,pty,sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut python = Command::new("python3");
    let python = python.args(["-c", script]).arg(program("pc-restore")).arg("--detach").stdin(Stdio::null());
    let output = python.output().expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(2) && said.contains("terminal"), "{:?}: {said}", output.status);
}

#[test]
fn a_stream_that_stops_coming_leaves_nothing_when_pc_restore_is_told_to_end() {
    adopt_orphans();
    let image = Image::of_sleep();
    let mut tool = Command::new(program("pc-restore"));
    let tool = tool.arg("--detach").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().expect("it runs");
    let mut stdin = tool.stdin.take().expect("a pipe");
    stdin.write_all(&image.bytes[..image.bytes.len() * 3 / 4]).expect("written");
    wait_for("a husk", Duration::from_secs(5), || Path::new(&format!("/proc/{}", image.pid)).exists());
    let pid = Pid::from_raw(tool.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is there");
    let mut said = String::new();
    tool.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(tool.wait().expect("it ends").code(), Some(7), "{said}");
    nothing_left();
    assert!(!Path::new(&format!("/proc/{}", image.pid)).exists(), "the husk is left");
}

/// Killed at any moment, pc-restore leaves either nothing or a process that runs.
#[test]
fn pc_restore_killed_at_any_moment_leaves_nothing_half_made() {
    adopt_orphans();
    let (mut killed, mut ran) = (0, 0);
    for way in [Way::File, Way::NewPidNs] {
        let image = Image::of_sleep();
        let path = image.folder.file("image");
        for i in 0..60u64 {
            let mut tool = Command::new(program("pc-restore"));
            let args: &[&str] =
                if way == Way::NewPidNs { &["--detach", "--new-pid-ns"] } else { &["--detach"] };
            let tool = tool.args(args).stdin(File::open(&path).expect("an image")).stderr(Stdio::null());
            let mut tool = tool.spawn().expect("it runs");
            std::thread::sleep(Duration::from_micros(150 * i));
            let _ = tool.kill();
            tool.wait().expect("it ends");
            let children = copies(&image.folder.file("sleep"));
            nothing_left_but(&children);
            let is_there = |pid: &i32| Path::new(&format!("/proc/{pid}/exe")).exists();
            let children: Vec<i32> = children.into_iter().filter(is_there).collect();
            if children.is_empty() {
                killed += 1;
            } else {
                ran += 1;
            }
            children.into_iter().for_each(|pid| drop(Guest::adopt(pid)));
            wait_for("the pid is free", Duration::from_secs(5), || {
                reap(image.pid);
                !Path::new(&format!("/proc/{}", image.pid)).exists()
            });
        }
    }
    println!("killed at 120 moments: {killed} left nothing, {ran} left a copy that runs");
}

/// Processes whose program is that file and which sleep as it does.
fn copies(exe: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|link| link == exe)
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
            && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("TracerPid:\t0"))
    })
    .collect()
}

/// What a killed pc-restore leaves dies with it, and is ours to reap.
fn reap(pid: i32) {
    let own = std::process::id().to_string();
    if fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains(&format!("PPid:\t{own}\n")))
    {
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
    }
}

fn nothing_left_but(copies: &[i32]) {
    // One that dies with its pc-restore may have been taken for a copy a moment ago.
    let parent = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("PPid:")?.trim().to_owned()))
    };
    let inits: Vec<String> = copies.iter().filter_map(parent).collect();
    let strays = || -> Vec<String> {
        let left = husks().into_iter();
        left.filter(|stat| !inits.iter().any(|init| stat.starts_with(&format!("{init} ")))).collect()
    };
    let mut patience = Patience::new(Duration::from_secs(2));
    while !strays().is_empty() {
        assert!(!patience.is_over(), "left: {:?}, copies {copies:?}", strays());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_writing_guest_is_no_worse_for_a_restore_that_fails() {
    adopt_orphans();
    let writer = Writer::start();
    let folder = Folder::new();
    let before = pc_tests::status(writer.guest.pid(), "TracerPid");
    dump_to_file(&writer.guest, &folder.file("image"), &["--leave-running"]);
    let mut tool = Command::new(program("pc-restore"));
    let tool = tool.arg("--detach").stdin(File::open(folder.file("image")).expect("an image"));
    let output = tool.output().expect("it runs");
    assert_eq!(output.status.code(), Some(6), "its pid is taken");
    nothing_left();
    assert_eq!(pc_tests::status(writer.guest.pid(), "TracerPid"), before);
    writer.goes_on();
    writer.end();
}
