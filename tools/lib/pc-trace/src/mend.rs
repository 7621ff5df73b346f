//! What stopping a thread has done to it, and how that is mended.

use pc_sys::mem;
use pc_sys::ptrace::{self, Regs};

use crate::Tid;
use crate::error::{KernelContext, TraceError};

/// The kernel's own codes for calls that it will redo: they never reach user space.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// The instruction `int 0x80`, by which a 64-bit thread can make the calls of 32-bit programs, too, under their numbers.
const INT_80: [u8; 2] = [0xcd, 0x80];
/// restart_syscall(2) as `int 0x80` knows it.
const RESTART_BY_INT_80: i64 = 0;

/// Calls that come back with `EINTR` from a mere stop, though no signal was delivered (signal(7), "Interruption of
/// system calls and library functions by stop signals", and those that epoll and IPC never restart).
const EINTR_BY_STOP: [i64; 17] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_io_getevents,
];

/// The same calls as `int 0x80` knows them: read, ipc, socketcall, rt_sigtimedwait, io_getevents, epoll_wait … (arch/x86/entry/
/// syscalls/syscall_32.tbl).
const EINTR_BY_STOP_INT_80: [i64; 19] =
    [3, 102, 117, 177, 247, 256, 319, 337, 364, 369, 370, 371, 372, 400, 402, 417, 420, 421, 441];

/// Whether these registers are after a call that was made by `int 0x80`.
pub fn is_int_80(pid: i32, regs: &Regs) -> bool {
    let mut code = [0; 2];
    let in_call = regs.orig_rax as i64 >= 0;
    in_call && regs.rip >= 2 && mem::read_remote(pid, regs.rip - 2, &mut code).is_ok() && code == INT_80
}

/// Registers with which the interrupted call is made again, if `regs` show a call that came back with `EINTR` only
/// because we stopped the thread. (Right only while no signal waits to be delivered: see the caller.)
pub(crate) fn redo_eintr(pid: i32, regs: &Regs) -> Option<Regs> {
    if regs.rax as i64 != -i64::from(libc::EINTR) {
        return None;
    }
    let calls = if is_int_80(pid, regs) { &EINTR_BY_STOP_INT_80[..] } else { &EINTR_BY_STOP[..] };
    calls.contains(&(regs.orig_rax as i64)).then(|| rewound(regs, regs.orig_rax))
}

/// Registers with which the kernel takes the interrupted call up, if `regs` show that it has just begun to do so: a thread
/// that is stopped once more on its way out stands at a `restart_syscall` that it has not made (`arch_do_signal_or_restart`
/// in arch/x86/kernel/signal.c). Whoever is not this thread has no use for that call.
pub(crate) fn redo_restart(pid: i32, regs: &Regs) -> Option<Regs> {
    let instruction = match regs.rax as i64 {
        libc::SYS_restart_syscall => SYSCALL,
        RESTART_BY_INT_80 => INT_80,
        _ => return None,
    };
    let mut code = [0; 2];
    let in_call = regs.orig_rax as i64 >= 0;
    (in_call && mem::read_remote(pid, regs.rip, &mut code).is_ok() && code == instruction).then(|| Regs {
        rax: -ERESTART_RESTARTBLOCK as u64,
        rip: regs.rip + SYSCALL.len() as u64,
        ..*regs
    })
}

/// Registers that go on with the same effect without the kernel's restart logic, which rt_sigreturn(2) bypasses: the
/// interrupted call is made again. One that would be taken up through its restart block starts anew.
pub(crate) fn without_restart(regs: &Regs) -> Regs {
    if (regs.orig_rax as i64) < 0 {
        return *regs;
    }
    match -(regs.rax as i64) {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK => rewound(regs, regs.orig_rax),
        _ => *regs,
    }
}

fn rewound(regs: &Regs, nr: u64) -> Regs {
    Regs { rax: nr, rip: regs.rip - SYSCALL.len() as u64, orig_rax: u64::MAX, ..*regs }
}

/// A thread caught inside a restartable sequence goes on at its abort handler, as the kernel would have it at any
/// preemption; a remote call would clear the section without the abort (rseq(2), kernel/rseq.c).
pub(crate) fn abort_rseq(pid: i32, tid: Tid, regs: &mut Regs) -> Result<(), TraceError> {
    const RSEQ_CS: u64 = 8;
    // EIO: a kernel before 5.13, which cannot tell. Such a kernel is refused by what needs more of it.
    let Ok(Some(conf)) = ptrace::get_rseq_configuration(tid) else { return Ok(()) };
    let mut word = [0u8; 8];
    if mem::read_remote(pid, conf.rseq_abi_pointer + RSEQ_CS, &mut word).is_err() {
        return Ok(());
    }
    let section = u64::from_le_bytes(word);
    let mut cs = [0u8; 32];
    if section == 0 || mem::read_remote(pid, section, &mut cs).is_err() {
        return Ok(());
    }
    let field = |i: usize| u64::from_le_bytes(cs[8 * i..8 * i + 8].try_into().unwrap_or_default());
    let (start, length, abort) = (field(1), field(2), field(3));
    if regs.rip.wrapping_sub(start) >= length {
        return Ok(());
    }
    regs.rip = abort;
    // First the registers, then the pointer: dying between the two leaves a thread that is outside its section.
    ptrace::setregs(tid, regs).kernel("setting the registers", tid)?;
    mem::write_remote(pid, conf.rseq_abi_pointer + RSEQ_CS, &[0; 8]).kernel("clearing rseq_cs", tid)
}

