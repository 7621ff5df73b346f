//! A process with settings of every kind and memory of every kind, which reads all of it back after a move.
//!
//! `guest-state REPORT FOLDER`: see `pc_tests::guest`. Works in FOLDER, needs root. With `--huge` it has huge pages, too.

use std::fs;
use std::io::Error;
use std::process::ExitCode;
use std::ptr::null_mut;

use libc::{c_int, c_void};

const PAGE: usize = 4096;
/// Where its mappings begin; 16 pages each, with a gap after each.
const AT: usize = 0x5200_0000_0000;
const SLOT: usize = 1 << 22;
const MADV_GUARD_INSTALL: c_int = 102;

fn ok(got: i64, what: &str) -> i64 {
    assert!(got >= 0, "{what}: {}", Error::last_os_error());
    got
}

fn raw(nr: i64, args: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    unsafe { libc::syscall(nr, a, b, c, d, e) }
}

fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

fn map(slot: usize, prot: c_int, flags: c_int, fd: c_int) -> usize {
    let len = if flags & libc::MAP_HUGETLB != 0 { 2 << 20 } else { 16 * PAGE };
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    let want = AT + slot * SLOT;
    // SAFETY: a new mapping at a place that is free.
    let got = unsafe { libc::mmap(want as *mut c_void, len, prot, flags, fd, 0) };
    assert_eq!(got as usize, want, "mapping {slot}: {}", Error::last_os_error());
    want
}

fn fill(addr: usize, seed: u8) {
    for i in 0..16 * PAGE {
        // SAFETY: inside a writable mapping of ours.
        unsafe { ((addr + i) as *mut u8).write_volatile((i / 7) as u8 ^ seed) };
    }
}

fn advise(addr: usize, advice: c_int) {
    ok(raw(libc::SYS_madvise, [addr, 16 * PAGE, advice as usize, 0, 0]), "madvise");
}

const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANON: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Makes memory of every kind; gives the addresses of what may be read.
fn memory(huge: bool) -> Vec<usize> {
    let mut readable = Vec::new();
    let mut anonymous = |slot: usize, advice: &[c_int]| {
        let addr = map(slot, RW, ANON, -1);
        fill(addr, slot as u8);
        advice.iter().for_each(|advice| advise(addr, *advice));
        readable.push(addr);
        addr
    };
    anonymous(0, &[]);
    anonymous(1, &[libc::MADV_DONTFORK, libc::MADV_DONTDUMP]);
    anonymous(2, &[libc::MADV_HUGEPAGE, libc::MADV_WIPEONFORK]);
    anonymous(3, &[libc::MADV_NOHUGEPAGE, libc::MADV_SEQUENTIAL]);
    anonymous(4, &[libc::MADV_RANDOM, libc::MADV_MERGEABLE]);
    let locked = anonymous(5, &[]);
    ok(raw(libc::SYS_mlock2, [locked, 8 * PAGE, 0, 0, 0]), "mlock");
    let on_fault = anonymous(6, &[]);
    ok(raw(libc::SYS_mlock2, [on_fault, 8 * PAGE, 1, 0, 0]), "mlock2");
    let read_only = anonymous(7, &[]);
    ok(raw(libc::SYS_mprotect, [read_only, 16 * PAGE, libc::PROT_READ as usize, 0, 0]), "mprotect");
    let named = anonymous(8, &[]);
    // Names are not in every kernel; where they are, smaps shows them.
    raw(libc::SYS_prctl, [0x5356_4d41, 0, named, 16 * PAGE, at(c"guest memory")]);
    let hidden = map(9, RW, ANON, -1);
    fill(hidden, 9);
    ok(raw(libc::SYS_mprotect, [hidden, 16 * PAGE, 0, 0, 0]), "mprotect");
    let guarded = map(10, RW, ANON, -1);
    fill(guarded, 10);
    let guard = raw(libc::SYS_madvise, [guarded + 2 * PAGE, PAGE, MADV_GUARD_INSTALL as usize, 0, 0]);
    ok(guard, "MADV_GUARD_INSTALL");
    map(11, RW, ANON | libc::MAP_NORESERVE, -1);
    map(12, RW, ANON | libc::MAP_GROWSDOWN, -1);
    files(&mut readable);
    if huge {
        let addr = map(15, RW, ANON | libc::MAP_HUGETLB, -1);
        fill(addr, 15);
        readable.push(addr);
    }
    readable
}

/// A private mapping with pages that differ from the file, and a shared one that is read only.
fn files(readable: &mut Vec<usize>) {
    let content: Vec<u8> = (0..16 * PAGE).map(|i| (i / 11) as u8).collect();
    fs::write("mapped", content).expect("a file");
    let file = fs::File::open("mapped").expect("a file");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let private = map(13, RW, libc::MAP_PRIVATE, fd);
    for page in [3, 4, 9] {
        // SAFETY: inside a private, writable mapping.
        unsafe { ((private + page * PAGE + 5) as *mut u8).write_volatile(0xee) };
    }
    readable.push(private);
    readable.push(map(14, libc::PROT_READ, libc::MAP_SHARED, fd));
}

