//! ptrace(2) and waitpid(2) for one thread at a time, on `libc`: nix fails on real-time signal stops after it has
//! consumed them, and lacks the extended register set.

use std::io;

use crate::check;

pub use libc::user_regs_struct as Regs;

/// `NT_X86_XSTATE`.
const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
/// `NT_386_IOPERM`.
const NT_386_IOPERM: usize = 0x201;

bitflags::bitflags! {
    /// `PTRACE_O_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Options: i32 {
        /// Bit 7 tells system-call stops from signals.
        const TRACESYSGOOD = 1;
        /// New threads are traced from their birth.
        const TRACECLONE = 1 << 3;
        /// The tracee dies with its tracer.
        const EXITKILL = 1 << 20;
        /// seccomp filters do not act while traced. Needs `CAP_SYS_ADMIN`.
        const SUSPEND_SECCOMP = 1 << 21;
    }
}

fn request(req: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: callers pass in `addr` and `data` what the request asks for, pointing at memory that outlives the call.
    check(unsafe { libc::ptrace(req as _, tid, addr, data) })
}

/// Attaches to a thread without stopping it.
pub fn seize(tid: i32, options: Options) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options.bits() as usize).map(drop)
}

/// Changes the options of a stopped tracee.
pub fn set_options(tid: i32, options: Options) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options.bits() as usize).map(drop)
}

/// Asks a seized thread to stop; [`wait`] then gives [`Stop::Event`].
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Resumes a stopped tracee, delivering `signal` if it is not 0.
pub fn cont(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Resumes until the next entry to or exit from a system call.
pub fn cont_syscall(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped tracee go, delivering `signal` if it is not 0.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// General registers.
pub fn getregs(tid: i32) -> io::Result<Regs> {
    let mut regs = std::mem::MaybeUninit::<Regs>::zeroed();
    request(libc::PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize)?;
    // SAFETY: all bit patterns are valid, and the kernel has filled it.
    Ok(unsafe { regs.assume_init() })
}

/// Sets the general registers.
pub fn setregs(tid: i32, regs: &Regs) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize).map(drop)
}

/// The extended state in the XSAVE standard format, as long as the kernel gives it.
pub fn getxstate(tid: i32) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 16384];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, std::ptr::from_mut(&mut iov) as usize)?;
    buf.truncate(iov.iov_len);
    Ok(buf)
}

/// Sets the extended state; `xstate` must be as long as the kernel's own set (see [`getxstate`]).
pub fn setxstate(tid: i32, xstate: &[u8]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: xstate.as_ptr().cast_mut().cast(), iov_len: xstate.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, std::ptr::from_mut(&mut iov) as usize).map(drop)
}

/// Blocked signals (those that will be in force when a temporary mask of sigsuspend(2) and the like is taken back).
pub fn getsigmask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, 8, std::ptr::from_mut(&mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals.
pub fn setsigmask(tid: i32, mask: u64) -> io::Result<()> {
    request(PTRACE_SETSIGMASK, tid, 8, std::ptr::from_ref(&mask) as usize).map(drop)
}

/// Pending signals with their data, of the thread alone or (`shared`) of the whole process; none is consumed.
pub fn peeksiginfo(tid: i32, shared: bool) -> io::Result<Vec<[u8; 128]>> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut all = Vec::new();
    loop {
        let args =
            Args { off: all.len() as u64, flags: if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 }, nr: 32 };
        let mut infos = [[0u8; 128]; 32];
        let addr = std::ptr::from_ref(&args) as usize;
        let n = request(PTRACE_PEEKSIGINFO, tid, addr, infos.as_mut_ptr() as usize)? as usize;
        all.extend_from_slice(&infos[..n]);
        if n < infos.len() {
            return Ok(all);
        }
    }
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RseqConfiguration {
    /// Address of the thread's `struct rseq`, 0 = not registered.
    pub rseq_abi_pointer: u64,
    /// Its length in bytes.
    pub rseq_abi_size: u32,
    /// Its signature.
    pub signature: u32,
    /// Always 0.
    pub flags: u32,
    pad: u32,
}

