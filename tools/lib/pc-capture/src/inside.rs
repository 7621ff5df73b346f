//! What only the process itself can tell: one batch of system calls on each of its threads, all at once.

use pc_image::{Vma, vma_flag};
use pc_trace::{Call, Remote, Tid, Tracees};

use crate::controls;
use crate::error::{CaptureError, Result};
use crate::keyring;
use crate::mm_settings;
use crate::procfs::{self, TimerEntry};
use crate::signal;

const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_DUMPABLE: u64 = 3;
const PR_GET_SECUREBITS: u64 = 27;
const PR_GET_TIMERSLACK: u64 = 30;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;

/// Calls of a thread before those of `mm_settings`, of `controls`, and about its keyrings.
const THREAD_CALLS: usize = 5;
const BEFORE_CONTROLS: usize = THREAD_CALLS + mm_settings::THREAD_CALLS;
const BEFORE_KEYRINGS: usize = BEFORE_CONTROLS + controls::THREAD_CALLS;
/// Bytes of results of a thread: `stack_t`, the tid address, the parent-death signal, and what `controls` and `mm_settings` ask for.
const THREAD_ROOM: usize = CONTROLS_AT + controls::THREAD_ROOM + mm_settings::THREAD_ROOM;
const CONTROLS_AT: usize = 24 + 8 + 8;
const MM_AT: usize = CONTROLS_AT + controls::THREAD_ROOM;
/// `struct itimerval`, `struct itimerspec`.
const TIMES: usize = 32;
/// Two `struct timespec`, and what `controls` asks for.
const MORE: usize = 32 + controls::PROCESS_ROOM;

/// What a thread has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThreadTold {
    pub tid: Tid,
    /// `stack_t`: address, flags, size.
    pub altstack: (u64, u32, u64),
    pub clear_child_tid: u64,
    pub pdeath_signal: i32,
    pub securebits: u32,
    pub timer_slack: u64,
    pub mm: mm_settings::ThreadTold,
    pub controls: controls::ThreadTold,
}

/// What the process has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub threads: Vec<ThreadTold>,
    /// 64 times `struct sigaction`.
    pub actions: Vec<u8>,
    /// Value and interval of the three interval timers, in microseconds.
    pub itimers: [(u64, u64); 3],
    /// Value and interval of the POSIX timers asked for, in nanoseconds, and their overruns.
    pub timers: Vec<(u64, u64, i32)>,
    pub brk: u64,
    pub dumpable: u8,
    pub thp_disable: u32,
    pub child_subreaper: bool,
    /// `mlockall(MCL_FUTURE)`: flags that new mappings get.
    pub lock_future: u32,
    pub mm: mm_settings::Told,
    /// The wall clock before and after the timers were asked for. Nanoseconds.
    pub wall: (u64, u64),
    pub controls: controls::Told,
    /// A notice of keys that the copy will lack.
    pub keys_lost: Option<String>,
}

/// Where the answers will lie.
struct Room {
    actions: u64,
    itimers: u64,
    timers: u64,
    subreaper: u64,
    /// Two readings of the wall clock, then what `controls` asks for.
    more: u64,
    threads: u64,
}

/// Asks all threads. `witness` is a process that they should be able to look into, 0 for none; `vmas` are the mappings, `sealed` those of them that are.
pub(crate) fn ask(
    tracees: &mut Tracees,
    timers: &[TimerEntry],
    witness: i32,
    vmas: &[Vma],
    sealed: &[(u64, u64)],
) -> Result<Told> {
    let tids = tracees.tids();
    let locked = locked(tracees.pid());
    let process_room = signal::SIGNALS * signal::ACTION_LEN + (3 + timers.len()) * TIMES + 16 + MORE;
    let data = (process_room + tids.len() * THREAD_ROOM).max(mm_settings::room_for(vmas.len()));
    let mut remote = tracees.remote(data + 4096)?;
    let room = Room {
        actions: remote.space(signal::SIGNALS * signal::ACTION_LEN)?,
        itimers: remote.space(3 * TIMES)?,
        timers: remote.space(timers.len() * TIMES)?,
        subreaper: remote.space(8)?,
        more: remote.space(MORE)?,
        threads: remote.space(tids.len() * THREAD_ROOM)?,
    };
    let mut work: Vec<(Tid, Vec<Call>)> =
        tids.iter().enumerate().map(|(i, tid)| (*tid, thread_calls(room.thread(i), witness))).collect();
    let per_thread = work.first().map_or(0, |(_, calls)| calls.len());
    if let Some((_, calls)) = work.first_mut() {
        calls.extend(process_calls(&room, timers));
    }
    let results = remote.batch_all(&work)?;
    let mut told = read_process(&remote, &room, timers, results.first().map_or(&[], |r| &r[per_thread..]))?;
    told.lock_future = lock_future(&remote, locked);
    let mut bad = Vec::new();
    for (i, (tid, answers)) in tids.iter().zip(&results).enumerate() {
        told.threads.push(read_thread(&remote, *tid, room.thread(i), answers)?);
        bad.extend(keyring::refused(remote.tracees().pid(), *tid, &answers[BEFORE_KEYRINGS..]));
    }
    told.keys_lost = keyring::session(&mut remote)?;
    told.mm = mm_settings::ask(&mut remote, vmas, sealed)?;
    remote.finish()?;
    if bad.is_empty() { Ok(told) } else { Err(CaptureError::Unsupported(bad)) }
}

