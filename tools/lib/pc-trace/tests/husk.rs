//! A husk makes calls, gets threads and restart blocks, and dies with its holder.

use std::time::{Duration, Instant};

use pc_sys::clone::{CloneArgs, Forked, clone3_fork};
use pc_trace::{Call, Husk, Scratch};

const LEN: u64 = 1 << 20;

/// A child that only pauses, held as a husk. The scratch area lies at an address of the test's own.
fn husk(addr: u64) -> (Husk, Scratch) {
    let scratch = Scratch::prepare(addr, LEN).unwrap();
    // SAFETY: the child makes only raw system calls.
    let forked = unsafe { clone3_fork(0, &[]) }.unwrap();
    match forked {
        Forked::Child => loop {
            // SAFETY: pause takes nothing and touches nothing.
            unsafe { libc::syscall(libc::SYS_pause) };
        },
        Forked::Parent(pid) => (Husk::adopt(pid, &scratch).unwrap(), scratch),
    }
}

fn exists(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn threads_are_born_held_and_can_make_calls_together() {
    let (mut husk, _scratch) = husk(0x1_0000_0000);
    let pid = husk.pid();
    let flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let args = CloneArgs { flags: flags as u64, ..CloneArgs::default() };
    let made = husk.clone_threads(&vec![args.to_bytes(); 20]).unwrap();
    assert_eq!(made.len(), 20);
    let work: Vec<_> =
        husk.tids().into_iter().map(|t| (t, vec![Call::new(libc::SYS_gettid, []); 3])).collect();
    for ((tid, _), results) in work.iter().zip(husk.batch_all(&work).unwrap()) {
        assert_eq!(results, vec![i64::from(*tid); 3]);
    }
    drop(husk);
    assert!(!exists(pid), "a husk that was not released must be gone");
}

#[test]
fn an_interrupted_sleep_goes_on_for_its_remaining_time() {
    let (mut husk, _scratch) = husk(0x1_1000_0000);
    let pid = husk.pid();
    let request = husk.put(&[0u64.to_le_bytes(), 300_000_000u64.to_le_bytes()].concat()).unwrap();
    let start = Instant::now();
    let call = Call::new(libc::SYS_nanosleep, [request, 0]);
    assert_eq!(husk.interrupted_call(pid, call).unwrap(), None, "it blocks");
    assert!(start.elapsed() < Duration::from_millis(200));
    // Caught in the sleep, then on to exit_group(0) by code of the scratch area: mov edi, 7; mov eax, 231; syscall.
    let code = [0x0f, 0x05, 0xbf, 7, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];
    let at = husk.put(&code).unwrap();
    let mut regs = pc_sys::ptrace::getregs(pid).unwrap();
    regs.rip = at + 2;
    regs.rax = -516i64 as u64;
    regs.orig_rax = libc::SYS_nanosleep as u64;
    husk.set_regs(pid, &regs).unwrap();
    husk.set_sigmask(pid, 0).unwrap();
    husk.release(false).unwrap();
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(libc::WEXITSTATUS(status), 7);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(299), "the sleep was cut short: {took:?}");
}

#[test]
fn a_call_that_does_not_block_gives_its_result() {
    let (mut husk, _scratch) = husk(0x1_2000_0000);
    let pid = husk.pid();
    let word = husk.put(&5u32.to_le_bytes()).unwrap();
    let timeout = husk.put(&[0u8; 16]).unwrap();
    let call = Call::new(libc::SYS_futex, [word, libc::FUTEX_WAIT as u64, 6, timeout]);
    assert_eq!(husk.interrupted_call(pid, call).unwrap(), Some(-i64::from(libc::EAGAIN)));
    assert_eq!(husk.call(pid, Call::new(libc::SYS_getpid, [])).unwrap(), pid as u64);
}