/// Settings of the process, none of which a new process has.
fn settings(folder: &str) {
    std::env::set_current_dir(folder).expect("the folder");
    // SAFETY: plain calls with integers, or with structures that live across them.
    unsafe {
        libc::umask(0o027);
        ok(libc::setpriority(libc::PRIO_PROCESS, 0, 7).into(), "nice");
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        ok(libc::sched_setaffinity(0, size_of_val(&cpus), &cpus).into(), "affinity");
        for (which, soft) in
            [(libc::RLIMIT_NOFILE, 2000), (libc::RLIMIT_CORE, 0), (libc::RLIMIT_STACK, 7 << 20)]
        {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(which, &mut limit);
            limit.rlim_cur = soft;
            ok(libc::setrlimit(which, &limit).into(), "rlimit");
        }
        ok(libc::personality(libc::ADDR_NO_RANDOMIZE as u64).into(), "personality");
        ok(libc::setgroups(2, [1000, 2000].as_ptr()).into(), "setgroups");
        for signal in [libc::SIGUSR2, libc::SIGRTMIN() + 1] {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaddset(&mut action.sa_mask, libc::SIGHUP);
            libc::sigaction(signal, &action, null_mut());
        }
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        let stack = libc::stack_t { ss_sp: map(20, RW, ANON, -1) as *mut _, ss_flags: 0, ss_size: 16 * PAGE };
        ok(libc::sigaltstack(&stack, null_mut()).into(), "sigaltstack");
    }
    fs::write("/proc/self/oom_score_adj", "321").expect("oom_score_adj");
    fs::write("/proc/self/coredump_filter", "0x13").expect("coredump_filter");
    fs::write("/proc/self/comm", "a guest (x) y").expect("comm");
    ok(raw(libc::SYS_ioprio_set, [1, 0, 2 << 13 | 5, 0, 0]), "ioprio");
    for (option, value) in [
        (libc::PR_SET_TIMERSLACK, 70_000),
        (libc::PR_SET_CHILD_SUBREAPER, 1),
        (libc::PR_SET_THP_DISABLE, 1),
        (libc::PR_CAPBSET_DROP, 22), // CAP_SYS_BOOT
        (libc::PR_SET_NO_NEW_PRIVS, 1),
    ] {
        ok(raw(libc::SYS_prctl, [option as usize, value, 0, 0, 0]), "prctl");
    }
}

extern "C" fn nothing(_: c_int) {}

/// Timers that never go off here, the middle one of three deleted.
fn timers() {
    // SAFETY: plain calls with structures that live across them.
    unsafe {
        for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
            let time = libc::timeval { tv_sec: 1000 + i64::from(which), tv_usec: 0 };
            let timer = libc::itimerval { it_interval: time, it_value: time };
            ok(raw(libc::SYS_setitimer, [which as usize, at(&timer), 0, 0, 0]), "setitimer");
        }
        for (i, clock) in
            [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME].iter().enumerate()
        {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = if i == 2 { libc::SIGEV_NONE } else { libc::SIGEV_SIGNAL };
            event.sigev_signo = libc::SIGRTMIN() + 1;
            event.sigev_value.sival_ptr = (0x1234 + i) as *mut c_void;
            let mut id = 0i32;
            ok(
                raw(
                    libc::SYS_timer_create,
                    [*clock as usize, at(&event), std::ptr::from_mut(&mut id) as usize, 0, 0],
                ),
                "timer",
            );
            let time = libc::timespec { tv_sec: 5000 + i as i64, tv_nsec: 0 };
            let spec = libc::itimerspec { it_interval: time, it_value: time };
            ok(raw(libc::SYS_timer_settime, [id as usize, 0, at(&spec), 0, 0]), "timer_settime");
            if i == 1 {
                ok(raw(libc::SYS_timer_delete, [id as usize, 0, 0, 0, 0]), "timer_delete");
            }
        }
    }
}

/// Signals that wait, with their values.
fn pending() {
    for value in 1..=3usize {
        let value = libc::sigval { sival_ptr: (100 * value) as *mut c_void };
        // SAFETY: a blocked signal to ourselves.
        unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN() + 5, value) };
    }
    // SAFETY: a blocked signal to this thread.
    unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGQUIT) };
}

fn block() {
    // SAFETY: a set on the stack.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        for signal in [libc::SIGRTMIN() + 5, libc::SIGQUIT, libc::SIGUSR1] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, null_mut());
    }
}

