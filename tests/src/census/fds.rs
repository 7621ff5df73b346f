//! Descriptors: where they lead, /proc/PID/fdinfo, fcntl(2), and what is special to sockets.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use pc_sys::fcntl::{getown_ex, getsig, queued};
use pc_sys::kcmp::kcmp_file;
use pc_sys::pidfd::{pidfd_getfd, pidfd_open};

use super::Sample;
use super::sockets;
use super::who::{NAMELESS, Who};

/// The reading of a descriptor that leads outside.
pub const OUTSIDE: &str = "fd/outside";

/// Reads all descriptors of the process.
pub fn read(pid: i32, who: &mut Who, sample: &mut Sample) {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    let mut numbers: Vec<i32> =
        folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let pidfd = pidfd_open(pid).expect("a pidfd");
    let links: Vec<String> = numbers.iter().map(|number| link(pid, *number)).collect();
    let infos: Vec<String> = numbers.iter().map(|number| info(pid, *number)).collect();
    // All before any: an epoll instance may watch what has a higher number.
    for (_, info) in links.iter().zip(&infos).filter(|(link, _)| is_nameless(link) || link.contains(":[")) {
        info.lines().filter_map(|line| line.strip_prefix("ino:")).for_each(|ino| drop(who.inode(ino.trim())));
    }
    for (i, number) in numbers.iter().enumerate() {
        let of = format!("fd {number}");
        let (link, info) = (&links[i], &infos[i]);
        if leads_outside(link, &links, &infos) {
            sample.note(OUTSIDE, &of, link);
        } else {
            sample.note("fd/link", &of, without_number(link, who));
        }
        let first =
            numbers.iter().find(|first| kcmp_file((pid, **first), (pid, *number)).is_ok_and(|o| o.is_eq()));
        sample.note("fd/same as", &of, first.map_or_else(String::new, ToString::to_string));
        let nameless = is_nameless(link);
        fdinfo(info, (&of, link, nameless), who, sample);
        match pidfd_getfd(pidfd.as_fd(), *number) {
            Ok(fd) => descriptor(&fd, &of, link, who, sample),
            // One opened by O_PATH.
            Err(err) => sample.note("fd/error", &of, err.to_string()),
        }
    }
}

/// What has no name of its own, or one that means a process: made anew, it has another inode number.
fn is_nameless(link: &str) -> bool {
    let of_process =
        link.strip_prefix("/proc/").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    of_process || NAMELESS.iter().any(|start| link.starts_with(start))
}

fn link(pid: i32, number: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
    link.to_string_lossy().into_owned()
}

fn info(pid: i32, number: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default()
}

/// A terminal, or a pipe that the process has one end of: what becomes of it in the copy, `--attach` says.
fn leads_outside(link: &str, links: &[String], infos: &[String]) -> bool {
    let ends = |mode: &str| {
        let has = |info: &String| info.lines().any(|line| line.starts_with("flags:") && line.ends_with(mode));
        links.iter().zip(infos).any(|(other, info)| other == link && has(info))
    };
    let is_pipe = link.starts_with("pipe:[");
    link.starts_with("/dev/pts/") || is_pipe && !ends("2") && !(ends("0") && ends("1"))
}

/// `socket:[123]` by the order of its first mention.
fn without_number(link: &str, who: &mut Who) -> String {
    match link.strip_suffix(']').and_then(|link| link.split_once(":[")) {
        Some((kind @ ("socket" | "pipe"), number)) => format!("{kind}:[{}]", who.inode(number)),
        _ => link.to_owned(),
    }
}

fn fdinfo(info: &str, (of, link, nameless): (&str, &str, bool), who: &mut Who, sample: &mut Sample) {
    let mut watched = Vec::new();
    // Between its expiry and the next read, a timer with an interval has no time left.
    let ticking = info.contains("it_interval:") && !info.contains("it_interval: (0, 0)");
    for line in info.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = match name.trim() {
            "ino" if nameless => who.inode(value.trim()),
            "ino" => who.known_inode(value.trim()),
            "Pid" | "NSpid" => who.id(value.trim().parse().unwrap_or(-1)),
            "flags" if link.starts_with("pipe:[") => without_large_file(value.trim()),
            // It goes on, stopped or not.
            "ticks" if ticking => "go on".to_owned(),
            // What is left of the time.
            "it_value" => if !ticking && value.contains("(0, 0)") { "off" } else { "armed" }.to_owned(),
            "tfd" => {
                watched.push(epoll_target(value, who));
                continue;
            }
            _ => value.trim().to_owned(),
        };
        sample.note(format!("fdinfo/{}", name.trim()), of, value);
    }
    if !watched.is_empty() {
        // The kernel orders them by where the files lie in its memory.
        watched.sort();
        sample.note("fdinfo/tfd", of, watched.join("; "));
    }
}

/// The flags of something that open(2) may have opened anew (a pipe by /proc/PID/fd): it sets `O_LARGEFILE`, which says
/// nothing about what has no size.
fn without_large_file(octal: &str) -> String {
    const O_LARGEFILE: u32 = 0o100000;
    u32::from_str_radix(octal, 8)
        .map_or_else(|_| octal.to_owned(), |flags| format!("{:08o}", flags & !O_LARGEFILE))
}

/// `NUMBER events: … data: … pos:… ino:HEX sdev:HEX`
fn epoll_target(line: &str, who: &Who) -> String {
    let words: Vec<String> = line
        .split_whitespace()
        .map(|word| match word.strip_prefix("ino:").map(|hex| u64::from_str_radix(hex, 16)) {
            Some(Ok(number)) => format!("ino:{}", who.known_inode(&number.to_string())),
            _ => word.to_owned(),
        })
        .collect();
    // The device of a procfs is another in another pid namespace.
    let known = words.iter().any(|word| word.starts_with("ino:#"));
    let words = words.into_iter().filter(|word| !known || !word.starts_with("sdev:"));
    words.collect::<Vec<_>>().join(" ")
}

fn descriptor(fd: &OwnedFd, of: &str, link: &str, who: &Who, sample: &mut Sample) {
    let fd = fd.as_fd();
    if let Ok(owner) = getown_ex(fd) {
        sample.note("fcntl/F_GETOWN_EX", of, format!("{} {}", owner.kind, who.id(owner.pid)));
    }
    note_number("fcntl/F_GETSIG", of, getsig(fd).ok(), sample);
    note_number("fcntl/F_GETPIPE_SZ", of, ask(fd, FcntlArg::F_GETPIPE_SZ), sample);
    note_number("fcntl/F_GET_SEALS", of, ask(fd, FcntlArg::F_GET_SEALS), sample);
    sample.note("queue/bytes", of, queued(fd).to_string());
    if link.starts_with("socket:") {
        sockets::read(fd, of, who, sample);
    }
}

fn ask(fd: BorrowedFd<'_>, what: FcntlArg<'_>) -> Option<i32> {
    fcntl(fd, what).ok()
}

fn note_number(name: &str, of: &str, value: Option<i32>, sample: &mut Sample) {
    if let Some(value) = value {
        sample.note(name, of, value.to_string());
    }
}
