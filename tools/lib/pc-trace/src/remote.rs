//! Remote system calls in a process that has to survive us.
//!
//! Nothing of the target's own is used but its vDSO, whose last page ends in unused bytes: the batch code goes there (a
//! private copy of that page). The first call, which maps a scratch area, works from the unused end of the main stack.
//! Every thread that runs the code has a frame of its context ready, out of which it heals itself if we are killed: at
//! worst the scratch area stays mapped. All is put back by [`Remote::finish`] or on drop.

use std::io;

use pc_sys::mem::{self, ProcMem};
use pc_sys::ptrace;

use crate::area::{CODE, CODE_LEN, DataArea, Entries, STACK_ROOM};
use crate::call::{Call, ENTRY, RESULT, errno_of};
use crate::error::{KernelContext, TraceError};
use crate::held::Held;
use crate::target::{Places, Status, bit};
use crate::tracees::Tracees;
use crate::{Tid, sigframe};

/// Entries of the scratch area: the most calls that run without a stop.
const ENTRIES: usize = 2048;
/// The most that a frame and what is around it take of the main stack.
const STACK_BYTES: u64 = 64 << 10;
/// Bytes below the stack pointer that belong to the function that runs (x86-64 psABI).
const RED_ZONE: u64 = 128;

/// A window in which a held process makes system calls for us.
#[derive(Debug)]
pub struct Remote<'a> {
    tracees: &'a mut Tracees,
    memory: ProcMem,
    code: u64,
    /// Where the leader's frame and single entry lie on the main stack, and what was there before.
    boot: Boot,
    /// The code lies in its place, and is to be taken away.
    code_is_there: bool,
    scratch: Option<(u64, u64)>,
    slots: Slots,
    entries: Entries,
    data: DataArea,
}

#[derive(Debug)]
struct Boot {
    start: u64,
    saved: Vec<u8>,
    frame: u64,
    entry: u64,
}

/// Places for the frames of the other threads, one each.
#[derive(Debug)]
struct Slots {
    start: u64,
    len: u64,
    taken: Vec<Tid>,
}

impl<'a> Remote<'a> {
    /// So many bytes at the low end of the main stack's mapping are in use during remote calls, and are put back after
    /// them: whoever reads them meanwhile does not read the target's own.
    pub const STACK_BYTES: u64 = STACK_BYTES;

    pub(crate) fn begin(tracees: &'a mut Tracees, data: usize) -> Result<Self, TraceError> {
        let pid = tracees.pid();
        let memory = ProcMem::open(pid).kernel("opening the memory", pid)?;
        let places = Places::read(pid)?;
        let code = places.vdso.1 - CODE_LEN as u64;
        let in_use = tracees.threads.iter().any(|held| (code..places.vdso.1).contains(&held.regs.rip));
        if !place_is_free(&memory, code, pid)? && in_use {
            let what = "it is still at what a killed tool had it do: try again".to_owned();
            return Err(TraceError::Unsupported { pid, what });
        }
        let status = tracees.status.clone();
        tracees.threads.iter_mut().try_for_each(|held| choose_end_signal(held, &status))?;
        let xstate = tracees.xstate(pid)?;
        let frame_len = sigframe::len(&xstate) as u64;
        let boot = Boot::plan(&memory, &places, tracees.held(pid)?, frame_len)?;
        let others = tracees.threads.len() as u64 - 1;
        let slot_len = (STACK_ROOM + xstate.len() as u64 + 1024).next_multiple_of(64);
        let len = (others * slot_len + Entries::bytes(ENTRIES) + data as u64).next_multiple_of(4096);
        let mut remote = Self {
            tracees,
            memory,
            code,
            boot,
            code_is_there: false,
            scratch: None,
            slots: Slots { start: 0, len: slot_len, taken: Vec::new() },
            entries: Entries { addr: 0, capacity: 0 },
            data: DataArea::new(0, 0),
        };
        remote.bootstrap(&xstate, len)?;
        let base = remote.scratch.map_or(0, |(base, _)| base);
        remote.entries = Entries { addr: base, capacity: ENTRIES };
        remote.data = DataArea::new(base + Entries::bytes(ENTRIES), data as u64);
        remote.slots.start = base + len - others * slot_len;
        remote.slots.start &= !63;
        Ok(remote)
    }

