//! A process that has set what few programs set of a process and of a thread, and reads all of it back after a move.
//!
//! `guest-tasks REPORT FOLDER [--ignore-trap]`: see `pc_tests::guest`. Needs root. With `--ignore-trap` SIGTRAP is ignored, else handled.

use std::fs;
use std::io::Error;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};

use libc::{c_int, c_void};

const MEMBARRIER_REGISTRATIONS: usize = 1 << 9;
const SIGNALS: usize = 6;

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

fn asked(name: &str, nr: i64, args: [usize; 5]) -> String {
    let got = raw(nr, args);
    let error = || -i64::from(Error::last_os_error().raw_os_error().unwrap_or(0));
    format!("{name} {}", if got < 0 { error() } else { got })
}

extern "C" fn nothing(_: c_int) {}

/// What the calling thread has.
fn of_thread(name: &str) -> Vec<String> {
    let word = [0u64; 2];
    ok(raw(libc::SYS_prctl, [libc::PR_GET_TSC as usize, at(&word), 0, 0, 0]), "PR_GET_TSC");
    // SAFETY: `word` is ours, and the kernel has written to it.
    let tsc = unsafe { std::ptr::from_ref(&word[0]).read_volatile() };
    let mut all = vec![format!("tsc {tsc}")];
    all.push(asked("mce_kill", libc::SYS_prctl, [libc::PR_MCE_KILL_GET as usize, 0, 0, 0, 0]));
    all.push(asked("personality", libc::SYS_personality, [u32::MAX as usize, 0, 0, 0, 0]));
    let speculation = (0..3).map(|which| asked("speculation", libc::SYS_prctl, [52, which, 0, 0, 0]));
    all.extend(speculation);
    all.into_iter().map(|line| format!("{name}: {line}")).collect()
}

/// What the process has.
fn of_process() -> Vec<String> {
    let mut all = vec![
        asked("membarrier", libc::SYS_membarrier, [MEMBARRIER_REGISTRATIONS, 0, 0, 0, 0]),
        asked("chooses ids of timers", libc::SYS_prctl, [77, 2, 0, 0, 0]),
    ];
    let words = [0u64; 4];
    let peek = || {
        // SAFETY: `words` is ours, and the kernel has written to it.
        (0..4).map(|i| unsafe { std::ptr::from_ref(&words[i]).read_volatile() }).collect::<Vec<_>>()
    };
    ok(raw(libc::SYS_rt_sigaction, [libc::SIGTRAP as usize, 0, at(&words), 8, 0]), "rt_sigaction");
    all.push(format!("SIGTRAP {:x?}", peek()));
    ok(raw(libc::SYS_getrlimit, [libc::RLIMIT_SIGPENDING as usize, at(&words), 0, 0, 0]), "getrlimit");
    all.push(format!("RLIMIT_SIGPENDING {:?}", &peek()[..2]));
    for id in 0..6usize {
        let got = raw(libc::SYS_timer_gettime, [id, at(&words), 0, 0, 0]);
        all.push(format!("timer {id}: {got}, every {}, {} left", peek()[0], peek()[2] / 100));
    }
    let timers = fs::read_to_string("/proc/self/timers").expect("timers");
    // The timer of a thread that has ended tells nobody, whatever it shows.
    all.extend(timers.lines().filter(|line| !line.starts_with("notify")).map(str::to_owned));
    let status = fs::read_to_string("/proc/self/status").expect("status");
    all.extend(status.lines().filter(|line| line.starts_with("ShdPnd")).map(str::to_owned));
    all
}

fn timer(clock: c_int, target: Option<c_int>) {
    // SAFETY: plain calls with structures that live across them.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = target.map_or(libc::SIGEV_SIGNAL, |_| libc::SIGEV_THREAD_ID);
        event.sigev_signo = libc::SIGRTMIN() + 5;
        event.sigev_notify_thread_id = target.unwrap_or(0);
        let mut id = 0i32;
        let made = raw(
            libc::SYS_timer_create,
            [clock as isize as usize, at(&event), std::ptr::from_mut(&mut id) as usize, 0, 0],
        );
        ok(made, "timer_create");
        let time = libc::timespec { tv_sec: 5099, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: time, it_value: time };
        ok(raw(libc::SYS_timer_settime, [id as usize, 0, at(&spec), 0, 0]), "timer_settime");
    }
}

