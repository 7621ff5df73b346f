//! A thread in every kind of blocking call, each of which notices when it comes back too early, too late, or with
//! anything but what it waited for.
//!
//! `guest-blocked REPORT [--twice] [--busy] [--times=N]`: `REPORT.ready` appears once all wait; three to four seconds after that all are done and REPORT
//! says `OK`, or what went wrong. With `--twice` it reckons with being stopped by two that know nothing of each other: then
//! how long a relative wait without a place for the remainder has lasted is known since the first alone.
//! With `--times` all that takes time here takes so many times longer, as it does on a machine that is this much slower.
//! With `--busy` it reckons with a machine on which anything may take its time: all waits last four times as long,
//! and how late one ends says nothing.

use std::io::Error;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

use libc::{c_int, c_long, timespec};

const SECOND: u64 = 1_000_000_000;

static BEGIN: AtomicU64 = AtomicU64::new(0);
static FUTEX: AtomicU32 = AtomicU32::new(0);
static TWICE: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicBool = AtomicBool::new(false);
static TIMES: AtomicU64 = AtomicU64::new(1);
static HANDLED: AtomicI32 = AtomicI32::new(0);

fn since() -> u64 {
    let mut t = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * SECOND + t.tv_nsec as u64 - BEGIN.load(SeqCst)
}

/// A second of an idle machine.
fn second() -> u64 {
    SECOND * TIMES.load(SeqCst)
}

/// How late a wait may end. Less than what a wait that began anew would add.
fn late() -> u64 {
    3 * second() / 2
}

/// When waits with a time-out end; since the start.
fn timeout() -> u64 {
    if BUSY.load(SeqCst) { 16 * second() } else { 4 * second() }
}

/// When the others are woken.
fn wake() -> u64 {
    timeout() - second() / 2
}

fn spec(nanos: u64) -> timespec {
    timespec { tv_sec: (nanos / SECOND) as i64, tv_nsec: (nanos % SECOND) as i64 }
}

fn raw(nr: c_long, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    // SAFETY: callers pass what the call asks for, pointing at memory that outlives it.
    let ret = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
    if ret == -1 { -i64::from(Error::last_os_error().raw_os_error().unwrap_or(0)) } else { ret }
}

fn at<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

/// What a call gave, and whether the time is right.
type Outcome = (i64, i64, u64, u64);

/// A time-out: the call must give `want` between [`timeout`] and a little later.
fn timed(got: i64, want: i64) -> Outcome {
    (got, want, timeout(), timeout() + late())
}

/// Calls that the kernel ends by a mere stop can only be made again with their whole time.
fn timed_loosely(got: i64, want: i64) -> Outcome {
    (got, want, timeout(), 2 * timeout() + late())
}

/// A relative wait whose remainder the kernel reports to nobody.
fn timed_once(got: i64, want: i64) -> Outcome {
    if TWICE.load(SeqCst) { timed_loosely(got, want) } else { timed(got, want) }
}

fn woken(got: i64, want: i64) -> Outcome {
    (got, want, wake(), wake() + late())
}

fn pipe() -> [c_int; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    fds
}

/// A descriptor that becomes readable at [`wake`].
fn readable_later() -> u64 {
    let [read, write] = pipe();
    later(move || assert_eq!(raw(libc::SYS_write, [write as u64, at(b"x"), 1, 0, 0, 0]), 1));
    read as u64
}

/// Does something at [`wake`].
fn later(what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        until(wake());
        what();
    });
}

fn until(when: u64) {
    let date = spec(BEGIN.load(SeqCst) + when);
    let clock = libc::CLOCK_MONOTONIC as u64;
    while raw(libc::SYS_clock_nanosleep, [clock, libc::TIMER_ABSTIME as u64, at(&date), 0, 0, 0]) != 0 {}
}

fn nanosleep() -> Outcome {
    timed_once(raw(libc::SYS_nanosleep, [at(&spec(timeout() - since())), 0, 0, 0, 0, 0]), 0)
}

fn nanosleep_with_remainder() -> Outcome {
    let mut left = spec(0);
    let to = std::ptr::from_mut(&mut left) as u64;
    timed(raw(libc::SYS_nanosleep, [at(&spec(timeout() - since())), to, 0, 0, 0, 0]), 0)
}

