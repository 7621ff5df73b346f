//! The checkable guest: threads that use memory, registers, locks, timers and signals all the time, each in a pattern in
//! which a wrong byte, a lost signal or a clock that steps back shows at once.
//!
//! `guest-writer REPORT [--fork]`: writes `FAIL why` to REPORT and aborts when something is wrong; on SIGTERM it ends after
//! a last check and writes `OK` with what each thread has done. `REPORT.beat` holds a counter that grows while all goes well,
//! and the names of the threads that are due.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

static STOP: AtomicBool = AtomicBool::new(false);
static REPORT: OnceLock<String> = OnceLock::new();
/// What each thread has done.
static LAPS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];
const NAMES: [&str; 13] = [
    "pages", "heap", "maps", "avx", "tls", "locks", "robust", "stack", "timers", "signals", "clock", "words",
    "fork",
];
/// The next value that the signal handler expects, and how many were sent.
static EXPECTED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);
static ALARMS: AtomicU64 = AtomicU64::new(0);

fn fail(why: &str) -> ! {
    if let Some(path) = REPORT.get() {
        let _ = std::fs::write(path, format!("FAIL {why}\n"));
    }
    std::process::abort()
}

fn check(good: bool, why: impl FnOnce() -> String) {
    if !good {
        fail(&why());
    }
}

fn lap(which: usize) -> bool {
    LAPS[which].fetch_add(1, SeqCst);
    !STOP.load(SeqCst)
}

/// A cheap generator, one for each thread.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn word(addr: u64, version: u64, i: u64) -> u64 {
    (addr ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(version.wrapping_mul(0xff51_afd7_ed55_8ccd))
}

