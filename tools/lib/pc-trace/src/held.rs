//! One stopped thread, and how it is made to run the batch code.

use pc_sys::ptrace::{self, Regs, Stop};

use crate::area::{CODE_END, SIGNALLED};
use crate::error::{KernelContext, TraceError};
use crate::mend;
use crate::target::{Status, bit};
use crate::{Tid, sigframe};

/// `PTRACE_EVENT_CLONE` and `PTRACE_EVENT_STOP`.
const EVENT_CLONE: i32 = 3;
pub(crate) const EVENT_STOP: i32 = 128;
/// The trap flag, which must not be set while our code runs.
const EFLAGS_TF: u64 = 0x100;

/// A thread in a ptrace stop, with what is to be put back when it goes on.
#[derive(Debug)]
pub(crate) struct Held {
    pub tid: Tid,
    /// `(tgid, tid)` as the thread itself knows them.
    pub ns: (i32, i32),
    /// Registers to be put back.
    pub regs: Regs,
    /// What they were before a call interrupted by us alone was mended.
    pub unmended: Option<Regs>,
    /// Signal mask to be put back.
    pub mask: u64,
    /// The signal by which a batch ends; `None` where the process handles all: then each call is a stop.
    pub end_signal: Option<i32>,
    /// Whether our code has run, so that registers and mask differ from what is to be put back.
    pub dirty: bool,
    /// In a stop at the entry of rt_sigreturn(2), outside the kernel's signal handling.
    at_entry: bool,
    /// Signals that arrived while our code ran and were held back.
    deferred: Vec<i32>,
    /// Threads born of this one while our code ran.
    pub born: Vec<Tid>,
}

impl Held {
    /// A thread that has just stopped.
    pub fn new(tid: Tid, ns: (i32, i32)) -> Result<Self, TraceError> {
        Ok(Self {
            tid,
            ns,
            regs: ptrace::getregs(tid).kernel("reading the registers", tid)?,
            unmended: None,
            mask: ptrace::getsigmask(tid).kernel("reading the signal mask", tid)?,
            end_signal: None,
            dirty: false,
            at_entry: false,
            deferred: Vec::new(),
            born: Vec::new(),
        })
    }

    /// Takes the registers and mask of now for those to be put back.
    pub fn reread(&mut self) -> Result<(), TraceError> {
        self.regs = ptrace::getregs(self.tid).kernel("reading the registers", self.tid)?;
        self.mask = ptrace::getsigmask(self.tid).kernel("reading the signal mask", self.tid)?;
        self.unmended = None;
        Ok(())
    }

    /// The frame from which the thread takes up its context by itself, to be placed at `addr`.
    pub fn frame(&self, addr: u64, xstate: &[u8]) -> Vec<u8> {
        sigframe::build(addr, &mend::without_restart(&self.regs), self.mask, xstate)
    }

    /// Sets the thread running through `count` entries at `entries`, with its frame at `frame`.
    ///
    /// Registers first, then the mask: a tracer that dies between the two leaves a thread that goes on with its own
    /// mask; one that dies later, a thread whose mask comes back with the frame.
    pub fn launch(&mut self, code: u64, entries: u64, count: usize, frame: u64) -> Result<(), TraceError> {
        let regs = Regs {
            rip: code,
            rsp: frame,
            rbx: entries,
            r12: count as u64,
            r13: self.ns.0 as u64,
            r14: self.ns.1 as u64,
            r15: self.end_signal.unwrap_or(0) as u64,
            rax: 0,
            orig_rax: u64::MAX,
            eflags: self.regs.eflags & !EFLAGS_TF,
            ..self.regs
        };
        ptrace::setregs(self.tid, &regs).kernel("setting the registers", self.tid)?;
        self.dirty = true;
        let mask = !self.end_signal.map_or(0, bit);
        ptrace::setsigmask(self.tid, mask).kernel("setting the signal mask", self.tid)?;
        self.resume()
    }

    fn resume(&mut self) -> Result<(), TraceError> {
        self.at_entry = false;
        let resumed = match self.end_signal {
            Some(_) => ptrace::cont(self.tid, 0),
            None => ptrace::cont_syscall(self.tid, 0),
        };
        resumed.kernel("resuming", self.tid)
    }

