//! A guest that is apart from others in one way, and tells what it finds around it.
//!
//! `guest-apart REPORT FILE WAY…`: `REPORT.ready` appears when it is ready; at each SIGUSR1 it writes a line for each thing that
//! it finds to REPORT. FILE is held open from the start, and opened anew each time. Ways:
//!
//! - `ns KIND`: in a namespace of its own; with `mnt`, FILE is on a file system that is mounted there alone;
//! - `user`: in a user namespace of its own in which nobody is root;
//! - `chroot DIR`: with a root directory of its own, in which FILE then is;
//! - `thread files|fs|uts|cgroup`: a second thread has that for itself (`cgroup`: waits for the test to move it);
//! - `loginuid N`: sets it; `autogroup N`: in a session of its own whose autogroup has that nice value.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid};

const NOBODY: u32 = 65_534;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let [_, report, file, way @ ..] = words.as_slice() else { panic!("REPORT FILE WAY…") };
    let go = SigSet::from_iter([Signal::SIGUSR1]);
    go.thread_block().expect("a mask");
    // What is written goes there by a descriptor: the path may lead elsewhere by then.
    let folder = File::open(Path::new(report).parent().expect("a folder")).expect("a folder");
    let file = set_apart(way, file);
    let mut held = File::open(&file).expect("the file");
    let name = Path::new(report).file_name().and_then(|name| name.to_str()).expect("a name");
    write(&folder, &format!("{name}.ready"), "");
    loop {
        go.wait().expect("a signal");
        write(&folder, &format!("{name}.new"), &findings(&mut held, &file));
        nix::fcntl::renameat(&folder, format!("{name}.new").as_str(), &folder, name).expect("a report");
    }
}

fn write(folder: &File, name: &str, text: &str) {
    use nix::fcntl::{OFlag, openat};
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    let file = openat(folder, name, flags, mode).expect("a report");
    nix::unistd::write(&file, text.as_bytes()).expect("a report");
}

/// Gives the way to the file from then on.
fn set_apart(way: &[&str], file: &str) -> String {
    match way {
        [] => {}
        ["ns", "mnt"] => {
            unshare(CloneFlags::CLONE_NEWNS).expect("as root");
            mount(&["--make-rprivate", "/"]);
            let folder = Path::new(file).parent().and_then(Path::to_str).expect("a folder");
            mount(&["-t", "tmpfs", "apart", folder]);
            fs::write(file, "mounted").expect("a file");
        }
        ["ns", kind] => unshare(flag_of(kind)).expect("as root"),
        ["user"] => user(),
        ["chroot", folder] => {
            nix::unistd::chroot(*folder).expect("as root");
            nix::unistd::chdir("/").expect("a root");
            return format!(
                "/{}",
                Path::new(file).file_name().and_then(|name| name.to_str()).expect("a name")
            );
        }
        ["thread", what] => second_thread(what),
        ["loginuid", uid] => fs::write("/proc/self/loginuid", uid).expect("not set before"),
        ["autogroup", nice] => {
            nix::unistd::setsid().expect("no leader");
            fs::write("/proc/self/autogroup", nice).expect("groups of sessions");
        }
        other => panic!("{other:?}"),
    }
    file.to_owned()
}

fn mount(args: &[&str]) {
    let done = Command::new("mount").args(args).status().expect("mount runs");
    assert!(done.success(), "mount {args:?}");
}

fn flag_of(kind: &str) -> CloneFlags {
    match kind {
        "net" => CloneFlags::CLONE_NEWNET,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        other => panic!("{other}"),
    }
}

/// Root of a user namespace that belongs to nobody.
fn user() {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setgroups(&[]).expect("as root");
    nix::unistd::setresgid(gid, gid, gid).expect("as root");
    nix::unistd::setresuid(uid, uid, uid).expect("as root");
    nix::sys::prctl::set_dumpable(true).expect("dumpable");
    unshare(CloneFlags::CLONE_NEWUSER).expect("user namespaces");
    fs::write("/proc/self/setgroups", "deny").expect("setgroups");
    fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1")).expect("a map");
    fs::write("/proc/self/gid_map", format!("0 {NOBODY} 1")).expect("a map");
}

fn second_thread(what: &str) {
    let (tell, told) = mpsc::channel();
    let flags = match what {
        "files" => CloneFlags::CLONE_FILES,
        "fs" => CloneFlags::CLONE_FS,
        "uts" => CloneFlags::CLONE_NEWUTS,
        _ => CloneFlags::empty(),
    };
    std::thread::spawn(move || {
        unshare(flags).expect("as root");
        tell.send(()).expect("the first thread");
        loop {
            std::thread::park();
        }
    });
    told.recv().expect("the second thread");
}

fn findings(held: &mut File, file: &str) -> String {
    let mut text = String::new();
    held.rewind().expect("a file");
    held.read_to_string(&mut text).expect("a file");
    let shadow = File::open("/etc/shadow").map_or_else(|err| err.kind().to_string(), |_| "opened".to_owned());
    let anew = fs::read_to_string(file).unwrap_or_else(|err| err.to_string());
    let mut found = format!(
        "held {}\nanew {}\nuid {}\ngid {}\nshadow {shadow}\n",
        text.trim(),
        anew.trim(),
        Uid::current(),
        Gid::current()
    );
    for value in ["loginuid", "autogroup"] {
        let text = fs::read_to_string(format!("/proc/self/{value}")).unwrap_or_default();
        // What is of no session has no autogroup, which says nothing, and counts as one of nice value 0.
        let text = text.split_whitespace().last().unwrap_or("0");
        found += &format!("{value} {text}\n");
    }
    found
}
