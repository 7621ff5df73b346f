//! A process that is held, made to run remote calls and let go must not notice.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use pc_trace::{Call, SeizeOptions, TraceError, Tracees};

/// A child that is ended with the test.
struct Guest(Child);

impl Guest {
    fn sleep(seconds: &str) -> Self {
        let child = Command::new("sleep").arg(seconds).stdin(Stdio::null()).spawn().expect("sleep starts");
        let guest = Self(child);
        guest.wait_for("S (sleeping)");
        guest
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).expect("/proc is readable")
    }

    fn wait_for(&self, state: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.file("status").contains(state) {
            assert!(Instant::now() < deadline, "never {state}");
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn batches_answer_and_leave_nothing_behind() {
    let guest = Guest::sleep("1000");
    let maps = guest.file("maps");
    let mut tracees = Tracees::seize(guest.pid(), &SeizeOptions::default()).unwrap();
    let mut remote = tracees.remote(65536).unwrap();
    assert_eq!(remote.call(guest.pid(), Call::new(libc::SYS_getpid, [])).unwrap(), guest.pid() as u64);
    let calls = vec![Call::new(libc::SYS_getppid, []); 5000];
    let results = remote.batch(guest.pid(), &calls).unwrap();
    assert!(results.iter().all(|r| *r == i64::from(std::process::id())) && results.len() == 5000);
    let buf = remote.space(390).unwrap();
    remote.call(guest.pid(), Call::new(libc::SYS_uname, [buf])).unwrap();
    let mut name = [0; 5];
    remote.read(buf, &mut name).unwrap();
    assert_eq!(&name, b"Linux");
    let err = remote.call(guest.pid(), Call::new(libc::SYS_close, [99])).unwrap_err();
    assert!(matches!(err, TraceError::Remote { errno: libc::EBADF, .. }), "{err}");
    remote.finish().unwrap();
    tracees.detach().unwrap();
    assert_eq!(guest.file("maps"), maps);
    assert!(guest.file("status").contains("TracerPid:\t0"));
    guest.wait_for("S (sleeping)");
}

#[test]
fn a_relative_sleep_ends_when_it_should_have() {
    let start = Instant::now();
    let mut guest = Guest::sleep("1");
    for _ in 0..10 {
        let mut tracees = Tracees::seize(guest.pid(), &SeizeOptions::default()).unwrap();
        let mut remote = tracees.remote(4096).unwrap();
        remote.call(guest.pid(), Call::new(libc::SYS_gettid, [])).unwrap();
        drop(remote);
        drop(tracees);
    }
    assert!(guest.0.wait().unwrap().success());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(1000) && took < Duration::from_millis(1900), "{took:?}");
}

#[test]
fn a_stop_that_is_set_holds_after_detaching_and_can_be_taken_back() {
    let guest = Guest::sleep("1000");
    let mut tracees = Tracees::seize(guest.pid(), &SeizeOptions::default()).unwrap();
    tracees.set_stop().unwrap();
    tracees.cancel_stop().unwrap();
    tracees.detach().unwrap();
    guest.wait_for("S (sleeping)");
    let mut tracees = Tracees::seize(guest.pid(), &SeizeOptions::default()).unwrap();
    tracees.set_stop().unwrap();
    tracees.detach().unwrap();
    guest.wait_for("T (stopped)");
}

#[test]
fn seizing_what_is_not_there_says_so() {
    let err = Tracees::seize(i32::MAX - 1, &SeizeOptions::default()).unwrap_err();
    assert!(matches!(err, TraceError::NoProcess(_)), "{err}");
}

/// A signal of a POSIX timer sets its timer anew when it is taken from the queue, for which the kernel lets go of the lock
/// for a moment (dequeue_signal() in kernel/signal.c). Asked for in that moment, an interruption comes too late to be seen before the
/// signal, and goes with the signal's own stop. No other signal leaves such a gap.
#[test]
fn an_interruption_that_a_signal_takes_along_is_asked_for_anew() {
    const PROGRAM: &str = "import ctypes, signal, time\n\
        signal.signal(signal.SIGALRM, lambda *_: None)\n\
        libc, timer = ctypes.CDLL(None), ctypes.c_void_p()\n\
        assert libc.timer_create(time.CLOCK_MONOTONIC, None, ctypes.byref(timer)) == 0\n\
        every_20_us = (ctypes.c_long * 4)(0, 20000, 0, 20000)\n\
        assert libc.timer_settime(timer, 0, every_20_us, None) == 0\n\
        print(flush=True)\n\
        while True: pass\n";
    let mut python = Command::new("python3");
    python.args(["-c", PROGRAM]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = Guest(python.spawn().expect("python3 starts"));
    let mut line = [0];
    let read = guest.0.stdout.take().expect("a pipe").read(&mut line).expect("what it says");
    assert_eq!(read, 1, "it gets its signals");
    let pid = guest.pid();
    // Else a stop that never comes would be waited for without end.
    let (done, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let late = ended.recv_timeout(Duration::from_secs(20)) == Err(RecvTimeoutError::Timeout);
        if late {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        late
    });
    let held = || Tracees::seize(pid, &SeizeOptions::default())?.detach();
    let stops = (0..5000).map_while(|_| held().ok()).count();
    drop(done);
    assert!(!watch.join().expect("the watch"), "a stop never came, after {stops} that did");
    assert_eq!(stops, 5000);
}