    /// Puts code and the leader's frame in place and maps the scratch area.
    fn bootstrap(&mut self, xstate: &[u8], len: u64) -> Result<(), TraceError> {
        let pid = self.tracees.pid();
        let frame = self.tracees.held(pid)?.frame(self.boot.frame, xstate);
        self.memory.write(self.boot.frame, &frame).kernel("writing to the stack", pid)?;
        self.code_is_there = true;
        self.memory.write(self.code, &CODE).kernel("writing behind the vDSO's code", pid)?;
        self.scratch = Some((self.map_scratch(len)?, len));
        Ok(())
    }

    /// Maps the scratch area: where RLIMIT_DATA is used up, as shared memory, which does not count there.
    fn map_scratch(&mut self, len: u64) -> Result<u64, TraceError> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let mmap = |kind: i32| {
            let flags = (kind | libc::MAP_ANONYMOUS) as u64;
            Call::new(libc::SYS_mmap, [0, len, prot, flags, u64::MAX, 0])
        };
        let short = |error: &TraceError| {
            matches!(error, TraceError::Remote { errno: libc::ENOMEM | libc::EAGAIN, .. })
        };
        match self.boot_call(mmap(libc::MAP_PRIVATE)) {
            Err(error) if short(&error) => self.boot_call(mmap(libc::MAP_SHARED)).map_err(|error| {
                let what = format!(
                    "there is no room for {len} bytes more in its address space, which holding it takes: raise its limits \
                     first (RLIMIT_AS, RLIMIT_MEMLOCK, vm.max_map_count)"
                );
                if short(&error) { TraceError::Unsupported { pid: self.tracees.pid(), what } } else { error }
            }),
            mapped => mapped,
        }
    }

    /// One call of the leader, out of the main stack.
    fn boot_call(&mut self, call: Call) -> Result<u64, TraceError> {
        let pid = self.tracees.pid();
        let (entry, frame, code) = (self.boot.entry, self.boot.frame, self.code);
        self.memory.write(entry, &call.to_entry()).kernel("writing to the stack", pid)?;
        let held = self.tracees.held_mut(pid)?;
        held.launch(code, entry, 1, frame)?;
        held.wait_end(code)?;
        let mut result = [0; 8];
        self.memory.read(entry + RESULT as u64, &mut result).kernel("reading the stack", pid)?;
        decode(call, i64::from_le_bytes(result))
    }

    /// Makes one call on a thread.
    pub fn call(&mut self, tid: Tid, call: Call) -> Result<u64, TraceError> {
        let results = self.batch(tid, &[call])?;
        decode(call, results.first().copied().unwrap_or(-i64::from(libc::EIO)))
    }

    /// Makes calls on a thread, one after the other whatever they answer; gives the raw results (negative `errno`).
    pub fn batch(&mut self, tid: Tid, calls: &[Call]) -> Result<Vec<i64>, TraceError> {
        let mut results = Vec::with_capacity(calls.len());
        for chunk in calls.chunks(ENTRIES) {
            results.extend(self.run(&[(tid, chunk)])?.pop().unwrap_or_default());
        }
        Ok(results)
    }

    /// Makes the leader make a call that gives a descriptor, and close it again when `take` has looked at it. The target closes it
    /// by itself if we are killed meanwhile, so that none is left there: all three calls are one batch, in which the second
    /// copies the result of the first to where the third takes its argument from.
    pub fn with_descriptor<T>(&mut self, call: Call, take: impl FnOnce(i32) -> T) -> Result<T, TraceError> {
        let (pid, base) = (self.tracees.pid(), self.entries.addr);
        let close = base + 2 * ENTRY as u64;
        let from = self.put(&[(base + RESULT as u64).to_le_bytes(), 8u64.to_le_bytes()].concat())?;
        let to = self.put(&[(close + 8).to_le_bytes(), 8u64.to_le_bytes()].concat())?;
        let own = self.tracees.held(pid)?.ns.0 as u64;
        let copy = Call::new(libc::SYS_process_vm_writev, [own, from, 1, to, 1, 0]);
        let none = Call::new(libc::SYS_close, [u64::from(u32::MAX)]);
        let entries = [call.to_entry(), copy.to_entry(), none.to_entry()].concat();
        self.write(base, &entries)?;
        let (frame, code) = (self.frame_of(pid)?, self.code);
        let held = self.tracees.held_mut(pid)?;
        let end_signal = held.end_signal.take(); // each call is a stop
        held.launch(code, base, 3, frame)?;
        held.wait_call(libc::SYS_close, close)?;
        let mut result = [0; 8];
        mem::read_remote(pid, base + RESULT as u64, &mut result).kernel("reading results", pid)?;
        let got = decode(call, i64::from_le_bytes(result));
        let taken = got.map(|fd| (fd, take(fd as i32)));
        let held = self.tracees.held_mut(pid)?;
        if let Ok((fd, _)) = &taken {
            held.set_argument(*fd)?; // where a filter forbids the second call
        }
        held.go_on(code)?;
        held.end_signal = end_signal;
        self.reset();
        taken.map(|(_, taken)| taken)
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

    /// Runs what fits the entries at once: all threads are set going, then each is waited for.
    fn run(&mut self, work: &[(Tid, &[Call])]) -> Result<Vec<Vec<i64>>, TraceError> {
        let pid = self.tracees.pid();
        let mut bytes: Vec<u8> =
            work.iter().flat_map(|(_, calls)| calls.iter()).flat_map(|c| c.to_entry()).collect();
        mem::write_remote(pid, self.entries.addr, &bytes).kernel("writing calls", pid)?;
        let mut entry = self.entries.addr;
        let mut launched = Vec::with_capacity(work.len());
        let mut failed = Ok(());
        for (tid, calls) in work {
            failed = self.launch(*tid, entry, calls.len());
            if failed.is_err() {
                break;
            }
            launched.push(*tid);
            entry += (calls.len() * ENTRY) as u64;
        }
        for tid in launched {
            let ended = self.tracees.held_mut(tid)?.wait_end(self.code);
            failed = failed.and(ended);
        }
        failed?;
        mem::read_remote(pid, self.entries.addr, &mut bytes).kernel("reading results", pid)?;
        let mut words = bytes
            .chunks_exact(ENTRY)
            .map(|e| i64::from_le_bytes(e[RESULT..RESULT + 8].try_into().unwrap_or_default()));
        Ok(work.iter().map(|(_, calls)| words.by_ref().take(calls.len()).collect()).collect())
    }

    fn launch(&mut self, tid: Tid, entry: u64, count: usize) -> Result<(), TraceError> {
        let frame = self.frame_of(tid)?;
        let code = self.code;
        self.tracees.held_mut(tid)?.launch(code, entry, count, frame)
    }

    /// Where the thread's frame lies; it is put there at the thread's first use.
    fn frame_of(&mut self, tid: Tid) -> Result<u64, TraceError> {
        if tid == self.tracees.pid() {
            return Ok(self.boot.frame);
        }
        if let Some(slot) = self.slots.taken.iter().position(|&t| t == tid) {
            return Ok(self.slots.frame(slot));
        }
        let frame = self.slots.frame(self.slots.taken.len());
        let xstate = self.tracees.xstate(tid)?;
        let bytes = self.tracees.held(tid)?.frame(frame, &xstate);
        mem::write_remote(self.tracees.pid(), frame, &bytes).kernel("writing a frame", tid)?;
        self.slots.taken.push(tid);
        Ok(frame)
    }

    /// Copies bytes into the scratch area and gives their address there.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64, TraceError> {
        let addr = self.space(bytes.len())?;
        self.write(addr, bytes)?;
        Ok(addr)
    }

    /// Takes `len` bytes of the scratch area, for results.
    pub fn space(&mut self, len: usize) -> Result<u64, TraceError> {
        let pid = self.tracees.pid();
        let full = || io::Error::from_raw_os_error(libc::ENOMEM);
        self.data.take(len).ok_or_else(full).kernel("taking scratch space", pid)
    }

    /// Frees all of the scratch area's data.
    pub fn reset(&mut self) {
        self.data.reset();
    }

    /// Reads the target's memory.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), TraceError> {
        let pid = self.tracees.pid();
        mem::read_remote(pid, addr, buf).kernel("reading the memory", pid)
    }

    /// Writes to the target's memory.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), TraceError> {
        let pid = self.tracees.pid();
        mem::write_remote(pid, addr, bytes).kernel("writing to the memory", pid)
    }

    /// The held process, to ask for what needs no remote call.
    pub fn tracees(&self) -> &Tracees {
        self.tracees
    }

    /// The scratch area `(start, end)`: a mapping that is not the target's own.
    pub fn scratch(&self) -> Option<(u64, u64)> {
        self.scratch.map(|(base, len)| (base, base + len))
    }

    /// Puts everything back. (Dropping does the same, without telling how it went.)
    pub fn finish(mut self) -> Result<(), TraceError> {
        self.undo()
    }

    /// The other threads first, as their frames lie in the scratch area; then the area; then the leader and the code.
    fn undo(&mut self) -> Result<(), TraceError> {
        let pid = self.tracees.pid();
        let mut first = Ok(());
        let mut note = |result: Result<(), TraceError>| {
            if first.is_ok() {
                first = result;
            }
        };
        for held in self.tracees.threads.iter_mut().filter(|held| held.tid != pid && held.dirty) {
            note(held.put_back());
        }
        if let Some((base, len)) = self.scratch.take() {
            note(self.boot_call(Call::new(libc::SYS_munmap, [base, len])).map(drop));
        }
        note(self.tracees.held_mut(pid).and_then(Held::put_back));
        note(self.memory.write(self.boot.start, &self.boot.saved).kernel("writing to the stack", pid));
        if std::mem::take(&mut self.code_is_there) {
            note(self.memory.write(self.code, &[0; CODE_LEN]).kernel("writing behind the vDSO's code", pid));
        }
        first
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        // After `finish` there is nothing left to undo but what is harmless to write twice.
        let _ = self.undo();
    }
}