/// A thread that says what it has whenever it is asked; `first` gives its number.
fn worker(ask: Receiver<()>, first: Sender<(c_int, c_int)>, tell: Sender<Vec<String>>) {
    let mut clock = 0;
    // SAFETY: this thread, and a number of ours.
    let tid = unsafe {
        libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock);
        libc::gettid()
    };
    ok(raw(libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE as usize, 0, 0, 0, 0]), "personality");
    ok(
        raw(libc::SYS_prctl, [libc::PR_SET_TSC as usize, libc::PR_TSC_SIGSEGV as usize, 0, 0, 0]),
        "PR_SET_TSC",
    );
    first.send((clock, tid)).expect("somebody asks");
    while ask.recv().is_ok() {
        tell.send(of_thread("worker")).expect("somebody asks");
    }
}

fn settings(ignore_trap: bool) {
    for command in [1 << 2, 1 << 4] {
        ok(raw(libc::SYS_membarrier, [command, 0, 0, 0, 0]), "membarrier");
    }
    ok(raw(libc::SYS_prctl, [libc::PR_MCE_KILL as usize, 1, 1, 0, 0]), "PR_MCE_KILL");
    let action = if ignore_trap { libc::SIG_IGN } else { nothing as *const () as usize };
    // SAFETY: a handler that does nothing; limits on the stack; signals to ourselves, which are blocked.
    unsafe {
        libc::signal(libc::SIGTRAP, action);
        for value in 1..=SIGNALS {
            let value = libc::sigval { sival_ptr: value as *mut c_void };
            ok(libc::sigqueue(libc::getpid(), libc::SIGRTMIN() + 5, value).into(), "sigqueue");
        }
        let limit = libc::rlimit { rlim_cur: 2, rlim_max: 3 };
        ok(libc::setrlimit(libc::RLIMIT_SIGPENDING, &limit).into(), "setrlimit");
    }
    ok(raw(libc::SYS_prctl, [77, 1, 0, 0, 0]), "PR_TIMER_CREATE_RESTORE_IDS");
}

fn block() {
    // SAFETY: a set on the stack.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        for signal in [libc::SIGRTMIN() + 5, libc::SIGUSR1] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// The queued signals, in order.
fn last() -> Vec<String> {
    let set = 1u64 << (libc::SIGRTMIN() + 4);
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let taken = (1..=SIGNALS).map(|want| {
        // SAFETY: plain data.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let to = std::ptr::from_mut(&mut info) as usize;
        let got = raw(libc::SYS_rt_sigtimedwait, [at(&set), to, at(&zero), 8, 0]);
        // SAFETY: a queued signal has a value.
        let value = unsafe { info.si_value() }.sival_ptr as usize;
        (value != want).then(|| format!("signal {got} with {value}, not {want}"))
    });
    taken.flatten().collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, _folder, rest @ ..] = &args[..] else {
        panic!("usage: guest-tasks REPORT FOLDER [--ignore-trap]")
    };
    // SAFETY: nothing is open yet.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    block();
    let (ask, asked) = channel();
    let (first, number) = channel();
    let (tell, told) = channel();
    std::thread::spawn(move || worker(asked, first, tell));
    let (thread_clock, _) = number.recv().expect("a thread");
    let mut own_clock = 0;
    // SAFETY: our own pid, and a number of ours.
    unsafe { libc::clock_getcpuclockid(libc::getpid(), &raw mut own_clock) };
    for clock in
        [libc::CLOCK_PROCESS_CPUTIME_ID, own_clock, thread_clock, libc::CLOCK_TAI, libc::CLOCK_BOOTTIME]
    {
        timer(clock, None);
    }
    let gone = std::thread::spawn(|| {
        // SAFETY: takes nothing.
        timer(libc::CLOCK_MONOTONIC, Some(unsafe { libc::gettid() }));
    });
    gone.join().expect("no panic");
    settings(rest.iter().any(|arg| arg == "--ignore-trap"));
    let readings = move || {
        ask.send(()).expect("it waits");
        let mut all = told.recv().expect("it answers");
        all.extend(of_thread("main"));
        all.extend(of_process());
        all
    };
    pc_tests::guest::asked_twice(report, readings, last)
}