    /// Waits for the end of what [`Held::launch`] began.
    pub fn wait_end(&mut self, code: u64) -> Result<(), TraceError> {
        loop {
            match ptrace::wait(self.tid).kernel("waiting", self.tid)? {
                Stop::Dead(status) => return Err(TraceError::Dead { tid: self.tid, status }),
                Stop::Signal(signal) if Some(signal) == self.end_signal => {
                    let regs = ptrace::getregs(self.tid).kernel("reading the registers", self.tid)?;
                    if regs.rip == code + SIGNALLED {
                        return Ok(());
                    }
                    // Somebody else's: the process ignores this signal anyway.
                }
                Stop::Signal(signal) => self.deferred.push(signal),
                Stop::Syscall if self.stopped_at_sigreturn(code)? => return Ok(()),
                Stop::Event(EVENT_CLONE, _) => {
                    let tid = ptrace::geteventmsg(self.tid).kernel("reading a new thread's id", self.tid)?;
                    self.born.push(tid as Tid);
                }
                Stop::Syscall | Stop::Event(..) => {}
            }
            self.resume()?;
        }
    }

    /// Waits, where each call is a stop, for the entry of call `nr` made by the entry at `entry`.
    pub fn wait_call(&mut self, nr: i64, entry: u64) -> Result<(), TraceError> {
        loop {
            match ptrace::wait(self.tid).kernel("waiting", self.tid)? {
                Stop::Dead(status) => return Err(TraceError::Dead { tid: self.tid, status }),
                Stop::Syscall => {
                    let regs = ptrace::getregs(self.tid).kernel("reading the registers", self.tid)?;
                    let enters = regs.rax as i64 == -i64::from(libc::ENOSYS);
                    if regs.rbx == entry && regs.orig_rax as i64 == nr && enters {
                        return Ok(());
                    }
                }
                Stop::Signal(signal) => self.deferred.push(signal),
                Stop::Event(..) => {}
            }
            self.resume()?;
        }
    }

    /// The first argument of the call at whose entry the thread is.
    pub fn set_argument(&mut self, value: u64) -> Result<(), TraceError> {
        let mut regs = ptrace::getregs(self.tid).kernel("reading the registers", self.tid)?;
        if regs.rdi == value {
            return Ok(());
        }
        regs.rdi = value;
        ptrace::setregs(self.tid, &regs).kernel("setting the registers", self.tid)
    }

    /// From a stop on the way, to the end of what [`Held::launch`] began.
    pub fn go_on(&mut self, code: u64) -> Result<(), TraceError> {
        self.resume()?;
        self.wait_end(code)
    }

    /// At the entry of the final rt_sigreturn: cancels the call and has it made again on resumption.
    fn stopped_at_sigreturn(&mut self, code: u64) -> Result<bool, TraceError> {
        let mut regs = ptrace::getregs(self.tid).kernel("reading the registers", self.tid)?;
        if regs.rip != code + CODE_END || regs.orig_rax as i64 != libc::SYS_rt_sigreturn {
            return Ok(false);
        }
        regs.orig_rax = u64::MAX;
        regs.rip = code + SIGNALLED;
        ptrace::setregs(self.tid, &regs).kernel("setting the registers", self.tid)?;
        self.at_entry = true;
        Ok(true)
    }

    /// Takes the thread to a stop inside the kernel's signal handling, where interrupted calls are redone on detach.
    pub fn settle(&mut self) -> Result<(), TraceError> {
        if !self.at_entry {
            return Ok(());
        }
        loop {
            // Anew each time: any stop takes the interruption with it.
            ptrace::interrupt(self.tid).kernel("interrupting", self.tid)?;
            ptrace::cont(self.tid, 0).kernel("resuming", self.tid)?;
            match ptrace::wait(self.tid).kernel("waiting", self.tid)? {
                Stop::Event(EVENT_STOP, _) => break,
                Stop::Dead(status) => return Err(TraceError::Dead { tid: self.tid, status }),
                Stop::Signal(signal) => self.deferred.push(signal),
                _ => {}
            }
        }
        self.at_entry = false;
        Ok(())
    }

    /// Puts mask and registers back, the mask first: a tracer that dies between the two leaves a thread that takes its
    /// context from the frame. Signals held back are sent again.
    pub fn put_back(&mut self) -> Result<(), TraceError> {
        self.settle()?;
        ptrace::setsigmask(self.tid, self.mask).kernel("setting the signal mask", self.tid)?;
        let regs = match self.unmended {
            // A signal has come: EINTR is now what the program must see.
            Some(unmended) if Status::read(self.tid).is_ok_and(|s| s.deliverable()) => unmended,
            _ => self.regs,
        };
        ptrace::setregs(self.tid, &regs).kernel("setting the registers", self.tid)?;
        self.dirty = false;
        for signal in self.deferred.drain(..) {
            // May fail only if the thread has just been killed, which detaching will find.
            let _ = ptrace::tgkill(self.ns.0, self.tid, signal);
        }
        Ok(())
    }
}