impl Slots {
    fn frame(&self, slot: usize) -> u64 {
        self.start + slot as u64 * self.len + STACK_ROOM
    }
}

impl Boot {
    /// Chooses the place: the low end of the main stack, which is unused if the main thread's stack pointer lies well
    /// above it, or if it was never touched.
    fn plan(memory: &ProcMem, places: &Places, leader: &Held, frame_len: u64) -> Result<Self, TraceError> {
        let (start, end) = places.stack;
        let frame = (start + STACK_ROOM).next_multiple_of(64);
        let entry = (frame + frame_len).next_multiple_of(16);
        let top = entry + ENTRY as u64;
        if top - start > STACK_BYTES {
            let what = "an extended state too large to work on its main stack".to_owned();
            return Err(TraceError::Unsupported { pid: leader.tid, what });
        }
        let mut saved = vec![0; (top.min(end) - start) as usize];
        memory.read(start, &mut saved).kernel("reading the stack", leader.tid)?;
        let sp = leader.regs.rsp;
        let below = (start..end).contains(&sp) && top + RED_ZONE <= sp;
        let untouched = !(start..end).contains(&sp) && top <= end && saved.iter().all(|b| *b == 0);
        if !below && !untouched {
            let what = "no unused room on its main stack to work from".to_owned();
            return Err(TraceError::Unsupported { pid: leader.tid, what });
        }
        Ok(Self { start, saved, frame, entry })
    }
}