/// The number of the system call whose `syscall` or `int 0x80` instruction stands in front of `rip`, where the instruction before that
/// loads it (`mov eax, imm32`, as C libraries write their calls out).
pub fn call_in_front(pid: i32, rip: u64) -> Option<i64> {
    const MOV_EAX: u8 = 0xb8;
    let mut code = [0; 7];
    mem::read_remote(pid, rip.checked_sub(7)?, &mut code).ok()?;
    let [MOV_EAX, number @ .., a, b] = code else { return None };
    ([a, b] == SYSCALL || [a, b] == INT_80).then_some(i64::from(u32::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(rax: i64, orig_rax: i64) -> Regs {
        // SAFETY: all-zero registers are valid.
        let zero: Regs = unsafe { std::mem::zeroed() };
        Regs { rax: rax as u64, orig_rax: orig_rax as u64, rip: 0x1000, ..zero }
    }

    #[test]
    fn epoll_wait_that_was_only_stopped_is_made_again() {
        let pid = std::process::id() as i32;
        let mended = redo_eintr(pid, &regs(-4, libc::SYS_epoll_wait)).unwrap();
        assert_eq!(
            (mended.rax as i64, mended.rip, mended.orig_rax as i64),
            (libc::SYS_epoll_wait, 0xffe, -1)
        );
        assert!(redo_eintr(pid, &regs(-4, libc::SYS_connect)).is_none());
        assert!(redo_eintr(pid, &regs(0, libc::SYS_epoll_wait)).is_none());
    }

    #[test]
    fn user_code_is_left_alone_even_if_rax_looks_like_a_restart() {
        let r = without_restart(&regs(-512, -1));
        assert_eq!((r.rax as i64, r.rip), (-512, 0x1000));
    }

    #[test]
    fn a_restart_that_has_begun_is_taken_back() {
        let pid = std::process::id() as i32;
        let code = [0x0fu8, 0x05, 0xc3, 0xc3];
        let at = |skip: usize, orig_rax| Regs { rip: code[skip..].as_ptr() as u64, ..regs(219, orig_rax) };
        let mended = redo_restart(pid, &at(0, libc::SYS_poll)).unwrap();
        assert_eq!((mended.rax as i64, mended.orig_rax as i64), (-516, libc::SYS_poll));
        assert_eq!(mended.rip, code[2..].as_ptr() as u64);
        assert!(redo_restart(pid, &at(2, libc::SYS_read)).is_none(), "a call that gave 219");
        assert!(redo_restart(pid, &at(0, -1)).is_none(), "user code");
        assert!(redo_restart(pid, &regs(219, libc::SYS_poll)).is_none(), "no code there");
    }

    #[test]
    fn calls_by_int_0x80_are_told_by_their_instruction() {
        let pid = std::process::id() as i32;
        let code = [0xb8u8, 0xa2, 0, 0, 0, 0xcd, 0x80, 0xc3];
        let at = |skip: usize, rax, nr| Regs { rip: code[skip..].as_ptr() as u64, ..regs(rax, nr) };
        assert!(is_int_80(pid, &at(7, -516, 162)) && !is_int_80(pid, &at(7, -516, -1)));
        assert_eq!(call_in_front(pid, at(7, -516, 0).rip), Some(162));
        let mended = redo_restart(pid, &at(5, 0, 162)).unwrap();
        assert_eq!((mended.rax as i64, mended.rip), (-516, at(7, 0, 0).rip));
        assert!(redo_eintr(pid, &at(7, -4, 256)).is_some(), "epoll_wait");
        assert!(redo_eintr(pid, &at(7, -4, libc::SYS_epoll_wait)).is_none());
    }

    #[test]
    fn a_call_is_told_by_the_instruction_that_loads_its_number() {
        let told = |code: &[u8]| call_in_front(std::process::id() as i32, code.as_ptr_range().end as u64);
        assert_eq!(told(&[0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05]), Some(libc::SYS_clock_nanosleep));
        assert_eq!(told(&[0xb9, 0xe6, 0, 0, 0, 0x0f, 0x05]), None);
        assert_eq!(told(&[0xb8, 0xe6, 0, 0, 0, 0x0f, 0x34]), None);
        assert_eq!(call_in_front(std::process::id() as i32, 3), None);
    }
}