/// A call of 32-bit programs, which takes its time from the lower 4 GiB.
fn nanosleep_by_int_0x80() -> Outcome {
    const NANOSLEEP: u64 = 162;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a new mapping, which holds the two words.
    let time = unsafe {
        let got = libc::mmap(null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(got, libc::MAP_FAILED);
        let left = timeout() - since();
        got.cast::<[u32; 2]>().write([(left / SECOND) as u32, (left % SECOND) as u32]);
        got as u64
    };
    let mut got = NANOSLEEP;
    // SAFETY: nanosleep without a place for the remainder; rbx, which holds its argument, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {time}", "int 0x80", "xchg rbx, {time}",
            time = inout(reg) time => _, inout("rax") got, in("rcx") 0u64, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    timed_loosely(i64::from(got as i32), 0)
}

fn clock_nanosleep() -> Outcome {
    let clock = libc::CLOCK_MONOTONIC as u64;
    timed_once(raw(libc::SYS_clock_nanosleep, [clock, 0, at(&spec(timeout() - since())), 0, 0, 0]), 0)
}

fn clock_nanosleep_absolute() -> Outcome {
    let date = spec(BEGIN.load(SeqCst) + timeout());
    let clock = libc::CLOCK_MONOTONIC as u64;
    timed(raw(libc::SYS_clock_nanosleep, [clock, libc::TIMER_ABSTIME as u64, at(&date), 0, 0, 0]), 0)
}

fn poll() -> Outcome {
    let set = libc::pollfd { fd: pipe()[0], events: libc::POLLIN, revents: 0 };
    timed_once(raw(libc::SYS_poll, [at(&set), 1, (timeout() - since()).div_ceil(1_000_000), 0, 0, 0]), 0)
}

fn poll_for_ever() -> Outcome {
    let set = libc::pollfd { fd: readable_later() as i32, events: libc::POLLIN, revents: 0 };
    woken(raw(libc::SYS_poll, [at(&set), 1, u64::MAX, 0, 0, 0]), 1)
}

fn ppoll() -> Outcome {
    let set = libc::pollfd { fd: pipe()[0], events: libc::POLLIN, revents: 0 };
    timed(raw(libc::SYS_ppoll, [at(&set), 1, at(&spec(timeout() - since())), 0, 8, 0]), 0)
}

fn select() -> Outcome {
    let left = timeout() - since();
    let time =
        libc::timeval { tv_sec: (left / SECOND) as i64, tv_usec: (left % SECOND).div_ceil(1000) as i64 };
    timed(raw(libc::SYS_select, [0, 0, 0, 0, at(&time), 0]), 0)
}

fn epoll(fd: u64) -> u64 {
    let made = raw(libc::SYS_epoll_create1, [0; 6]) as u64;
    let event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
    assert_eq!(raw(libc::SYS_epoll_ctl, [made, libc::EPOLL_CTL_ADD as u64, fd, at(&event), 0, 0]), 0);
    made
}

fn epoll_wait() -> Outcome {
    let event = libc::epoll_event { events: 0, u64: 0 };
    let time = (timeout() - since()).div_ceil(1_000_000);
    let fd = epoll(pipe()[0] as u64);
    timed_loosely(raw(libc::SYS_epoll_wait, [fd, at(&event), 1, time, 0, 0]), 0)
}

fn epoll_wait_for_ever() -> Outcome {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let fd = epoll(readable_later());
    let got = raw(libc::SYS_epoll_wait, [fd, std::ptr::from_mut(&mut event) as u64, 1, u64::MAX, 0, 0]);
    woken(got * 1000 + event.u64 as i64, 1077)
}

fn futex() -> Outcome {
    later(|| {
        FUTEX.store(1, SeqCst);
        raw(libc::SYS_futex, [at(&FUTEX), libc::FUTEX_WAKE as u64, 1, 0, 0, 0]);
    });
    woken(raw(libc::SYS_futex, [at(&FUTEX), libc::FUTEX_WAIT as u64, 0, 0, 0, 0]), 0)
}

fn futex_with_timeout() -> Outcome {
    let word = AtomicU32::new(0);
    let op = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    let got = raw(libc::SYS_futex, [at(&word), op, 0, at(&spec(timeout() - since())), 0, 0]);
    timed_once(got, -i64::from(libc::ETIMEDOUT))
}

fn futex_with_date() -> Outcome {
    let word = AtomicU32::new(0);
    let op = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as u64;
    let date = spec(BEGIN.load(SeqCst) + timeout());
    let got = raw(libc::SYS_futex, [at(&word), op, 0, at(&date), 0, u64::from(u32::MAX)]);
    timed(got, -i64::from(libc::ETIMEDOUT))
}

fn read(fd: u64) -> i64 {
    let mut buf = [0u8; 8];
    raw(libc::SYS_read, [fd, buf.as_mut_ptr() as u64, 8, 0, 0, 0])
}

fn read_pipe() -> Outcome {
    woken(read(readable_later()), 1)
}

fn read_eventfd() -> Outcome {
    let fd = raw(libc::SYS_eventfd2, [0; 6]) as u64;
    later(move || assert_eq!(raw(libc::SYS_write, [fd, at(&1u64), 8, 0, 0, 0]), 8));
    woken(read(fd), 8)
}

fn read_timerfd() -> Outcome {
    let fd = raw(libc::SYS_timerfd_create, [libc::CLOCK_MONOTONIC as u64, 0, 0, 0, 0, 0]) as u64;
    let time = libc::itimerspec { it_interval: spec(0), it_value: spec(timeout() - since()) };
    assert_eq!(raw(libc::SYS_timerfd_settime, [fd, 0, at(&time), 0, 0, 0]), 0);
    timed(read(fd), 8)
}

/// To a full pipe.
fn write() -> Outcome {
    let [from, to] = pipe();
    let page = [7u8; 4096];
    (0..16).for_each(|_| assert_eq!(raw(libc::SYS_write, [to as u64, at(&page), 4096, 0, 0, 0]), 4096));
    later(move || {
        let mut page = [0u8; 4096];
        raw(libc::SYS_read, [from as u64, page.as_mut_ptr() as u64, 4096, 0, 0, 0]);
    });
    woken(raw(libc::SYS_write, [to as u64, at(&page), 1, 0, 0, 0]), 1)
}

fn recv() -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    later(move || {
        let other = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        other.send_to(b"abc", address).expect("sent");
    });
    let mut buf = [0; 8];
    woken(socket.recv(&mut buf).map_or_else(|e| -i64::from(e.raw_os_error().unwrap_or(0)), |n| n as i64), 3)
}