/// Takes from a copy of a vDSO what a tool that was killed has left in the original.
pub fn without_our_code(vdso: &mut [u8]) {
    if let Some(code) = vdso.last_chunk_mut::<CODE_LEN>().filter(|there| **there == CODE) {
        code.fill(0);
    }
}

/// Whether the place for the code is all zero; it may also hold our code from a tool that was killed.
fn place_is_free(memory: &ProcMem, code: u64, pid: i32) -> Result<bool, TraceError> {
    let mut there = [0; CODE_LEN];
    memory.read(code, &mut there).kernel("reading the vDSO", pid)?;
    if there == [0; CODE_LEN] {
        return Ok(true);
    }
    if there == CODE {
        return Ok(false);
    }
    Err(TraceError::Unsupported { pid, what: "its vDSO has no unused bytes at its end".to_owned() })
}

/// Chooses the signal by which a thread's batches end: one that the process ignores, so that it does no harm if we are
/// gone; not one that is pending, or blocked by the thread (somebody may wait for it). Without one, each call is a stop.
fn choose_end_signal(held: &mut Held, status: &Status) -> Result<(), TraceError> {
    let private = ptrace::peeksiginfo(held.tid, false).kernel("reading pending signals", held.tid)?;
    let pending = |signal: i32| {
        status.pending & bit(signal) != 0 || private.iter().any(|info| info[..4] == signal.to_le_bytes())
    };
    let ignored = |signal: i32| match signal {
        libc::SIGURG | libc::SIGWINCH | libc::SIGCHLD => status.caught & bit(signal) == 0,
        _ => status.ignored & bit(signal) != 0,
    };
    let candidates = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD].into_iter().chain(1..libc::SIGCONT);
    held.end_signal = candidates
        .filter(|s| *s != libc::SIGKILL && *s != libc::SIGSEGV && *s != libc::SIGTRAP)
        .find(|&s| ignored(s) && !pending(s) && held.mask & bit(s) == 0);
    Ok(())
}

fn decode(call: Call, result: i64) -> Result<u64, TraceError> {
    errno_of(result).map_or(Ok(result as u64), |errno| Err(TraceError::Remote { call, errno }))
}
