//! A process with one thing that cannot be moved, or with timers that are set to a date.
//!
//! `guest-odd WHAT REPORT`: sets WHAT up, makes `REPORT.ready`, and waits. With WHAT `dates` it waits for two timers of the wall clock, one
//! set to a date and one to a time, both 6 s ahead, and writes to REPORT after how many milliseconds each came.

use std::fs;
use std::io::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use libc::c_int;

const AHEAD: u64 = 6;

fn raw(nr: i64, args: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    unsafe { libc::syscall(nr, a, b, c, d, e) }
}

fn ok(got: i64, what: &str) -> i64 {
    assert!(got >= 0, "{what}: {}", Error::last_os_error());
    got
}

fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

fn ready(report: &str) {
    fs::write(format!("{report}.ready"), "").expect("a report");
}

fn wait() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

/// With an orphan that removes the set once this process has ended.
fn sem_undo() {
    // SAFETY: a new set of ours; the children make plain calls and end.
    unsafe {
        let set = libc::semget(libc::IPC_PRIVATE, 1, 0o600);
        let own = raw(libc::SYS_pidfd_open, [libc::getpid() as usize, 0, 0, 0, 0]) as c_int;
        let child = libc::fork();
        if child == 0 {
            if libc::fork() == 0 {
                let mut end = libc::pollfd { fd: own, events: libc::POLLIN, revents: 0 };
                libc::poll(&raw mut end, 1, 120_000);
                libc::semctl(set, 0, libc::IPC_RMID);
            }
            libc::_exit(0);
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
        libc::close(own);
        let mut up = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: libc::SEM_UNDO as i16 };
        ok(libc::semop(set, &raw mut up, 1).into(), "semop");
    }
}

static SELECTOR: u8 = 0;

fn dispatch() {
    ok(raw(libc::SYS_prctl, [59, 1, 0, 0, at(&SELECTOR)]), "PR_SET_SYSCALL_USER_DISPATCH");
}

/// A domain that forbids to execute files.
fn landlock() {
    let rules = [1u64; 1];
    let set = ok(raw(444, [at(&rules), 8, 0, 0, 0]), "landlock_create_ruleset");
    ok(raw(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0]), "no_new_privs");
    ok(raw(446, [set as usize, 0, 0, 0, 0]), "landlock_restrict_self");
    // SAFETY: ours.
    unsafe { libc::close(set as c_int) };
}

/// The same as another user, without any capability.
fn landlock_as_nobody() {
    // SAFETY: plain calls.
    unsafe {
        ok(libc::setgid(65534).into(), "setgid");
        ok(libc::setuid(65534).into(), "setuid");
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
    landlock();
}

fn timer(clock: c_int, signal: c_int, date: Option<u64>) {
    // SAFETY: plain calls with structures that live across them.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        let mut id = 0i32;
        let to = std::ptr::from_mut(&mut id) as usize;
        ok(raw(libc::SYS_timer_create, [clock as isize as usize, at(&event), to, 0, 0]), "timer_create");
        let nanos = date.unwrap_or(AHEAD * 1_000_000_000);
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (nanos / 1_000_000_000) as i64,
                tv_nsec: (nanos % 1_000_000_000) as i64,
            },
        };
        let flags = if date.is_some() { libc::TIMER_ABSTIME as usize } else { 0 };
        ok(raw(libc::SYS_timer_settime, [id as usize, flags, at(&spec), 0, 0]), "timer_settime");
    }
}

fn cpu_clock_of_parent() {
    let mut clock = 0;
    // SAFETY: a number of ours.
    unsafe { libc::clock_getcpuclockid(libc::getppid(), &raw mut clock) };
    timer(clock, libc::SIGUSR2, None);
}

fn keyring() {
    ok(raw(libc::SYS_keyctl, [0, -1isize as usize, 1, 0, 0]), "KEYCTL_GET_KEYRING_ID");
}

/// A filter that asks a listener about getpriority(2).
fn user_notif() {
    let insn = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_getpriority as u32),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, 0x7fc0_0000),
        insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
    ok(raw(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0]), "no_new_privs");
    ok(raw(libc::SYS_seccomp, [1, 0, at(&program), 0, 0]), "seccomp");
}

/// The main thread ends, another goes on.
fn without_main(report: &str) -> ! {
    let report = report.to_owned();
    std::thread::spawn(move || {
        let ended = || fs::read_to_string("/proc/self/stat").expect("stat").contains(") Z ");
        while !ended() {
            std::thread::yield_now();
        }
        ready(&report);
        wait();
    });
    raw(libc::SYS_exit, [0; 5]);
    wait()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a date").as_nanos() as u64
}

fn dates(report: &str) {
    let (by_date, by_time) = (libc::SIGRTMIN() + 1, libc::SIGRTMIN() + 2);
    let set = 1u64 << (by_date - 1) | 1 << (by_time - 1);
    ok(raw(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, at(&set), 0, 8, 0]), "mask");
    let began = now();
    timer(libc::CLOCK_REALTIME, by_date, Some(began + AHEAD * 1_000_000_000));
    timer(libc::CLOCK_REALTIME, by_time, None);
    ready(report);
    let mut text = String::new();
    for _ in 0..2 {
        let mut got = -1;
        while got < 0 {
            got = raw(libc::SYS_rt_sigtimedwait, [at(&set), 0, 0, 8, 0]);
        }
        let name = if got == i64::from(by_date) { "date" } else { "time" };
        text += &format!("{name} {}\n", (now() - began) / 1_000_000);
    }
    fs::write(report, text).expect("a report");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, report] = &args[..] else { panic!("usage: guest-odd WHAT REPORT") };
    // SAFETY: nothing is open yet.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    match what.as_str() {
        "dates" => return dates(report),
        "without-main" => without_main(report),
        "sem-undo" => sem_undo(),
        "dispatch" => dispatch(),
        "landlock" => landlock(),
        "landlock-as-nobody" => landlock_as_nobody(),
        "cpu-clock" => cpu_clock_of_parent(),
        "keyring" => keyring(),
        "user-notif" => user_notif(),
        other => panic!("what is {other}?"),
    }
    ready(report);
    wait()
}
