//! All threads of one process, seized and stopped.

use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use pc_sys::ptrace::{self, Options, Regs, RseqConfiguration, Stop};

use crate::Tid;
use crate::error::{KernelContext, TraceError};
use crate::held::{EVENT_STOP, Held};
use crate::mend;
use crate::remote::Remote;
use crate::target::{Status, list_threads};

/// How long stopping all threads may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a process is seized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeizeOptions {
    /// Do not wait with seccomp suspension until a filter is seen: always ask for it.
    pub suspend_seccomp: bool,
}

/// A seccomp(2) filter of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompFilter {
    /// Its classic BPF program, 8 bytes an instruction.
    pub insns: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_LOG` and the like.
    pub flags: u64,
}

/// All threads of one process in ptrace stops. Dropped or detached, they go on as if nothing had been.
#[derive(Debug)]
pub struct Tracees {
    pid: i32,
    pub(crate) threads: Vec<Held>,
    pub(crate) status: Status,
    job_stop: Option<i32>,
    stop_set: bool,
    since: Instant,
    _not_send: PhantomData<*mut ()>,
}

impl Tracees {
    /// Seizes and stops all threads of `pid`. Threads that are born meanwhile are found by listing again until no new
    /// one turns up. On failure, what was seized already goes on.
    pub fn seize(pid: i32, options: &SeizeOptions) -> Result<Self, TraceError> {
        let status = Status::read(pid).map_err(|_| TraceError::NoProcess(pid))?;
        let mut tracees = Self {
            pid,
            threads: Vec::new(),
            status,
            job_stop: None,
            stop_set: false,
            since: Instant::now(),
            _not_send: PhantomData,
        };
        let began = Instant::now();
        let suspend = options.suspend_seccomp || tracees.status.seccomp != 0;
        let flags = Options::TRACESYSGOOD | if suspend { Options::SUSPEND_SECCOMP } else { Options::empty() };
        loop {
            let fresh: Vec<Tid> = list_threads(pid)
                .map_err(|_| TraceError::NoProcess(pid))?
                .into_iter()
                .filter(|tid| !tracees.threads.iter().any(|held| held.tid == *tid))
                .collect();
            tracees.stop_all(&fresh, flags)?;
            // A list made while threads end can lack others that go on: the kernel's own count tells.
            let status = Status::read(pid).map_err(|_| TraceError::NoProcess(pid))?;
            if fresh.is_empty() && status.threads <= tracees.threads.len() {
                break;
            }
            if began.elapsed() > PATIENCE {
                let what = "its threads come and go too fast to be stopped".to_owned();
                return Err(TraceError::Unsupported { pid, what });
            }
            if fresh.is_empty() {
                // One that is ending is still counted, and needs a CPU to end.
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        if tracees.threads.first().is_none_or(|leader| leader.tid != pid) {
            let what = "its main thread has ended while others run, which cannot be moved yet".to_owned();
            return Err(TraceError::Unsupported { pid, what });
        }
        Ok(tracees)
    }

    /// Seizes and interrupts all, then waits for each: they stop at the same time.
    fn stop_all(&mut self, tids: &[Tid], flags: Options) -> Result<(), TraceError> {
        let mut seized = Vec::with_capacity(tids.len());
        let mut failed = None;
        for &tid in tids {
            match ptrace::seize(tid, flags) {
                Ok(()) => match ptrace::interrupt(tid) {
                    Ok(()) => seized.push(tid),
                    // One that dies before it is interrupted is ours all the same: it is there until we hear of its end.
                    // That of the main thread comes with the last of all.
                    Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {
                        seized.extend((tid != self.pid).then_some(tid));
                    }
                    Err(err) => {
                        failed = Some(self.seize_error(tid, err));
                        break;
                    }
                },
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {}
                // So answers a thread that is about to end, too. The main thread tells whether we may trace at all.
                Err(err) if err.raw_os_error() == Some(libc::EPERM) && tid != self.pid => {}
                Err(err) => {
                    failed = Some(self.seize_error(tid, err));
                    break;
                }
            }
        }
        for tid in seized {
            match self.await_stop(tid) {
                Ok(Some(held)) => self.threads.push(held),
                Ok(None) => {}
                Err(err) => failed = failed.or(Some(err)),
            }
        }
        self.threads.sort_by_key(|held| (held.tid != self.pid, held.tid));
        failed.map_or(Ok(()), Err)
    }

    fn seize_error(&self, tid: Tid, source: io::Error) -> TraceError {
        if source.raw_os_error() == Some(libc::EPERM) {
            return TraceError::NotPermitted(self.pid);
        }
        TraceError::Kernel { what: "seizing", tid, source }
    }

    /// Waits until an interrupted thread stands; `None` if it ended instead.
    fn await_stop(&mut self, tid: Tid) -> Result<Option<Held>, TraceError> {
        loop {
            let signal = match ptrace::wait(tid).kernel("waiting", tid)? {
                Stop::Dead(_) => return Ok(None),
                // On its way already when we came: it is delivered, then the thread stops.
                Stop::Signal(signal) => signal,
                Stop::Event(EVENT_STOP, signal) => {
                    if signal != libc::SIGTRAP {
                        self.job_stop = Some(signal);
                    }
                    break;
                }
                Stop::Syscall | Stop::Event(..) => 0,
            };
            // Any stop takes the interruption that was asked for with it (ptrace_stop() in kernel/signal.c).
            ptrace::interrupt(tid).kernel("interrupting", tid)?;
            ptrace::cont(tid, signal).kernel("resuming", tid)?;
        }
        let ns = if self.status.ns_pid == self.pid {
            (self.pid, tid)
        } else {
            (self.status.ns_pid, Status::read(tid).kernel("reading the status", tid)?.ns_pid)
        };
        let mut held = Held::new(tid, ns)?;
        if held.regs.cs != 0x33 {
            let what = format!("thread {tid} runs 32-bit code, which is not supported");
            let _ = ptrace::detach(tid, 0);
            return Err(TraceError::Unsupported { pid: self.pid, what });
        }
        if let Some(what) = unbearable(tid) {
            let _ = ptrace::detach(tid, 0);
            return Err(TraceError::Unsupported { pid: self.pid, what });
        }
        mend::abort_rseq(self.pid, tid, &mut held.regs)?;
        if let Some(mended) = mend::redo_restart(self.pid, &held.regs) {
            held.regs = mended;
        }
        if let Some(mended) = mend::redo_eintr(self.pid, &held.regs)
            && !Status::read(tid).is_ok_and(|s| s.deliverable())
        {
            held.unmended = Some(held.regs);
            held.regs = mended;
        }
        Ok(Some(held))
    }

    /// When the first thread was asked to stop.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The process's pid as the tracer sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pid in its own pid namespace.
    pub fn ns_pid(&self) -> i32 {
        self.status.ns_pid
    }

    /// All threads, the main thread first.
    pub fn tids(&self) -> Vec<Tid> {
        self.threads.iter().map(|held| held.tid).collect()
    }

    /// A thread's id in its own pid namespace.
    pub fn ns_tid(&self, tid: Tid) -> Result<i32, TraceError> {
        self.held(tid).map(|held| held.ns.1)
    }

    /// The job-control signal by which the process was stopped already when it was seized.
    pub fn job_stop(&self) -> Option<i32> {
        self.job_stop
    }

    /// The registers with which the thread will go on: what stopping did to it is mended in them.
    pub fn regs(&self, tid: Tid) -> Result<Regs, TraceError> {
        self.held(tid).map(|held| held.regs)
    }

    /// The signal mask with which the thread will go on.
    pub fn sigmask(&self, tid: Tid) -> Result<u64, TraceError> {
        self.held(tid).map(|held| held.mask)
    }

    /// The extended state in the XSAVE standard format.
    pub fn xstate(&self, tid: Tid) -> Result<Vec<u8>, TraceError> {
        ptrace::getxstate(self.held(tid)?.tid).kernel("reading the extended state", tid)
    }

    /// Pending signals with their data (128 bytes of `siginfo_t` each), of the thread or of the whole process. The signal
    /// by which [`Tracees::set_stop`] holds the process is left out.
    pub fn pending(&self, tid: Tid, shared: bool) -> Result<Vec<[u8; 128]>, TraceError> {
        let mut infos =
            ptrace::peeksiginfo(self.held(tid)?.tid, shared).kernel("reading pending signals", tid)?;
        if self.stop_set && !shared {
            infos.retain(|info| info[..4] != libc::SIGSTOP.to_le_bytes());
        }
        Ok(infos)
    }

    /// The thread's rseq(2) registration.
    pub fn rseq(&self, tid: Tid) -> Result<Option<RseqConfiguration>, TraceError> {
        ptrace::get_rseq_configuration(self.held(tid)?.tid).kernel("reading the rseq registration", tid)
    }

    /// A thread's seccomp filter by index (0 = the newest) with its flags; `None` after the last.
    pub fn seccomp_filter(&self, tid: Tid, index: usize) -> Result<Option<SeccompFilter>, TraceError> {
        let tid = self.held(tid)?.tid;
        let Some(insns) = ptrace::seccomp_get_filter(tid, index).kernel("reading a seccomp filter", tid)?
        else {
            return Ok(None);
        };
        let flags =
            ptrace::seccomp_get_metadata(tid, index as u64).kernel("reading a seccomp filter", tid)?;
        Ok(Some(SeccompFilter { insns, flags }))
    }

    /// Makes remote system calls possible, with `data` bytes of room for their arguments and results.
    pub fn remote(&mut self, data: usize) -> Result<Remote<'_>, TraceError> {
        Remote::begin(self, data)
    }

    /// Gives the process a stop that outlives us: SIGSTOP, queued for every thread while all are held, so that none runs
    /// an instruction once we are gone. SIGCONT ends it. Taken back by [`Tracees::cancel_stop`].
    pub fn set_stop(&mut self) -> Result<(), TraceError> {
        for held in &self.threads {
            ptrace::tgkill(self.pid, held.tid, libc::SIGSTOP).kernel("stopping", held.tid)?;
        }
        self.stop_set = true;
        Ok(())
    }

    /// Whether it was given a stop that is not taken back.
    pub fn stop_is_set(&self) -> bool {
        self.stop_set
    }

    /// Takes the stop back: each thread's SIGSTOP is let come and is suppressed.
    pub fn cancel_stop(&mut self) -> Result<(), TraceError> {
        if !std::mem::take(&mut self.stop_set) {
            return Ok(());
        }
        for held in &mut self.threads {
            held.put_back()?;
        }
        self.threads.iter_mut().try_for_each(suppress_stop)
    }

    /// Lets all threads go on as they were. (With [`Tracees::set_stop`], they stop at once.)
    pub fn detach(mut self) -> Result<(), TraceError> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), TraceError> {
        let mut first = Ok(());
        for mut held in self.threads.drain(..) {
            let gone =
                held.put_back().and_then(|()| ptrace::detach(held.tid, 0).kernel("detaching", held.tid));
            if first.is_ok() {
                first = gone;
            }
        }
        first
    }

    pub(crate) fn held(&self, tid: Tid) -> Result<&Held, TraceError> {
        self.threads.iter().find(|held| held.tid == tid).ok_or(TraceError::NotHeld(tid))
    }

    pub(crate) fn held_mut(&mut self, tid: Tid) -> Result<&mut Held, TraceError> {
        self.threads.iter_mut().find(|held| held.tid == tid).ok_or(TraceError::NotHeld(tid))
    }
}

/// What a stopped thread has that no remote call may meet, or that only a tracer sees. Kernels that cannot tell have nothing to
/// say.
fn unbearable(tid: Tid) -> Option<String> {
    // A remote call would be taken for one of the thread's own, and end in a SIGSYS.
    if ptrace::dispatches_syscalls(tid).unwrap_or(false) {
        return Some(format!(
            "thread {tid} takes its system calls itself (PR_SET_SYSCALL_USER_DISPATCH), which cannot be moved yet"
        ));
    }
    ptrace::has_io_ports(tid)
        .then(|| format!("thread {tid} may use I/O ports (ioperm), which cannot be moved"))
}

/// Resumes a thread that has SIGSTOP pending (and runs nothing before it), up to that signal's delivery.
fn suppress_stop(held: &mut Held) -> Result<(), TraceError> {
    let tid = held.tid;
    let pending = ptrace::peeksiginfo(tid, false).kernel("reading pending signals", tid)?;
    if !pending.iter().any(|info| info[..4] == libc::SIGSTOP.to_le_bytes()) {
        return Ok(()); // somebody sent SIGCONT meanwhile
    }
    ptrace::cont(tid, 0).kernel("resuming", tid)?;
    loop {
        match ptrace::wait(tid).kernel("waiting", tid)? {
            Stop::Signal(libc::SIGSTOP) => break,
            Stop::Dead(status) => return Err(TraceError::Dead { tid, status }),
            // Lower-numbered signals come first: deliver them as they would have been.
            Stop::Signal(signal) => ptrace::cont(tid, signal).kernel("resuming", tid)?,
            Stop::Syscall | Stop::Event(..) => ptrace::cont(tid, 0).kernel("resuming", tid)?,
        }
    }
    held.reread() // a handler may have been entered
}

impl Drop for Tracees {
    fn drop(&mut self) {
        if self.cancel_stop().is_err() {
            // A thread has died; the rest is let go below.
        }
        let _ = self.let_go();
    }
}
