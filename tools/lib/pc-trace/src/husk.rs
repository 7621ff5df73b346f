//! A husk: a process in the making, emptied and filled from outside by remote system calls. It dies with its tracer.

use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use pc_sys::mem;
use pc_sys::ptrace::{self, Options, Regs, Stop};

use crate::Tid;
use crate::area::{CODE, CODE_LEN, DataArea, Entries};
use crate::call::{Call, ENTRY, RESULT, errno_of};
use crate::error::{KernelContext, TraceError};
use crate::held::{EVENT_STOP, Held};
use crate::target::Status;

/// Bytes before the entries: the code, and some stack that nothing uses.
const CODE_AREA: u64 = 4096;
/// The most calls that run without a stop.
const ENTRIES: usize = 4096;
/// Every husk thread ends its batches by this signal, which is never delivered to it.
const END_SIGNAL: i32 = libc::SIGURG;

/// The scratch area that a husk inherits: made in the caller before the clone, at an address that is free in the caller
/// and stays free in the husk. Dropped, it is unmapped in the caller.
#[derive(Debug)]
pub struct Scratch {
    base: u64,
    len: u64,
}

impl Scratch {
    /// Bytes that the area needs besides its data.
    pub const OVERHEAD: u64 = CODE_AREA + (ENTRIES * ENTRY) as u64;

    /// Maps `len` bytes at `addr` (both multiples of the page size, `len` above [`Scratch::OVERHEAD`]) and puts the code
    /// there. `EEXIST` where something is mapped.
    pub fn prepare(addr: u64, len: u64) -> io::Result<Self> {
        if len <= Self::OVERHEAD || !len.is_multiple_of(4096) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: with MAP_FIXED_NOREPLACE nothing of ours is replaced.
        let got = unsafe { libc::mmap(addr as *mut libc::c_void, len as usize, prot, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let scratch = Self { base: got as u64, len };
        if scratch.base != addr {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        // SAFETY: the mapping made above is writable and longer than the code.
        unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), got.cast::<u8>(), CODE_LEN) };
        Ok(scratch)
    }

    /// `(start, end)`.
    pub fn range(&self) -> (u64, u64) {
        (self.base, self.base + self.len)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped by `prepare`, referred to by nobody.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len as usize) };
    }
}

/// A husk with all of its threads held. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Husk {
    pid: i32,
    threads: Vec<Held>,
    base: u64,
    len: u64,
    entries: Entries,
    data: DataArea,
    options: Options,
    released: bool,
    _not_send: PhantomData<*mut ()>,
}

impl Husk {
    /// Takes hold of a child that was cloned while `scratch` was mapped and that has one thread, which blocks or spins.
    /// It dies with the caller from here on.
    pub fn adopt(pid: i32, scratch: &Scratch) -> Result<Self, TraceError> {
        let options = seize(pid)?;
        let mut husk = Self {
            pid,
            threads: Vec::new(),
            base: scratch.base,
            len: scratch.len,
            entries: Entries { addr: scratch.base + CODE_AREA, capacity: ENTRIES },
            data: DataArea::new(scratch.base + Scratch::OVERHEAD, scratch.len - Scratch::OVERHEAD),
            options,
            released: false,
            _not_send: PhantomData,
        };
        ptrace::interrupt(pid).kernel("interrupting", pid)?;
        husk.hold_new(pid)?;
        Ok(husk)
    }

    /// Waits for the first stop of a thread and takes it among those held.
    fn hold_new(&mut self, tid: Tid) -> Result<(), TraceError> {
        loop {
            match ptrace::wait(tid).kernel("waiting", tid)? {
                Stop::Event(EVENT_STOP, _) => break,
                Stop::Dead(status) => return Err(TraceError::Dead { tid, status }),
                _ => {
                    ptrace::interrupt(tid).kernel("interrupting", tid)?;
                    ptrace::cont(tid, 0).kernel("resuming", tid)?;
                }
            }
        }
        let ns_tid = Status::read(tid).kernel("reading the status", tid)?.ns_pid;
        let tgid = self.threads.first().map_or(ns_tid, |leader| leader.ns.0);
        let mut held = Held::new(tid, (tgid, ns_tid))?;
        held.end_signal = Some(END_SIGNAL);
        self.threads.push(held);
        Ok(())
    }

    /// The husk's pid as the tracer sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its threads as the tracer sees them, the main thread first, then in the order in which they were made.
    pub fn tids(&self) -> Vec<Tid> {
        self.threads.iter().map(|held| held.tid).collect()
    }