/// Bytes that are locked in memory.
fn locked(pid: i32) -> u64 {
    let status = procfs::read(pid, "status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}

/// New mappings are locked if the area that our calls use, just mapped, is. Which way only smaps shows.
fn lock_future(remote: &Remote<'_>, before: u64) -> u32 {
    let pid = remote.tracees().pid();
    if locked(pid) <= before {
        return 0;
    }
    let text = procfs::read_bytes(pid, "smaps").unwrap_or_default();
    let (start, _) = remote.scratch().unwrap_or_default();
    let all = procfs::parse_smaps(&text).unwrap_or_default();
    let on_fault =
        all.iter().any(|(area, smaps)| (area.start..area.end).contains(&start) && smaps.has(b"lf"));
    vma_flag::LOCKED | if on_fault { vma_flag::LOCKED_ONFAULT } else { 0 }
}

impl Room {
    fn thread(&self, index: usize) -> u64 {
        self.threads + (index * THREAD_ROOM) as u64
    }
}

fn prctl(option: u64, arg: u64) -> Call {
    Call::new(libc::SYS_prctl, [option, arg, 0, 0, 0])
}

fn thread_calls(room: u64, witness: i32) -> Vec<Call> {
    let own: [Call; THREAD_CALLS] = [
        prctl(PR_GET_SECUREBITS, 0),
        prctl(PR_GET_TIMERSLACK, 0),
        Call::new(libc::SYS_sigaltstack, [0, room]),
        prctl(PR_GET_TID_ADDRESS, room + 24),
        prctl(PR_GET_PDEATHSIG, room + 32),
    ];
    let memory = mm_settings::thread_calls(room + MM_AT as u64);
    let controls = controls::thread_calls(room + CONTROLS_AT as u64, witness);
    own.into_iter().chain(memory).chain(controls).chain(keyring::calls()).collect()
}

fn process_calls(room: &Room, timers: &[TimerEntry]) -> Vec<Call> {
    let mut calls = vec![
        Call::new(libc::SYS_brk, [0]),
        prctl(PR_GET_DUMPABLE, 0),
        prctl(PR_GET_THP_DISABLE, 0),
        prctl(PR_GET_CHILD_SUBREAPER, room.subreaper),
    ];
    for which in 0..3 {
        calls.push(Call::new(libc::SYS_getitimer, [which, room.itimers + which * TIMES as u64]));
    }
    calls.extend(signal::action_calls(room.actions));
    let wall = |at: u64| Call::new(libc::SYS_clock_gettime, [libc::CLOCK_REALTIME as u64, at]);
    calls.push(wall(room.more));
    for (i, timer) in timers.iter().enumerate() {
        let at = room.timers + (i * TIMES) as u64;
        calls.push(Call::new(libc::SYS_timer_gettime, [timer.id as u64, at]));
        calls.push(Call::new(libc::SYS_timer_getoverrun, [timer.id as u64]));
    }
    calls.push(wall(room.more + 16));
    calls.extend(controls::process_calls(room.more + 32));
    calls
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).collect()
}

fn fetch(remote: &Remote<'_>, addr: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    if len != 0 {
        remote.read(addr, &mut bytes)?;
    }
    Ok(bytes)
}

fn read_thread(remote: &Remote<'_>, tid: Tid, room: u64, answers: &[i64]) -> Result<ThreadTold> {
    let bytes = fetch(remote, room, THREAD_ROOM)?;
    let words = words(&bytes[..MM_AT]);
    Ok(ThreadTold {
        tid,
        altstack: (words[0], words[1] as u32, words[2]),
        clear_child_tid: words[3],
        pdeath_signal: words[4] as i32,
        securebits: answers.first().map_or(0, |r| *r as u32),
        timer_slack: answers.get(1).map_or(0, |r| *r as u64),
        mm: mm_settings::read_thread(&bytes[MM_AT..], answers.get(THREAD_CALLS..).unwrap_or_default()),
        controls: controls::read_thread(
            &words[CONTROLS_AT / 8..],
            answers.get(BEFORE_CONTROLS..).unwrap_or_default(),
        ),
    })
}

fn read_process(remote: &Remote<'_>, room: &Room, timers: &[TimerEntry], answers: &[i64]) -> Result<Told> {
    // The last of them is the first reading of the wall clock.
    const FIXED: usize = 4 + 3 + signal::SIGNALS + 1;
    let itimers = words(&fetch(remote, room.itimers, 3 * TIMES)?);
    let times = words(&fetch(remote, room.timers, timers.len() * TIMES)?);
    let subreaper = words(&fetch(remote, room.subreaper, 8)?);
    let more = words(&fetch(remote, room.more, MORE)?);
    let answer = |i: usize| answers.get(i).copied().unwrap_or(0);
    let joined = |pair: &[u64], unit: u64| pair[0] * unit + pair[1];
    let mut told = Told {
        actions: fetch(remote, room.actions, signal::SIGNALS * signal::ACTION_LEN)?,
        brk: answer(0) as u64,
        dumpable: answer(1).max(0) as u8,
        thp_disable: answer(2).max(0) as u32,
        child_subreaper: subreaper[0] as u32 != 0,
        wall: (joined(&more[..2], 1_000_000_000), joined(&more[2..4], 1_000_000_000)),
        controls: controls::read_process(
            &more[4..],
            answers.get(FIXED + 2 * timers.len() + 1..).unwrap_or_default(),
        ),
        ..Told::default()
    };
    // Both structures hold the interval first.
    for (timer, times) in told.itimers.iter_mut().zip(itimers.chunks_exact(4)) {
        *timer = (joined(&times[2..], 1_000_000), joined(&times[..2], 1_000_000));
    }
    for (i, times) in times.chunks_exact(4).enumerate() {
        let overrun = answer(FIXED + 2 * i + 1).max(0) as i32;
        told.timers.push((joined(&times[2..], 1_000_000_000), joined(&times[..2], 1_000_000_000), overrun));
    }
    Ok(told)
}