fn map(addr: u64, len: usize) -> *mut u64 {
    let fixed = if addr == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: a new mapping, at a place that must be free.
    let got = unsafe { libc::mmap(addr as *mut _, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    check(got != libc::MAP_FAILED && (addr == 0 || got as u64 == addr), || format!("mmap at {addr:#x}"));
    got.cast()
}

/// The words of a page at `page`, of version `version`.
fn fill(page: *mut u64, version: u64) {
    for i in 0..512 {
        // SAFETY: callers own the page.
        unsafe { page.add(i).write_volatile(word(page as u64, version, i as u64)) };
    }
}

fn verify(page: *const u64, version: u64, what: &str) {
    for i in 0..512 {
        // SAFETY: callers own the page.
        let got = unsafe { page.add(i).read_volatile() };
        let want = word(page as u64, version, i as u64);
        check(got == want, || {
            format!("{what}: {:#x} holds {got:#x}, not {want:#x}", page as u64 + i as u64 * 8)
        });
    }
}

/// Every page holds its version.
fn pages() {
    const PAGES: usize = 1024;
    let base = map(0, PAGES * 4096);
    let page = |i: usize| base.wrapping_add(i * 512);
    let mut versions = vec![1u64; PAGES];
    (0..PAGES).for_each(|i| fill(page(i), 1));
    let mut random = Random(11);
    while lap(0) {
        let i = random.next(PAGES as u64) as usize;
        verify(page(i), versions[i], "pages");
        versions[i] += 1;
        fill(page(i), versions[i]);
    }
    (0..PAGES).for_each(|i| verify(page(i), versions[i], "pages at the end"));
}

/// Allocations of all sizes that come and go.
fn heap() {
    let mut random = Random(23);
    let mut held: Vec<(Vec<u8>, u8)> = Vec::new();
    while lap(1) {
        if held.len() > 60 || (random.next(2) == 0 && !held.is_empty()) {
            let (bytes, mark) = held.swap_remove(random.next(held.len() as u64) as usize);
            check(bytes.iter().all(|b| *b == mark), || format!("heap: a block of {} bytes", bytes.len()));
        } else {
            let len = 16 << random.next(15);
            let mark = random.next(256) as u8;
            held.push((vec![mark; len as usize], mark));
        }
    }
    check(held.iter().all(|(bytes, mark)| bytes.iter().all(|b| b == mark)), || "heap at the end".into());
}

/// Mappings made, moved, dropped and made again at the same addresses.
fn maps() {
    const AT: u64 = 0x5000_0000_0000;
    const ELSEWHERE: u64 = 0x5100_0000_0000;
    const LEN: usize = 32 * 4096;
    let mut random = Random(37);
    let mut version = 0;
    while lap(2) {
        version += 1;
        let len = 4096 * (1 + random.next(32)) as usize;
        let base = map(AT, len);
        let pages = len / 4096;
        (0..pages).for_each(|i| fill(base.wrapping_add(i * 512), version));
        std::thread::sleep(Duration::from_micros(random.next(500)));
        (0..pages).for_each(|i| verify(base.wrapping_add(i * 512), version, "maps"));
        match random.next(4) {
            0 => drop_pages(base, pages),
            1 => move_away(base, len, ELSEWHERE, version),
            2 => protect(base, len, version),
            _ => {}
        }
        // SAFETY: the area is this thread's alone.
        unsafe { libc::munmap(AT as *mut _, LEN) };
    }
}

fn drop_pages(base: *mut u64, pages: usize) {
    // SAFETY: own pages, whose content is given up.
    unsafe { libc::madvise(base.cast(), pages * 4096, libc::MADV_DONTNEED) };
    std::thread::sleep(Duration::from_micros(200));
    for i in 0..pages * 512 {
        // SAFETY: inside the mapping.
        let got = unsafe { base.add(i).read_volatile() };
        check(got == 0, || format!("maps: a dropped page holds {got:#x}"));
    }
}

fn move_away(base: *mut u64, len: usize, to: u64, version: u64) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both areas are this thread's alone.
    let got = unsafe { libc::mremap(base.cast(), len, 2 * len, flags, to as *mut libc::c_void) };
    check(got as u64 == to, || "maps: mremap".into());
    std::thread::sleep(Duration::from_micros(200));
    for i in 0..len / 8 {
        // SAFETY: inside the moved mapping.
        let value = unsafe { got.cast::<u64>().add(i).read_volatile() };
        let page = base as u64 + (i as u64 / 512) * 4096;
        check(value == word(page, version, i as u64 % 512), || "maps: content after mremap".into());
    }
    // SAFETY: the moved mapping is no longer used.
    unsafe { libc::munmap(got, 2 * len) };
}

fn protect(base: *mut u64, len: usize, version: u64) {
    // SAFETY: own mapping.
    unsafe { libc::mprotect(base.cast(), len, libc::PROT_NONE) };
    std::thread::sleep(Duration::from_micros(200));
    // SAFETY: own mapping.
    unsafe { libc::mprotect(base.cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
    (0..len / 4096).for_each(|i| verify(base.wrapping_add(i * 512), version, "maps after PROT_NONE"));
}

/// Vector registers that hold their values while time goes by.
fn avx() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return;
    }
    let mut seed = 1u64;
    while lap(3) {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        let input: [u64; 4] = std::array::from_fn(|i| seed ^ (i as u64) << 60);
        let mut out = [[0u64; 4]; 3];
        // SAFETY: loads and stores 32 bytes at places of that size; every register used is declared.
        unsafe {
            std::arch::asm!(
                "vmovups ymm3, [{input}]",
                "vmovaps ymm9, ymm3",
                "vmovaps ymm15, ymm3",
                "mov {n}, 200000",
                "2:", "dec {n}", "jnz 2b",
                "vmovups [{out}], ymm3",
                "vmovups [{out} + 32], ymm9",
                "vmovups [{out} + 64], ymm15",
                input = in(reg) input.as_ptr(), out = in(reg) out.as_mut_ptr(), n = out(reg) _,
                out("ymm3") _, out("ymm9") _, out("ymm15") _,
            );
        }
        check(out.iter().all(|o| *o == input), || "avx: a register changed".into());
    }
}

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

fn tls() {
    let mut mine = 0u64;
    while lap(4) {
        mine = mine.wrapping_mul(31).wrapping_add(7);
        MINE.with(|cell| cell.set(mine));
        std::thread::yield_now();
        check(MINE.with(Cell::get) == mine, || "tls: another value".into());
    }
}

/// Two threads that hand a number over under a lock.
fn locks() {
    let shared = Arc::new((Mutex::new(0u64), Condvar::new()));
    let other = Arc::clone(&shared);
    let partner = std::thread::spawn(move || hand_over(&other, 1));
    hand_over(&shared, 0);
    partner.join().unwrap_or_else(|_| fail("locks: the partner panicked"));
}

fn hand_over(shared: &(Mutex<u64>, Condvar), parity: u64) {
    let (lock, turn) = shared;
    let mut seen = 0;
    loop {
        let Ok(guard) = lock.lock() else { fail("locks: poisoned") };
        let waited = turn.wait_timeout_while(guard, Duration::from_millis(200), |n| *n % 2 != parity);
        let Ok((mut n, timeout)) = waited else { fail("locks: poisoned") };
        let stop = STOP.load(SeqCst);
        if !timeout.timed_out() {
            check(*n >= seen, || "locks: the number went back".into());
            *n += 1;
            seen = *n;
            turn.notify_one();
        }
        drop(n);
        lap(5);
        if stop {
            return;
        }
    }
}

/// Threads that end with a robust lock held: the next owner must be told.
fn robust() {
    // SAFETY: a zeroed mutex that pthread_mutex_init fills; it lives to the end of the process.
    let mutex: &'static mut libc::pthread_mutex_t = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    let address = std::ptr::from_mut(mutex) as usize;
    // SAFETY: attributes and mutex are initialised before their use.
    unsafe {
        let mut attr: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attr);
        libc::pthread_mutexattr_setrobust(&mut attr, libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutex_init(address as *mut _, &attr);
    }
    while lap(6) {
        let owner = std::thread::spawn(move || {
            // SAFETY: the mutex lives for ever; it is left locked on purpose.
            let got = unsafe { libc::pthread_mutex_lock(address as *mut _) };
            check(got == 0, || format!("robust: lock gave {got}"));
            std::thread::sleep(Duration::from_micros(300));
        });
        owner.join().unwrap_or_else(|_| fail("robust: the owner panicked"));
        // SAFETY: as above; the state is made consistent and the lock released.
        unsafe {
            let got = libc::pthread_mutex_lock(address as *mut _);
            check(got == libc::EOWNERDEAD, || format!("robust: the dead owner was not noticed ({got})"));
            libc::pthread_mutex_consistent(address as *mut _);
            libc::pthread_mutex_unlock(address as *mut _);
        }
    }
}

/// A stack that grows and is used again.
fn stack() {
    fn down(depth: u64, seed: u64) -> u64 {
        let here: [u64; 256] = std::array::from_fn(|i| word(depth, seed, i as u64));
        let here = std::hint::black_box(here);
        let below = if depth == 0 { 0 } else { down(depth - 1, seed) };
        for (i, got) in here.iter().enumerate() {
            check(*got == word(depth, seed, i as u64), || format!("stack: wrong at depth {depth}"));
        }
        below + 1
    }
    let mut random = Random(41);
    while lap(7) {
        let depth = random.next(200);
        check(down(depth, random.0) == depth + 1, || "stack: lost a level".into());
    }
}

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A timerfd, a POSIX timer and an interval timer that go on ticking.
fn timers() {
    // Before the timer is set: this thread may be kept waiting right after that.
    let began = monotonic();
    // SAFETY: plain system calls with structures that live across them.
    let fd = unsafe {
        let every = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 5000 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: 5000 },
        };
        libc::setitimer(libc::ITIMER_REAL, &every, std::ptr::null_mut());
        let mut timer: libc::timer_t = std::ptr::null_mut();
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGRTMIN() + 2;
        check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0, || {
            "timer_create".into()
        });
        let ms = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let spec = libc::itimerspec { it_interval: ms, it_value: ms };
        libc::timer_settime(timer, 0, &spec, std::ptr::null_mut());
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC);
        libc::timerfd_settime(fd, 0, &spec, std::ptr::null_mut());
        fd
    };
    let mut total = 0;
    while lap(8) {
        let mut ticks = 0u64;
        // SAFETY: reads 8 bytes into a number.
        let n = unsafe { libc::read(fd, std::ptr::from_mut(&mut ticks).cast(), 8) };
        check(n == 8, || format!("timers: read gave {n}, {}", std::io::Error::last_os_error()));
        total += ticks;
        let due = (monotonic() - began) / 2_000_000;
        check(total <= due + 1, || format!("timers: {total} ticks where {due} were due"));
    }
    check(TICKS.load(SeqCst) > 0 && ALARMS.load(SeqCst) > 0, || "timers: no signal came".into());
}

