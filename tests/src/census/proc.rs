//! The files of /proc/PID and /proc/PID/task/TID, field by field.

use std::fs;
use std::path::Path;

use super::Sample;
use super::who::Who;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Lines `name: value`.
    Fields,
    /// All of it is one value.
    Text,
    /// A symbolic link.
    Link,
    /// A folder of links.
    Links,
    /// A folder of texts.
    Texts,
    Stat,
    Status,
    Limits,
    Sched,
    Timers,
    Auxv,
    Autogroup,
    /// In the readings of another file, or of a namespace's; or nothing of the process's.
    Elsewhere,
}

/// Every file that the census knows.
const FILES: &[(&str, How)] = &[
    ("arch_status", How::Fields),
    ("attr", How::Texts),
    ("autogroup", How::Autogroup),
    ("auxv", How::Auxv),
    ("cgroup", How::Text),
    ("children", How::Text),
    ("clear_refs", How::Elsewhere), // written only
    ("cmdline", How::Text),
    ("comm", How::Text),
    ("coredump_filter", How::Text),
    ("cpuset", How::Text),
    ("cwd", How::Link),
    ("environ", How::Text),
    ("exe", How::Link),
    ("fd", How::Elsewhere),
    ("fdinfo", How::Elsewhere),
    ("gid_map", How::Text),
    ("io", How::Fields),
    ("ksm_merging_pages", How::Text),
    ("ksm_stat", How::Fields),
    ("limits", How::Limits),
    ("loginuid", How::Text),
    ("map_files", How::Elsewhere), // smaps
    ("maps", How::Elsewhere),      // smaps
    ("mem", How::Elsewhere),
    ("mountinfo", How::Elsewhere),  // of the mount namespace, as the next two
    ("mounts", How::Elsewhere),     //
    ("mountstats", How::Elsewhere), //
    ("net", How::Elsewhere),        // of the network namespace
    ("ns", How::Links),
    ("numa_maps", How::Elsewhere), // memory.rs
    ("oom_adj", How::Text),
    ("oom_score", How::Text),
    ("oom_score_adj", How::Text),
    ("pagemap", How::Elsewhere), // where pages lie in the machine
    ("patch_state", How::Text),
    ("personality", How::Text),
    ("projid_map", How::Text),
    ("root", How::Link),
    ("sched", How::Sched),
    ("schedstat", How::Text),
    ("sessionid", How::Text),
    ("setgroups", How::Text),
    ("smaps", How::Elsewhere),        // memory.rs
    ("smaps_rollup", How::Elsewhere), // sums of smaps
    ("stack", How::Text),
    ("stat", How::Stat),
    ("statm", How::Text),
    ("status", How::Status),
    ("syscall", How::Text),
    ("task", How::Elsewhere),
    ("timens_offsets", How::Text),
    ("timers", How::Timers),
    ("timerslack_ns", How::Text),
    ("uid_map", How::Text),
    ("wchan", How::Text),
];

/// What of a thread's folder is the process's, read once there.
const OF_THE_PROCESS: &[&str] = &[
    "auxv",
    "cgroup",
    "cmdline",
    "cpuset",
    "environ",
    "exe",
    "gid_map",
    "io",
    "ksm_merging_pages",
    "ksm_stat",
    "limits",
    "loginuid",
    "oom_adj",
    "oom_score",
    "oom_score_adj",
    "projid_map",
    "sessionid",
    "setgroups",
    "statm",
    "uid_map",
];

/// Fields of stat, in their order: proc_pid_stat(5).
const STAT: &[&str] = &[
    "pid",
    "comm",
    "state",
    "ppid",
    "pgrp",
    "session",
    "tty_nr",
    "tpgid",
    "flags",
    "minflt",
    "cminflt",
    "majflt",
    "cmajflt",
    "utime",
    "stime",
    "cutime",
    "cstime",
    "priority",
    "nice",
    "num_threads",
    "itrealvalue",
    "starttime",
    "vsize",
    "rss",
    "rsslim",
    "startcode",
    "endcode",
    "startstack",
    "kstkesp",
    "kstkeip",
    "signal",
    "blocked",
    "sigignore",
    "sigcatch",
    "wchan",
    "nswap",
    "cnswap",
    "exit_signal",
    "processor",
    "rt_priority",
    "policy",
    "delayacct_blkio_ticks",
    "guest_time",
    "cguest_time",
    "start_data",
    "end_data",
    "start_brk",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
    "exit_code",
];