    /// A thread's id in its own pid namespace.
    pub fn ns_tid(&self, tid: Tid) -> Result<i32, TraceError> {
        Ok(self.threads[self.index(tid)?].ns.1)
    }

    fn index(&self, tid: Tid) -> Result<usize, TraceError> {
        self.threads.iter().position(|held| held.tid == tid).ok_or(TraceError::NotHeld(tid))
    }

    /// Makes one call on a thread.
    pub fn call(&mut self, tid: Tid, call: Call) -> Result<u64, TraceError> {
        let result = self.batch(tid, &[call])?.first().copied().unwrap_or(-i64::from(libc::EIO));
        errno_of(result).map_or(Ok(result as u64), |errno| Err(TraceError::Remote { call, errno }))
    }

    /// Makes calls on a thread, one after the other whatever they answer; gives the raw results (negative `errno`).
    pub fn batch(&mut self, tid: Tid, calls: &[Call]) -> Result<Vec<i64>, TraceError> {
        let mut results = Vec::with_capacity(calls.len());
        for chunk in calls.chunks(ENTRIES) {
            results.extend(self.run(&[(tid, chunk)])?.pop().unwrap_or_default());
        }
        Ok(results)
    }

    /// Makes calls on a thread, none of which may fail.
    pub fn batch_ok(&mut self, tid: Tid, calls: &[Call]) -> Result<Vec<u64>, TraceError> {
        let results = self.batch(tid, calls)?;
        let failed =
            calls.iter().zip(&results).find_map(|(call, r)| errno_of(*r).map(|errno| (*call, errno)));
        match failed {
            Some((call, errno)) => Err(TraceError::Remote { call, errno }),
            None => Ok(results.into_iter().map(|r| r as u64).collect()),
        }
    }

    /// Makes calls on many threads at the same time; the order of threads is not defined, that of a thread's calls is.
    pub fn batch_all(&mut self, work: &[(Tid, Vec<Call>)]) -> Result<Vec<Vec<i64>>, TraceError> {
        let mut results = Vec::with_capacity(work.len());
        let mut at = 0;
        while at < work.len() {
            let mut total = 0;
            let group: Vec<(Tid, &[Call])> = work[at..]
                .iter()
                .take_while(|(_, calls)| {
                    total += calls.len();
                    total <= self.entries.capacity
                })
                .map(|(tid, calls)| (*tid, calls.as_slice()))
                .collect();
            if group.is_empty() {
                results.push(self.batch(work[at].0, &work[at].1)?);
                at += 1;
            } else {
                results.extend(self.run(&group)?);
                at += group.len();
            }
        }
        Ok(results)
    }

    fn run(&mut self, work: &[(Tid, &[Call])]) -> Result<Vec<Vec<i64>>, TraceError> {
        let mut bytes: Vec<u8> =
            work.iter().flat_map(|(_, calls)| calls.iter()).flat_map(|c| c.to_entry()).collect();
        self.write(self.entries.addr, &bytes)?;
        let mut entry = self.entries.addr;
        for (tid, calls) in work {
            let index = self.index(*tid)?;
            self.threads[index].launch(self.base, entry, calls.len(), self.base + CODE_AREA)?;
            entry += (calls.len() * ENTRY) as u64;
        }
        for (tid, _) in work {
            let index = self.index(*tid)?;
            self.threads[index].wait_end(self.base)?;
        }
        self.read(self.entries.addr, &mut bytes)?;
        let mut words = bytes
            .chunks_exact(ENTRY)
            .map(|e| i64::from_le_bytes(e[RESULT..RESULT + 8].try_into().unwrap_or_default()));
        Ok(work.iter().map(|(_, calls)| words.by_ref().take(calls.len()).collect()).collect())
    }

    /// Makes threads by clone3(2) on the main thread: each item is the bytes of a `struct clone_args`, with the pids of
    /// its `set_tid` at an address put before. The threads are born held. Gives their tids as the tracer sees them.
    pub fn clone_threads(&mut self, args: &[[u8; 88]]) -> Result<Vec<Tid>, TraceError> {
        let leader = self.pid;
        let mut made = Vec::with_capacity(args.len());
        for group in args.chunks(1024) {
            let mark = self.data;
            let calls = group
                .iter()
                .map(|one| Ok(Call::new(libc::SYS_clone3, [self.put(one)?, one.len() as u64])))
                .collect::<Result<Vec<_>, TraceError>>()?;
            let outcome = self.batch_ok(leader, &calls);
            let born = std::mem::take(&mut self.threads[0].born);
            for tid in &born {
                self.hold_new(*tid)?;
            }
            outcome?;
            made.extend(born);
            self.data = mark;
        }
        Ok(made)
    }