extern "C" fn counted(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
    let value = unsafe { (*info).si_value().sival_ptr } as u64;
    let want = EXPECTED.fetch_add(1, SeqCst);
    if value != want {
        fail(&format!("signals: value {value} came where {want} was due"));
    }
}

extern "C" fn ticked(_: i32) {
    TICKS.fetch_add(1, SeqCst);
}

extern "C" fn alarmed(_: i32) {
    ALARMS.fetch_add(1, SeqCst);
}

extern "C" fn stop(_: i32) {
    STOP.store(true, SeqCst);
}

/// Signals with data sent to this process: all come, in order. Only this thread takes them.
fn signals() {
    mask(libc::SIG_UNBLOCK, libc::SIGRTMIN() + 3);
    while lap(9) {
        let sent = SENT.load(SeqCst);
        let value = libc::sigval { sival_ptr: sent as *mut _ };
        // SAFETY: a signal to ourselves, with a handler.
        let got = unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN() + 3, value) };
        check(got == 0, || "signals: sigqueue".into());
        SENT.store(sent + 1, SeqCst);
        if sent.is_multiple_of(8) {
            std::thread::sleep(Duration::from_micros(50));
            let came = EXPECTED.load(SeqCst);
            check(came == sent + 1, || format!("signals: {came} came of {}", sent + 1));
        }
    }
}