fn accept() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address");
    later(move || drop(TcpStream::connect(address).expect("connected")));
    let fd = std::os::fd::AsRawFd::as_raw_fd(&listener) as u64;
    woken(i64::from(raw(libc::SYS_accept4, [fd, 0, 0, 0, 0, 0]) >= 0), 1)
}

extern "C" fn handled(_: c_int) {
    HANDLED.fetch_add(1, SeqCst);
}

fn own_signal(signal: c_int, value: usize) {
    // SAFETY: pthread_self has no conditions.
    let me = unsafe { libc::pthread_self() };
    later(move || {
        let value = libc::sigval { sival_ptr: value as *mut _ };
        // SAFETY: the thread waits for this signal, so it is alive.
        assert_eq!(unsafe { libc::pthread_sigqueue(me, signal, value) }, 0);
    });
}

fn sigsuspend() -> Outcome {
    own_signal(libc::SIGUSR2, 0);
    // SAFETY: an empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    let got = raw(libc::SYS_rt_sigsuspend, [at(&none), 8, 0, 0, 0, 0]);
    woken(got - 1000 * i64::from(HANDLED.load(SeqCst)), -1004)
}

fn sigwaitinfo() -> Outcome {
    let signal = libc::SIGRTMIN() + 3;
    own_signal(signal, 4711);
    let set = 1u64 << (signal - 1);
    // SAFETY: plain data.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let to = std::ptr::from_mut(&mut info) as u64;
    let got = raw(libc::SYS_rt_sigtimedwait, [at(&set), to, 0, 8, 0, 0]);
    // SAFETY: a queued signal has a value.
    let value = unsafe { info.si_value() }.sival_ptr as i64;
    woken(got * 10000 + value, i64::from(signal) * 10000 + 4711)
}

fn user_code() -> Outcome {
    let (mut sum, mut n) = (0u64, 0u64);
    while since() < wake() {
        for _ in 0..10_000 {
            sum = std::hint::black_box(sum).wrapping_add(n);
            n += 1;
        }
    }
    let want = (u128::from(n) * u128::from(n - 1) / 2) as u64;
    woken(i64::from(sum == want), 1)
}