    /// Ends a thread, which must not be the main one.
    pub fn end_thread(&mut self, tid: Tid) -> Result<(), TraceError> {
        let index = self.index(tid)?;
        if index == 0 {
            return Err(TraceError::NotHeld(tid));
        }
        let entry = self.entries.addr;
        self.write(entry, &Call::new(libc::SYS_exit, [0]).to_entry())?;
        let base = self.base;
        self.threads[index].launch(base, entry, 1, base + CODE_AREA)?;
        loop {
            match ptrace::wait(tid).kernel("waiting", tid)? {
                Stop::Dead(_) => break,
                _ => ptrace::cont(tid, 0).kernel("resuming", tid)?,
            }
        }
        self.threads.remove(index);
        Ok(())
    }

    /// Makes a call that is expected to block, on the given thread, and has it interrupted at once: the thread then has
    /// the restart block with which the kernel takes the call up again (`None`). A call that did not block gives its raw
    /// result. The thread must make no other call that can block before it is released.
    pub fn interrupted_call(&mut self, tid: Tid, call: Call) -> Result<Option<i64>, TraceError> {
        const RESTART_BLOCK: i64 = -516;
        let (base, entry) = (self.base, self.entries.addr);
        self.write(entry, &call.to_entry())?;
        let index = self.index(tid)?;
        let held = &mut self.threads[index];
        held.end_signal = None; // stop at system calls
        held.launch(base, entry, 1, base + CODE_AREA)?;
        loop {
            match ptrace::wait(tid).kernel("waiting", tid)? {
                Stop::Syscall => break,
                Stop::Dead(status) => return Err(TraceError::Dead { tid, status }),
                _ => ptrace::cont_syscall(tid, 0).kernel("resuming", tid)?,
            }
        }
        // With a stop asked for, the call finds a signal pending where it would go to sleep.
        self.stop_behind_call(tid)?;
        self.threads[index].end_signal = Some(END_SIGNAL);
        let result = ptrace::getregs(tid).kernel("reading the registers", tid)?.rax as i64;
        Ok((result != RESTART_BLOCK).then_some(result))
    }

    /// From the entry of a call to a stop after it, inside the kernel's signal handling: no instruction is run in between.
    fn stop_behind_call(&self, tid: Tid) -> Result<(), TraceError> {
        loop {
            ptrace::interrupt(tid).kernel("interrupting", tid)?;
            ptrace::cont(tid, 0).kernel("resuming", tid)?;
            match ptrace::wait(tid).kernel("waiting", tid)? {
                Stop::Event(EVENT_STOP, _) => return Ok(()),
                Stop::Dead(status) => return Err(TraceError::Dead { tid, status }),
                _ => {}
            }
        }
    }

    /// The registers with which the thread will be released.
    pub fn set_regs(&mut self, tid: Tid, regs: &Regs) -> Result<(), TraceError> {
        let index = self.index(tid)?;
        self.threads[index].regs = *regs;
        Ok(())
    }

    /// The signal mask with which the thread will be released.
    pub fn set_sigmask(&mut self, tid: Tid, mask: u64) -> Result<(), TraceError> {
        let index = self.index(tid)?;
        self.threads[index].mask = mask;
        Ok(())
    }

    /// Sets the extended state now. A state that was cut after its last component in use is filled up.
    pub fn set_xstate(&mut self, tid: Tid, xstate: &[u8]) -> Result<(), TraceError> {
        self.index(tid)?;
        let mut whole = ptrace::getxstate(tid).kernel("reading the extended state", tid)?;
        if xstate.len() > whole.len() {
            let what = format!("an extended state of {} bytes, {} at most here", xstate.len(), whole.len());
            return Err(TraceError::Unsupported { pid: self.pid, what });
        }
        whole.fill(0);
        whole[..xstate.len()].copy_from_slice(xstate);
        ptrace::setxstate(tid, &whole).kernel("setting the extended state", tid)
    }