/// A filter by which getpriority(2) gives 42 as its error.
fn seccomp() {
    let insn = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_getpriority as u32),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | 42),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
    ok(raw(libc::SYS_prctl, [libc::PR_SET_SECCOMP as usize, 2, at(&program), 0, 0]), "seccomp");
}

/// A system call's result, as text.
fn asked(name: &str, nr: i64, args: [usize; 5]) -> String {
    let got = raw(nr, args);
    format!(
        "{name} {}",
        if got < 0 { -i64::from(Error::last_os_error().raw_os_error().unwrap_or(0)) } else { got }
    )
}

fn readings(readable: &[usize]) -> Vec<String> {
    let mut all = of_proc();
    for which in 0..16 {
        // SAFETY: `limit` is writable.
        let limit = unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(which, &mut limit);
            limit
        };
        all.push(format!("rlimit {which} {:?}", limit.rlim_cur));
    }
    let words = [0u64; 16];
    let to = at(&words);
    let peek = |n: usize| {
        // SAFETY: inside `words`, which the kernel has written to.
        (0..n).map(|i| unsafe { std::ptr::from_ref(&words[i]).read_volatile() }).collect::<Vec<_>>()
    };
    for which in 0..3usize {
        ok(raw(libc::SYS_getitimer, [which, to, 0, 0, 0]), "getitimer");
        let got = peek(3);
        all.push(format!("itimer {which}: every {}, {} left", got[0], got[2] / 100));
    }
    for id in 0..3usize {
        let got = raw(libc::SYS_timer_gettime, [id, to, 0, 0, 0]);
        let time = peek(3);
        all.push(format!(
            "timer {id}: {got}, {}",
            if got < 0 { String::new() } else { format!("every {}, {} left", time[0], time[2] / 100) }
        ));
    }
    ok(raw(libc::SYS_sigaltstack, [0, to, 0, 0, 0]), "sigaltstack");
    all.push(format!("altstack {:?}", peek(3)));
    for signal in 1..=64usize {
        if raw(libc::SYS_rt_sigaction, [signal, 0, to, 8, 0]) == 0 {
            all.push(format!("action {signal} {:x?}", peek(4)));
        }
    }
    for option in [
        libc::PR_GET_DUMPABLE,
        libc::PR_GET_TIMERSLACK,
        libc::PR_GET_THP_DISABLE,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_GET_SECUREBITS,
    ] {
        all.push(asked(&format!("prctl {option}"), libc::SYS_prctl, [option as usize, 0, 0, 0, 0]));
    }
    raw(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER as usize, to, 0, 0, 0]);
    all.push(format!("subreaper {:?}", peek(1)));
    all.push(asked("ioprio", libc::SYS_ioprio_get, [1, 0, 0, 0, 0]));
    all.push(asked("getpriority", libc::SYS_getpriority, [0, 0, 0, 0, 0]));
    all.push(asked("umask", libc::SYS_umask, [0o027, 0, 0, 0, 0]));
    all.push(format!("brk {:x}", raw(libc::SYS_brk, [0; 5]) >> 20));
    all.extend(readable.iter().map(|addr| format!("memory at {addr:x}: {:x}", sum(*addr))));
    all
}

fn sum(addr: usize) -> u64 {
    // SAFETY: a mapping of ours that may be read.
    let bytes = unsafe { std::slice::from_raw_parts(addr as *const u8, 16 * PAGE) };
    bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_mul(1_000_003).wrapping_add(u64::from(*byte)))
}

/// What /proc shows, without what is another for every process.
fn of_proc() -> Vec<String> {
    let mut all = Vec::new();
    let status = fs::read_to_string("/proc/self/status").expect("status");
    const KEYS: [&str; 20] = [
        "Name",
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "VmLck",
        "Threads",
        "SigPnd",
        "ShdPnd",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Cpus_allowed",
    ];
    all.extend(
        status
            .lines()
            .filter(|l| KEYS.iter().any(|k| l.split_once(':').is_some_and(|p| p.0 == *k)))
            .map(str::to_owned),
    );
    for name in
        ["oom_score_adj", "coredump_filter", "personality", "comm", "cmdline", "environ", "timers", "auxv"]
    {
        let bytes = fs::read(format!("/proc/self/{name}")).expect(name);
        all.push(format!("{name} {}", String::from_utf8_lossy(&bytes).escape_debug()));
    }
    for link in ["cwd", "root", "exe"] {
        all.push(format!("{link} {:?}", fs::read_link(format!("/proc/self/{link}")).expect(link)));
    }
    let stat = fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("stat").1.split_whitespace().collect();
    // priority, nice; start of the code …, of the data …, of the arguments …
    all.extend([15, 16, 23, 24, 25, 42, 43, 44, 45, 46, 47, 48].map(|i| format!("stat {i} {}", fields[i])));
    all.extend(smaps());
    all
}