/// rseq registration of a stopped thread; `None` if there is none. `EIO` before Linux 5.13.
pub fn get_rseq_configuration(tid: i32) -> io::Result<Option<RseqConfiguration>> {
    let mut conf = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, std::ptr::from_mut(&mut conf) as usize)?;
    Ok((conf.rseq_abi_pointer != 0).then_some(conf))
}

/// Whether a stopped thread has syscall user dispatch on (`PR_SET_SYSCALL_USER_DISPATCH`). `EIO` before Linux 6.4.
pub fn dispatches_syscalls(tid: i32) -> io::Result<bool> {
    /// `struct ptrace_sud_config`: mode, selector, offset, length.
    type Config = [u64; 4];
    let mut config: Config = [0; 4];
    let at = std::ptr::from_mut(&mut config) as usize;
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<Config>(), at)?;
    Ok(config[0] != 0)
}

/// Whether a stopped thread may use I/O ports by ioperm(2). (What iopl(2) allows, nothing shows.)
pub fn has_io_ports(tid: i32) -> bool {
    let mut buf = vec![0u8; 8192];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_386_IOPERM, std::ptr::from_mut(&mut iov) as usize).is_ok()
}

/// The classic BPF program of the seccomp filter number `index` (0 = the newest), 8 bytes an instruction; `None` after
/// the last. Needs `CAP_SYS_ADMIN`.
pub fn seccomp_get_filter(tid: i32, index: usize) -> io::Result<Option<Vec<u8>>> {
    let count = match request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0) {
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        count => count? as usize,
    };
    let mut insns = vec![0u8; count * 8];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index, insns.as_mut_ptr() as usize)?;
    Ok(Some(insns))
}

/// Flags (`SECCOMP_FILTER_FLAG_LOG`) of the seccomp filter number `index`.
pub fn seccomp_get_metadata(tid: i32, index: u64) -> io::Result<u64> {
    let mut data = [index, 0u64];
    request(PTRACE_SECCOMP_GET_METADATA, tid, size_of_val(&data), data.as_mut_ptr() as usize)?;
    Ok(data[1])
}

/// Why a tracee stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It has ended (exit or a deadly signal): the raw wait status.
    Dead(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    /// Entry to or exit from a system call.
    Syscall,
    /// A ptrace event: `PTRACE_EVENT_*`, with the signal of the stop (SIGTRAP, or a group stop's signal).
    Event(i32, i32),
}

/// Turns a wait status into a [`Stop`].
pub fn decode_status(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Dead(status);
    }
    let signal = libc::WSTOPSIG(status);
    let event = status >> 16;
    match (signal, event) {
        (signal, event) if event != 0 => Stop::Event(event, signal),
        (signal, _) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (signal, _) => Stop::Signal(signal),
    }
}

/// Waits for the next stop of one tracee.
pub fn wait(tid: i32) -> io::Result<Stop> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable; __WALL waits for threads as well as processes.
        match check(unsafe { libc::waitpid(tid, &mut status, libc::__WALL) }.into()) {
            Ok(_) => return Ok(decode_status(status)),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// The next stop of one tracee, if there is one yet.
pub fn try_wait(tid: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` is writable; WNOHANG makes it return at once.
    let got = check(unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) }.into())?;
    Ok((got != 0).then(|| decode_status(status)))
}

/// The message of the last event: the new thread's tid after a clone.
pub fn geteventmsg(tid: i32) -> io::Result<u64> {
    let mut msg = 0u64;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, std::ptr::from_mut(&mut msg) as usize)?;
    Ok(msg)
}

/// tgkill(2).
pub fn tgkill(tgid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill takes three integers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, signal) }).map(drop)
}