    /// Copies bytes into the scratch area and gives their address there.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64, TraceError> {
        let addr = self.space(bytes.len())?;
        self.write(addr, bytes)?;
        Ok(addr)
    }

    /// Takes `len` bytes of the scratch area, for results.
    pub fn space(&mut self, len: usize) -> Result<u64, TraceError> {
        let full = || io::Error::from_raw_os_error(libc::ENOMEM);
        self.data.take(len).ok_or_else(full).kernel("taking scratch space", self.pid)
    }

    /// Frees all of the scratch area's data.
    pub fn reset(&mut self) {
        self.data.reset();
    }

    /// Reads the husk's memory.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), TraceError> {
        mem::read_remote(self.pid, addr, buf).kernel("reading the memory", self.pid)
    }

    /// Writes to the husk's memory, where the husk itself may write.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), TraceError> {
        mem::write_remote(self.pid, addr, bytes).kernel("writing to the memory", self.pid)
    }

    /// Unmaps the scratch area through a `syscall` instruction of the vDSO, which lies at `vdso` (`start`, `end`). The
    /// last remote call that the husk can make.
    pub fn unmap_scratch(&mut self, vdso: (u64, u64)) -> Result<(), TraceError> {
        let pid = self.pid;
        let mut image = vec![0; (vdso.1 - vdso.0) as usize];
        self.read(vdso.0, &mut image)?;
        let syscall = image.windows(2).position(|w| w == [0x0f, 0x05]).ok_or_else(|| {
            TraceError::Unsupported { pid, what: "the vDSO has no system call instruction".to_owned() }
        })?;
        let regs = Regs {
            rip: vdso.0 + syscall as u64,
            rax: libc::SYS_munmap as u64,
            rdi: self.base,
            rsi: self.len,
            orig_rax: u64::MAX,
            ..ptrace::getregs(pid).kernel("reading the registers", pid)?
        };
        ptrace::setregs(pid, &regs).kernel("setting the registers", pid)?;
        // Not a single step: its SIGTRAP, blocked or ignored, would set that signal's action to the default.
        loop {
            ptrace::cont_syscall(pid, 0).kernel("resuming", pid)?;
            match ptrace::wait(pid).kernel("waiting", pid)? {
                Stop::Syscall => break,
                Stop::Dead(status) => return Err(TraceError::Dead { tid: pid, status }),
                _ => {}
            }
        }
        self.stop_behind_call(pid)?;
        let result = ptrace::getregs(pid).kernel("reading the registers", pid)?.rax as i64;
        let call = Call::new(libc::SYS_munmap, [self.base, self.len]);
        errno_of(result).map_or(Ok(()), |errno| Err(TraceError::Remote { call, errno }))
    }

    /// Puts masks and registers in place. All that can fail has to come before; then [`Husk::release`].
    pub fn prepare_release(&mut self) -> Result<(), TraceError> {
        self.threads.iter_mut().try_for_each(Held::put_back)
    }

    /// Lets the husk run: from here on it lives without us (the point of no return), then every thread goes.
    /// With `stopped`, it stops (SIGSTOP) before its first instruction. An error says that nothing has run.
    pub fn release(mut self, stopped: bool) -> Result<(), TraceError> {
        self.prepare_release()?;
        let options = self.options - Options::EXITKILL;
        for held in &self.threads {
            ptrace::set_options(held.tid, options).kernel("letting go", held.tid)?;
            if stopped {
                ptrace::tgkill(self.pid, held.tid, libc::SIGSTOP).kernel("stopping", held.tid)?;
            }
        }
        self.released = true;
        for held in &self.threads {
            // Fails only for a thread that was killed meanwhile: the process ran, and has ended.
            let _ = ptrace::detach(held.tid, 0);
        }
        Ok(())
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        if !self.released {
            kill_and_reap(self.pid, &self.tids());
        }
    }
}

/// Seizes a husk; suspends seccomp where we may (the filters that it gets must not act on remote calls).
fn seize(pid: i32) -> Result<Options, TraceError> {
    let plain = Options::EXITKILL | Options::TRACECLONE | Options::TRACESYSGOOD;
    let options = plain | Options::SUSPEND_SECCOMP;
    match ptrace::seize(pid, options) {
        Ok(()) => Ok(options),
        Err(err) if err.raw_os_error() == Some(libc::EPERM) => {
            ptrace::seize(pid, plain).kernel("seizing", pid)?;
            Ok(plain)
        }
        Err(err) => Err(err).kernel("seizing", pid),
    }
}

/// Kills a traced child and reaps all of its threads, in whatever order they end.
fn kill_and_reap(pid: i32, tids: &[Tid]) {
    // SAFETY: kill takes two integers; the pid is that of our own, unreaped child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut left: Vec<Tid> = tids.iter().rev().copied().collect();
    while !left.is_empty() && Instant::now() < deadline {
        left.retain(|&tid| !matches!(ptrace::try_wait(tid), Err(_) | Ok(Some(Stop::Dead(_)))));
        if !left.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