/// Flags of a task that stat shows: `PF_*` of include/linux/sched.h.
const TASK_FLAGS: &[(u32, &str)] = &[
    (0x40, "FORKNOEXEC"),
    (0x80, "MCE_PROCESS"),
    (0x100, "SUPERPRIV"),
    (0x400, "SIGNALED"),
    (0x1000, "NPROC_EXCEEDED"),
    (0x2000, "USED_MATH"),
    (0x4000, "USER_WORKER"),
    (0x10_0000, "LOCAL_THROTTLE"),
    (0x40_0000, "RANDOMIZE"),
    (0x400_0000, "NO_SETAFFINITY"),
    (0x800_0000, "MCE_EARLY"),
];

/// Reads the process's files and those of each thread.
pub fn read(pid: i32, who: &Who, sample: &mut Sample) {
    read_folder(&format!("/proc/{pid}"), "process", who, sample);
    for (tid, _) in who.threads() {
        read_folder(&format!("/proc/{pid}/task/{tid}"), &who.thread(*tid), who, sample);
    }
}

fn read_folder(folder: &str, of: &str, who: &Who, sample: &mut Sample) {
    for entry in fs::read_dir(folder).expect("the process is there").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if of != "process" && OF_THE_PROCESS.contains(&name.as_str()) {
            continue;
        }
        match FILES.iter().find(|(known, _)| *known == name) {
            Some((name, how)) => read_file(&path, (name, *how), of, who, sample),
            None => sample.note(format!("file/{name}"), of, "there"),
        }
    }
}

fn read_file(path: &Path, (name, how): (&str, How), of: &str, who: &Who, sample: &mut Sample) {
    match how {
        How::Elsewhere => {}
        How::Link => sample.note(name, of, link(path)),
        How::Links | How::Texts => {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let inner = entry.file_name().to_string_lossy().into_owned();
                let value = if how == How::Links { link(&entry.path()) } else { text(&entry.path()) };
                sample.note(format!("{name}/{inner}"), of, value);
            }
        }
        How::Text => sample.note(name, of, text(path)),
        How::Fields => fields(name, &text(path), of, sample),
        How::Stat => stat(&text(path), of, who, sample),
        How::Status => status(&text(path), of, who, sample),
        How::Limits => limits(&text(path), of, sample),
        How::Sched => sched(&text(path), of, sample),
        How::Timers => timers(&text(path), who, sample),
        How::Auxv => auxv(path, of, sample),
        // `/autogroup-NUMBER nice N`: the number is that of a session. Nothing where it is of none, as what began before
        // any session did: such a one has the nice value that autogroups are born with.
        How::Autogroup => {
            sample.note(name, of, text(path).split_once(' ').map_or("nice 0", |(_, nice)| nice))
        }
    }
}

/// What a file holds, or how it cannot be read.
fn text(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim_end().replace('\0', "\\0"),
        Err(err) => format!("error {}", err.raw_os_error().unwrap_or(0)),
    }
}

fn link(path: &Path) -> String {
    match fs::read_link(path) {
        Ok(to) => to.to_string_lossy().into_owned(),
        Err(err) => format!("error {}", err.raw_os_error().unwrap_or(0)),
    }
}

/// Lines of a name, a colon or blanks, and a value.
fn fields(file: &str, text: &str, of: &str, sample: &mut Sample) {
    for line in text.lines() {
        let (name, value) = line.split_once(':').or_else(|| line.split_once(' ')).unwrap_or((line, ""));
        sample.note(format!("{file}/{}", name.trim()), of, value.trim());
    }
}