fn mask(how: i32, signal: i32) {
    // SAFETY: a set on the stack, initialised by sigemptyset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(how, &set, std::ptr::null_mut());
    }
}

/// A clock that never goes back, and sleeps that are never short.
fn clock() {
    let mut last = monotonic();
    let mut random = Random(53);
    while lap(10) {
        let now = monotonic();
        check(now >= last, || format!("clock: back by {} ns", last - now));
        last = now;
        let want = random.next(3_000_000);
        let request = libc::timespec { tv_sec: 0, tv_nsec: want as i64 };
        // SAFETY: a valid timespec.
        let got = unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &request, std::ptr::null_mut()) };
        let took = monotonic() - now;
        check(got == 0 || got == libc::EINTR, || format!("clock: clock_nanosleep gave {got}"));
        check(got != 0 || took >= want, || format!("clock: slept {took} of {want} ns"));
    }
}

/// Pages of which single words change, as a process's data do; now and then one is dropped, cleared or filled anew.
fn words() {
    const PAGES: usize = 256;
    let base = map(0, PAGES * 4096);
    let page = |i: usize| base.wrapping_add(i * 512);
    let mut model = vec![[0u64; 512]; PAGES];
    let mut random = Random(59);
    let verify = |i: usize, model: &[u64; 512], when: &str| {
        for (at, want) in model.iter().enumerate() {
            // SAFETY: the page is ours.
            let got = unsafe { page(i).add(at).read_volatile() };
            check(got == *want, || format!("words{when}: page {i}, word {at} holds {got:#x}, not {want:#x}"));
        }
    };
    while lap(11) {
        for _ in 0..32 {
            let (i, at) = (random.next(PAGES as u64) as usize, random.next(512) as usize);
            model[i][at] = random.next(u64::MAX);
            // SAFETY: the page is ours.
            unsafe { page(i).add(at).write_volatile(model[i][at]) };
        }
        let i = random.next(PAGES as u64) as usize;
        verify(i, &model[i], "");
        match random.next(16) {
            0 => {
                // SAFETY: the page is ours.
                let got = unsafe { libc::madvise(page(i).cast(), 4096, libc::MADV_DONTNEED) };
                check(got == 0, || "words: MADV_DONTNEED failed".into());
                model[i].fill(0);
            }
            1 => {
                model[i].fill(0);
                // SAFETY: the page is ours.
                unsafe { page(i).write_bytes(0, 512) };
            }
            2 => {
                let word = random.next(u64::MAX);
                model[i].fill(word);
                // SAFETY: the page is ours.
                (0..512).for_each(|at| unsafe { page(i).add(at).write_volatile(word) });
            }
            _ => {}
        }
    }
    (0..PAGES).for_each(|i| verify(i, &model[i], " at the end"));
}