std::arch::global_asm!(
    ".pushsection .data.guest_rseq, \"aw\"",
    ".balign 32",
    "guest_rseq_cs: .long 0, 0",
    ".quad 20f, 22f - 20f, 24f",
    ".popsection",
    ".pushsection .text",
    ".globl guest_rseq_section",
    "guest_rseq_section:",
    "lea rax, [rip + guest_rseq_cs]",
    "mov [rdi + 8], rax",
    "20: mov rcx, rsi",
    "21: dec rcx",
    "jnz 21b",
    // Whoever takes the pointer away without going to the abort handler has broken the promise of the section.
    "cmp [rdi + 8], rax",
    "jne 25f",
    "xor eax, eax",
    "22: ret",
    ".byte 0x0f, 0xb9, 0x3d",
    ".long 0x53053053",
    "24: mov eax, 1",
    "ret",
    "25: mov eax, 2",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Where the thread's rseq area lies from its thread pointer on (glibc 2.35).
    static __rseq_offset: isize;
    /// Turns `loops` times inside a restartable section: 0 committed, 1 aborted, 2 neither.
    fn guest_rseq_section(area: *mut u8, loops: u64) -> u32;
}

fn rseq() -> Outcome {
    let pointer: *mut u8;
    // SAFETY: the thread pointer stands at fs:0.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) pointer) };
    let mut ends = [0i64; 3];
    while since() < wake() {
        // SAFETY: the area that the C library has registered for this thread.
        ends[unsafe { guest_rseq_section(pointer.wrapping_offset(__rseq_offset), 300_000) } as usize] += 1;
    }
    woken(ends[2] + i64::from(ends[0] == 0), 0)
}

type Case = fn() -> Outcome;

const CASES: [(&str, Case); 25] = [
    ("nanosleep by int 0x80", nanosleep_by_int_0x80),
    ("nanosleep", nanosleep),
    ("nanosleep with remainder", nanosleep_with_remainder),
    ("clock_nanosleep", clock_nanosleep),
    ("clock_nanosleep absolute", clock_nanosleep_absolute),
    ("poll", poll),
    ("poll for ever", poll_for_ever),
    ("ppoll", ppoll),
    ("select", select),
    ("epoll_wait", epoll_wait),
    ("epoll_wait for ever", epoll_wait_for_ever),
    ("futex", futex),
    ("futex with time-out", futex_with_timeout),
    ("futex with date", futex_with_date),
    ("read of a pipe", read_pipe),
    ("read of an eventfd", read_eventfd),
    ("read of a timerfd", read_timerfd),
    ("write", write),
    ("recv", recv),
    ("accept", accept),
    ("sigsuspend", sigsuspend),
    ("sigwaitinfo", sigwaitinfo),
    ("user code", user_code),
    ("rseq", rseq),
    ("rseq, a second", rseq),
];

fn wrong(name: &str, case: Case) -> Option<String> {
    let (got, want, from, to) = case();
    let (end, ms) = (since(), |t: u64| t / 1_000_000);
    let good = got == want && end >= from && (end <= to || BUSY.load(SeqCst));
    (!good).then(|| {
        format!("{name}: gave {got}, not {want}, after {} ms ({} to {} are right)", ms(end), ms(from), ms(to))
    })
}

fn main() -> ExitCode {
    let report = std::env::args().nth(1).expect("usage: guest-blocked REPORT");
    for (flag, arg) in [(&TWICE, "--twice"), (&BUSY, "--busy")] {
        flag.store(std::env::args().any(|given| given == arg), SeqCst);
    }
    let times = std::env::args().find_map(|given| given.strip_prefix("--times=")?.parse().ok());
    TIMES.store(times.unwrap_or(1), SeqCst);
    BEGIN.store(since(), SeqCst);
    // SAFETY: nothing is open yet; a handler that touches an atomic only; a mask on the stack.
    unsafe {
        libc::close_range(3, u32::MAX, 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handled as *const () as usize;
        libc::sigaction(libc::SIGUSR2, &action, null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::sigaddset(&mut set, libc::SIGRTMIN() + 3);
        libc::sigprocmask(libc::SIG_BLOCK, &set, null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    let threads: Vec<_> =
        CASES.into_iter().map(|(name, case)| std::thread::spawn(move || wrong(name, case))).collect();
    until(second() / 2);
    std::fs::write(format!("{report}.ready"), "").expect("a report");
    let wrong: Vec<String> = threads.into_iter().filter_map(|t| t.join().expect("no panic")).collect();
    pc_tests::guest::finish(&report, &wrong)
}
