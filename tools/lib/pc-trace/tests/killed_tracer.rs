//! A tracer killed with SIGKILL at any moment of an injection leaves a target that goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pc_trace::{Call, SeizeOptions, Tracees};

/// Sums floats in two ways (registers in use all the time), sleeps now and then, and says so after each lap.
const PROGRAM: &str = r#"
import time, sys, math
lap = 0
want = sum(math.sin(i) * 1.5 for i in range(5000))
while True:
    got = sum(math.sin(i) * 1.5 for i in range(5000))
    if got != want:
        print("WRONG", got, want, flush=True)
        sys.exit(1)
    before = time.monotonic()
    time.sleep(0.002)
    if time.monotonic() - before < 0.002:
        print("SHORT", flush=True)
        sys.exit(1)
    lap += 1
    print(lap, flush=True)
"#;

struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seizes, injects and lets go again and again, until killed.
fn trace_forever(pid: i32) -> ! {
    loop {
        let Ok(mut tracees) = Tracees::seize(pid, &SeizeOptions::default()) else { continue };
        if let Ok(mut remote) = tracees.remote(4096) {
            let _ = remote.batch(pid, &vec![Call::new(libc::SYS_getppid, []); 300]);
            let _ = remote.finish();
        }
        let _ = tracees.detach();
    }
}

#[test]
fn target_survives_a_tracer_killed_at_random_moments() {
    survives("", 300);
}

#[test]
fn target_that_handles_every_signal_survives_a_killed_tracer_too() {
    let handle_all = r"
import signal
for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    try: signal.signal(s, lambda *_: (print('SIGNALLED', flush=True), sys.exit(1)))
    except OSError: pass
";
    survives(handle_all, 150);
}

fn survives(prelude: &str, kills: u32) {
    let program = PROGRAM.replacen("lap = 0", &format!("{prelude}lap = 0"), 1);
    let mut child = Command::new("python3")
        .args(["-c", &program])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let pid = child.id() as i32;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _guest = Guest(child);
    let mut lap = || lines.next().expect("the guest goes on").expect("its output is text");
    lap();
    for i in 0..kills {
        // SAFETY: the child makes no use of locks that another thread of this test program could hold: it allocates,
        // which glibc's fork makes safe, and calls the kernel.
        match unsafe { libc::fork() } {
            0 => trace_forever(pid),
            tracer => {
                std::thread::sleep(Duration::from_micros(u64::from(300 + i * 7919 % 2000)));
                // SAFETY: our own child, not reaped yet.
                unsafe {
                    libc::kill(tracer, libc::SIGKILL);
                    libc::waitpid(tracer, std::ptr::null_mut(), 0);
                }
            }
        }
        let said = lap();
        assert!(said.parse::<u32>().is_ok(), "after kill {i}: {said}");
    }
    // All that was said meanwhile, and more to come.
    for _ in 0..1000 {
        let said = lap();
        assert!(said.parse::<u32>().is_ok(), "{said}");
    }
}

/// The descriptors of a process.
fn descriptors(pid: i32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let shown = |path: std::path::PathBuf| format!("{path:?} {:?}", std::fs::read_link(&path).ok());
    let mut all: Vec<_> = links.map(|link| shown(link.expect("a link").path())).collect();
    all.sort();
    all
}

/// Makes it open a descriptor, and is killed while that is open.
fn die_with_a_descriptor(pid: i32) -> ! {
    let mut tracees = Tracees::seize(pid, &SeizeOptions::default()).expect("it is stopped");
    let mut remote = tracees.remote(4096).expect("it can be asked");
    let made = remote.with_descriptor(Call::new(libc::SYS_epoll_create1, [0]), |_| {
        // SAFETY: ends this process.
        unsafe { libc::raise(libc::SIGKILL) }
    });
    unreachable!("{made:?}")
}

#[test]
fn a_descriptor_made_for_us_is_closed_though_the_tracer_is_killed() {
    let child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
    let pid = child.id() as i32;
    let _guest = Guest(child);
    std::thread::sleep(Duration::from_millis(50));
    let before = descriptors(pid);
    let mut tracees = Tracees::seize(pid, &SeizeOptions::default()).expect("it is stopped");
    let mut remote = tracees.remote(4096).expect("it can be asked");
    let call = Call::new(libc::SYS_epoll_create1, [0]);
    let open = remote.with_descriptor(call, |_| descriptors(pid).len());
    assert_eq!(open.expect("a descriptor"), before.len() + 1, "it is open meanwhile");
    remote.finish().expect("all is put back");
    assert_eq!(descriptors(pid), before);
    tracees.detach().expect("it goes on");
    // SAFETY: as above; the child is killed or panics, which ends it.
    match unsafe { libc::fork() } {
        0 => die_with_a_descriptor(pid),
        // SAFETY: our own child.
        tracer => unsafe { libc::waitpid(tracer, std::ptr::null_mut(), 0) },
    };
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    for _ in 0..500 {
        if state().contains(") S ") {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(state().contains(") S "), "it sleeps again: {}", state());
    assert_eq!(descriptors(pid), before);
    // What was left in its vDSO is no part of that, and is taken away by the next tool.
    let mut left = vdso(pid);
    assert_ne!(left, vdso(std::process::id() as i32), "the killed tool has left its code");
    pc_trace::without_our_code(&mut left);
    assert_eq!(left, vdso(std::process::id() as i32));
    let mut tracees = Tracees::seize(pid, &SeizeOptions::default()).expect("it is stopped");
    tracees.remote(4096).expect("it can be asked").finish().expect("all is put back");
    tracees.detach().expect("it goes on");
    assert_eq!(vdso(pid), left);
}

/// The vDSO as a process has it.
fn vdso(pid: i32) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vDSO");
    let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    let mut bytes = vec![0; (number(end) - number(start)) as usize];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    memory.read_exact_at(&mut bytes, number(start)).expect("its vDSO");
    bytes
}