/// Each mapping with its flags; its size only where it does not grow. Neighbours that differ only in their accounting
/// (`ac`), as after a write that was followed by mprotect(2), count as one.
fn smaps() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words[0], all.last_mut()) {
            ("VmFlags:", Some(last)) => {
                let flags: Vec<&str> = words[1..].iter().copied().filter(|flag| *flag != "ac").collect();
                last.flags = flags.join(" ");
                let n = all.len();
                if n > 1 && all[n - 1].continues(&all[n - 2]) {
                    all[n - 2].end = all[n - 1].end;
                    all.pop();
                }
            }
            ("Locked:", Some(last)) => last.locked = words[1].to_owned(),
            (range, _) if range.contains('-') => all.push(Mapping::of(range, &words[1..])),
            _ => {}
        }
    }
    all.iter().map(Mapping::shown).collect()
}

#[derive(Default)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    /// Permissions, device, inode.
    kind: String,
    name: String,
    locked: String,
    flags: String,
}

impl Mapping {
    fn of(range: &str, words: &[&str]) -> Mapping {
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        let (start, end) = range.split_once('-').expect("a range");
        let kind = format!("{} {} {}", words[0], words[2], words[3]);
        let name = words[4..].join(" ");
        Mapping { start: hex(start), end: hex(end), offset: hex(words[1]), kind, name, ..Mapping::default() }
    }

    fn continues(&self, other: &Mapping) -> bool {
        let same = self.kind == other.kind && self.name == other.name && self.flags == other.flags;
        let follows = self.name.is_empty() || self.offset == other.offset + other.end - other.start;
        same && follows && self.locked == other.locked && self.start == other.end
    }

    fn shown(&self) -> String {
        let size = match self.name.as_str() {
            "[stack]" | "[heap]" => String::new(),
            _ => format!("{:x}-{:x} {:x}", self.start, self.end, self.offset),
        };
        format!("{size} {} {}: locked {}, {}", self.kind, self.name, self.locked, self.flags)
    }
}

/// What can be tried once only.
fn last() -> Vec<String> {
    let mut wrong = Vec::new();
    let set = 1u64 << (libc::SIGRTMIN() + 4);
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    for want in [100usize, 200, 300] {
        // SAFETY: plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut info) as usize;
        let got = raw(libc::SYS_rt_sigtimedwait, [at(&set), to, at(&zero), 8, 0]);
        // SAFETY: a queued signal has a value.
        let value = unsafe { info.si_value() }.sival_ptr as usize;
        if got != i64::from(libc::SIGRTMIN() + 5) || value != want {
            wrong.push(format!("signal {got} with {value}, not {want}"));
        }
    }
    for (slot, page, good) in [(9, 0, false), (10, 1, true), (10, 2, false), (10, 3, true), (12, 0, true)] {
        let mut byte = 0u8;
        let from = libc::iovec { iov_base: (AT + slot * SLOT + page * PAGE) as *mut c_void, iov_len: 1 };
        let to = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
        // SAFETY: reads a byte of our own memory, or fails.
        let got = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
        if (got == 1) != good {
            wrong.push(format!("page {page} of mapping {slot}: readable {}", got == 1));
        }
    }
    ok(raw(libc::SYS_mprotect, [AT + 9 * SLOT, 16 * PAGE, libc::PROT_READ as usize, 0, 0]), "mprotect");
    let shown: Vec<u8> = (0..16 * PAGE).map(|i| (i / 7) as u8 ^ 9).collect();
    // SAFETY: readable since the line above.
    if unsafe { std::slice::from_raw_parts((AT + 9 * SLOT) as *const u8, 16 * PAGE) } != shown {
        wrong.push("what PROT_NONE hid has changed".to_owned());
    }
    if deep(300) != 301 {
        wrong.push("the stack does not grow".to_owned());
    }
    wrong
}

/// Uses some 2 MB of stack.
fn deep(levels: u64) -> u64 {
    let here = std::hint::black_box([levels; 512]);
    let below = if levels == 0 { 0 } else { deep(levels - 1) };
    if here.iter().all(|word| *word == levels) { below + 1 } else { 0 }
}

fn main() -> ExitCode {
    // The heap gets room for all readings at once and keeps it: where it ends is one of the things that are compared.
    // SAFETY: nothing else runs yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 8 << 20);
    }
    drop(std::hint::black_box([vec![0u8; 100 << 10], vec![0u8; 100 << 10]]));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, folder, rest @ ..] = &args[..] else { panic!("usage: guest-state REPORT FOLDER [--huge]") };
    // SAFETY: nothing is open yet.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    block();
    settings(folder);
    let readable = memory(rest.iter().any(|arg| arg == "--huge"));
    timers();
    pending();
    seccomp();
    pc_tests::guest::asked_twice(report, || readings(&readable), last)
}