/// Children that come and go.
fn forks() {
    while lap(12) {
        // SAFETY: the child only ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(7) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        let got = unsafe { libc::waitpid(child, &mut status, 0) };
        check(got == child && libc::WEXITSTATUS(status) == 7, || "fork: the child's status was lost".into());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn handle(signal: i32, handler: usize, flags: i32) {
    // SAFETY: the handlers only touch atomics, or end the process.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags | libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let report = args.first().cloned().unwrap_or_else(|| fail("usage: guest-writer REPORT [--fork]"));
    REPORT.get_or_init(|| report.clone());
    // A panic of the standard library's making tells of something wrong as well.
    std::panic::set_hook(Box::new(|panic| fail(&panic.to_string())));
    // SAFETY: nothing here has opened a descriptor yet; what a test runner leaks is nothing that we want.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    handle(libc::SIGTERM, stop as *const () as usize, 0);
    handle(libc::SIGALRM, alarmed as *const () as usize, 0);
    handle(libc::SIGRTMIN() + 2, ticked as *const () as usize, 0);
    handle(libc::SIGRTMIN() + 3, counted as *const () as usize, libc::SA_SIGINFO);
    mask(libc::SIG_BLOCK, libc::SIGRTMIN() + 3);
    let mut work: Vec<fn()> =
        vec![pages, heap, maps, avx, tls, locks, robust, stack, timers, signals, clock, words];
    if args.iter().any(|arg| arg == "--fork") {
        work.push(forks);
    }
    let count = work.len();
    let threads: Vec<_> = work.into_iter().map(std::thread::spawn).collect();
    let Ok(beat) = File::create(format!("{report}.beat")) else { fail("no heartbeat file") };
    let mut beats = 0u64;
    while !STOP.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(2));
        // The heart beats only while every thread goes on.
        let least = LAPS[..count].iter().map(|laps| laps.load(SeqCst)).min().unwrap_or(0);
        if least > 0 {
            LAPS[..count].iter().for_each(|laps| laps.store(0, SeqCst));
            beats += 1;
        }
        let late = LAPS.iter().zip(NAMES).take(count).filter(|(laps, _)| laps.load(SeqCst) == 0);
        let late: Vec<_> = late.map(|(_, name)| name).collect();
        let _ = beat.write_at(format!("{beats:>20} {:<80}", late.join(" ")).as_bytes(), 0);
    }
    for (thread, name) in threads.into_iter().zip(NAMES) {
        thread.join().unwrap_or_else(|_| fail(&format!("{name}: panicked")));
    }
    check(EXPECTED.load(SeqCst) == SENT.load(SeqCst), || "signals: lost at the end".into());
    let Ok(mut out) = File::create(&report) else { fail("no report file") };
    let _ = writeln!(out, "OK {beats} beats, {} signals, {} ticks", SENT.load(SeqCst), TICKS.load(SeqCst));
}