/// /proc/PID/status.
pub(super) fn status(text: &str, of: &str, who: &Who, sample: &mut Sample) {
    for line in text.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let last = value.split_whitespace().last().unwrap_or_default();
        let value = match name {
            "Tgid" | "Pid" | "PPid" | "Ngid" => who.id(last.parse().unwrap_or(-1)),
            "NStgid" | "NSpid" => last.to_owned(),
            "NSpgid" | "NSsid" => who.led(last),
            "SigPnd" | "ShdPnd" => continue, // with their data, by ptrace
            "TracerPid" => continue,         // the census itself, or pc-dump
            "State" => stopped(value.trim()).to_owned(),
            _ => value.trim().to_owned(),
        };
        sample.note(format!("status/{name}"), of, value);
    }
}

/// One who holds a process stops it, too.
fn stopped(state: &str) -> &str {
    if state.starts_with(['t', 'T']) { "stopped" } else { state }
}

fn stat(text: &str, of: &str, who: &Who, sample: &mut Sample) {
    let (head, tail) = text.rsplit_once(") ").unwrap_or((text, ""));
    let comm = head.split_once(" (").map_or("", |(_, comm)| comm);
    let head = head.split(' ').next().unwrap_or_default();
    let all = [head, comm].into_iter().chain(tail.split(' '));
    for (i, value) in all.enumerate() {
        let name = STAT.get(i).map_or_else(|| format!("field {}", i + 1), |name| (*name).to_owned());
        match name.as_str() {
            "pid" | "ppid" => sample.note(format!("stat/{name}"), of, who.id(value.parse().unwrap_or(-1))),
            "state" => sample.note("stat/state", of, stopped(value)),
            "flags" => task_flags(value.parse().unwrap_or(0), of, sample),
            // As status and ptrace(2) show them.
            "pgrp" | "session" | "tpgid" | "signal" => {}
            _ => sample.note(format!("stat/{name}"), of, value),
        }
    }
}

fn task_flags(flags: u32, of: &str, sample: &mut Sample) {
    for bit in (0..32).map(|n| 1 << n).filter(|bit| flags & bit != 0) {
        let name = TASK_FLAGS.iter().find(|(known, _)| *known == bit);
        let name = name.map_or_else(|| format!("{bit:#x}"), |(_, name)| (*name).to_owned());
        sample.note(format!("stat/flags/{name}"), of, "set");
    }
}

fn limits(text: &str, of: &str, sample: &mut Sample) {
    for line in text.lines().skip(1) {
        let (name, value) = line.split_at(line.len().min(26));
        let mut both = value.split_whitespace();
        let value = format!("{} {}", both.next().unwrap_or_default(), both.next().unwrap_or_default());
        sample.note(format!("limits/{}", name.trim()), of, value);
    }
}

fn sched(text: &str, of: &str, sample: &mut Sample) {
    for line in text.lines().skip(2) {
        match line.split_once(" :").or_else(|| line.split_once(':')) {
            Some((name, value)) => sample.note(format!("sched/{}", name.trim()), of, value.trim()),
            // Figures of NUMA balancing.
            None => sample.note("sched/numa", of, line.trim()),
        }
    }
}

/// POSIX timers: their number begins a group of lines.
fn timers(text: &str, who: &Who, sample: &mut Sample) {
    let mut of = String::new();
    for line in text.lines() {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        if name == "ID" {
            of = format!("timer {value}");
            continue;
        }
        // Whom it signals: `signal/tid.7` or `signal/pid.7`.
        let value = match value.rsplit_once('.') {
            Some((kind, id)) if name == "notify" => {
                let id = id.parse().map_or_else(|_| id.to_owned(), |id| who.id(id));
                // A thread that has ended is told nothing, whatever is shown.
                let nobody = kind.starts_with("none/") || kind == "signal/tid" && id == "outside";
                if nobody { "nobody".to_owned() } else { format!("{kind}.{id}") }
            }
            _ => value.to_owned(),
        };
        sample.note(format!("timers/{name}"), &of, value);
    }
}

/// Pairs of numbers: what the kernel told the program at its start.
fn auxv(path: &Path, of: &str, sample: &mut Sample) {
    let bytes = fs::read(path).unwrap_or_default();
    let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")));
    let words: Vec<u64> = words.collect();
    let pairs: Vec<String> = words.chunks(2).map(|pair| format!("{pair:x?}")).collect();
    sample.note("auxv", of, pairs.join(" "));
}
