//! What belongs to the process as a whole.

use std::fs;
use std::os::fd::AsFd;

use pc_image::{FileId, MmState, PosixTimer, Task, TaskState, vma_flag};
use pc_trace::{Call, Husk, TraceError};

use crate::error::{Context, RebuildError, raw_ok};
use crate::fdtable::{send, words};
use crate::file;
use crate::image::Image;
use crate::newborn::Newborn;
use crate::settings::{Notices, Settings};

/// Session and process group: its own if it led them, else ours.
pub fn session(
    newborn: &mut Newborn,
    task: &Task,
    settings: &Settings,
    notices: Notices<'_>,
) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let husk = &mut newborn.husk;
    let own_session = own_session(task, settings);
    if task.sid != task.pid {
        let whose = if settings.detach { "a new one" } else { "ours" };
        notices(&format!("its session was led from outside: it becomes {whose}"));
    }
    if own_session {
        if settings.new_pid_ns {
            husk.call(pid, Call::new(libc::SYS_setsid, [])).what("making a session")?;
        }
    } else if task.pgid == task.pid {
        husk.call(pid, Call::new(libc::SYS_setpgid, [0, 0])).what("making a process group")?;
    }
    Ok(())
}

/// Whether the process leads a session.
pub fn own_session(task: &Task, settings: &Settings) -> bool {
    task.sid == task.pid || settings.detach && !settings.new_pid_ns
}

/// Enters a time namespace, while it has one thread.
pub fn enter_time(newborn: &mut Newborn, namespace: &impl AsFd) -> Result<(), RebuildError> {
    let fd = send(newborn, std::iter::once(namespace.as_fd()))?[0] as u64;
    let calls = [
        Call::new(libc::SYS_setns, [fd, crate::clocks::CLONE_NEWTIME as u64]),
        Call::new(libc::SYS_close, [fd]),
    ];
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("entering the time namespace")?;
    Ok(())
}

/// Working directory, umask and the like.
pub fn surroundings(newborn: &mut Newborn, image: &Image, state: &TaskState) -> Result<(), RebuildError> {
    let cwd = image.file(state.cwd)?;
    file::judge(&image.place, cwd)?;
    let cwd = file::open(&image.place, cwd, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let fd = send(newborn, std::iter::once(cwd.as_fd()))?[0] as u64;
    if let Some(root) = state.root {
        change_root(newborn, image, root)?;
    }
    login(newborn, image)?;
    let prctl = |option: i32, arg: u64| Call::new(libc::SYS_prctl, [option as u64, arg, 0, 0, 0]);
    let calls = [
        Call::new(libc::SYS_fchdir, [fd]),
        Call::new(libc::SYS_close, [fd]),
        Call::new(libc::SYS_umask, [u64::from(state.umask)]),
        prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(state.child_subreaper)),
    ];
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("setting up the process")?;
    Ok(())
}

/// Sets /proc/PID/loginuid, which only the process itself may do, and that once unless it has CAP_AUDIT_CONTROL. What could
/// not be set is said by [`by_proc`].
fn login(newborn: &mut Newborn, image: &Image) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let wanted = image.values.as_ref().map_or(u32::MAX, |values| values.loginuid);
    if login_of(pid).is_none_or(|now| now == wanted) {
        return Ok(());
    }
    let file = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/loginuid"));
    let file = file.what("opening loginuid")?;
    let fd = send(newborn, std::iter::once(file.as_fd()))?[0] as u64;
    let text = wanted.to_string();
    let at = newborn.husk.put(text.as_bytes())?;
    let calls = [Call::new(libc::SYS_write, [fd, at, text.len() as u64]), Call::new(libc::SYS_close, [fd])];
    newborn.husk.batch(pid, &calls).what("setting loginuid")?;
    newborn.husk.reset();
    Ok(())
}

/// `None` where the kernel keeps none.
fn login_of(pid: i32) -> Option<u32> {
    fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?.trim().parse().ok()
}

/// Values of /proc that have a record beside the task's.
fn values(pid: i32, image: &Image, own_session: bool, notices: Notices<'_>) -> Result<(), RebuildError> {
    let (nice, login) = image.values.as_ref().map_or((0, u32::MAX), |v| (v.autogroup_nice, v.loginuid));
    if let Some(now) = login_of(pid).filter(|now| *now != login) {
        let name = |uid: u32| if uid == u32::MAX { "not set".to_owned() } else { uid.to_string() };
        notices(&format!("its loginuid was {}, here it is {}", name(login), name(now)));
    } else if login != u32::MAX && login_of(pid).is_none() {
        notices(&format!("its loginuid was {login}; this kernel keeps none"));
    }
    if nice == 0 {
        return Ok(());
    }
    let lost = |why: &str| format!("the nice value {nice} of its session's autogroup is lost: {why}");
    if !own_session {
        notices(&lost("it is in our session"));
        return Ok(());
    }
    match fs::write(format!("/proc/{pid}/autogroup"), nice.to_string()) {
        Ok(()) => Ok(()),
        Err(err)
            if matches!(
                err.raw_os_error(),
                Some(libc::EPERM | libc::ENOENT | libc::EINVAL | libc::EAGAIN)
            ) =>
        {
            notices(&lost(&err.to_string()));
            Ok(())
        }
        failed => failed.what("setting the nice value of its autogroup"),
    }
}

/// Gives the process a root directory of its own (chroot(2)). Its files are opened by paths from the root above.
fn change_root(newborn: &mut Newborn, image: &Image, root: FileId) -> Result<(), RebuildError> {
    let root = image.file(root)?;
    file::judge(&image.place, root)?;
    let root = file::open(&image.place, root, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let fd = send(newborn, std::iter::once(root.as_fd()))?[0] as u64;
    let here = newborn.husk.put(b".\0")?;
    let calls = [
        Call::new(libc::SYS_fchdir, [fd]),
        Call::new(libc::SYS_chroot, [here]),
        Call::new(libc::SYS_close, [fd]),
    ];
    newborn.husk.batch_ok(newborn.husk.pid(), &calls).what("changing the root directory of the process")?;
    newborn.husk.reset();
    Ok(())
}

/// The address space's own figures, and the executable.
pub fn mm(newborn: &mut Newborn, image: &Image, state: &MmState) -> Result<(), RebuildError> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    let exe = image.file(state.exe)?;
    file::judge(&image.place, exe)?;
    file::judge_mapped(&image.place, exe)?;
    let path = file::path_of(exe).display().to_string();
    let exe = file::open(&image.place, exe, libc::O_RDONLY)?;
    let fd = send(newborn, std::iter::once(exe.as_fd()))?[0];
    let husk = &mut newborn.husk;
    let auxv = husk.put(&state.auxv)?;
    let map = words(&[
        state.start_code,
        state.end_code,
        state.start_data,
        state.end_data,
        state.start_brk,
        state.brk,
        state.start_stack,
        state.arg_start,
        state.arg_end,
        state.env_start,
        state.env_end,
        auxv,
        state.auxv.len() as u64 | (fd as u32 as u64) << 32,
    ]);
    let at = husk.put(&map)?;
    let flags = image.mm_settings.as_ref().map_or(0, |settings| settings.thp_flags);
    let thp = [libc::PR_SET_THP_DISABLE as u64, u64::from(state.thp_disable), u64::from(flags), 0, 0];
    let calls = [
        Call::new(libc::SYS_prctl, [PR_SET_MM, PR_SET_MM_MAP, at, map.len() as u64, 0]),
        Call::new(libc::SYS_close, [fd as u64]),
        Call::new(libc::SYS_prctl, thp),
    ];
    match husk.batch_ok(husk.pid(), &calls) {
        Err(TraceError::Remote { call, errno: libc::EACCES }) if call == calls[0] => {
            let why = format!(
                "{path}: it may not be executed here (its permissions, or a file system mounted with noexec), and it is what \
                 the process runs"
            );
            return Err(RebuildError::Unsupported(why));
        }
        Err(TraceError::Remote { call, errno: libc::EINVAL }) if call == calls[2] && flags != 0 => {
            let why = "it has huge pages disabled except where advised, which the kernel here cannot do";
            return Err(RebuildError::Unsupported(why.into()));
        }
        done => done.what("setting the address space's borders and the executable")?,
    };
    husk.reset();
    Ok(())
}

/// Dumpability, which credentials change.
pub fn mm_last(husk: &mut Husk, state: &MmState, notices: Notices<'_>) -> Result<(), RebuildError> {
    let mut dumpable = u64::from(state.dumpable);
    if dumpable > 1 {
        notices("it could be dumped by root alone; here it cannot be dumped at all");
        dumpable = 0;
    }
    let call = Call::new(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, dumpable, 0, 0, 0]);
    husk.call(husk.pid(), call).what("finishing the address space")?;
    Ok(())
}

/// `mlockall(2)` for what comes: once everything is mapped, and before limits and credentials, by which it may be one that
/// could not do so any more.
pub fn lock_future(husk: &mut Husk, state: &MmState) -> Result<(), RebuildError> {
    if state.lock_future & vma_flag::LOCKED != 0 {
        const MCL_ONFAULT: i32 = 4;
        let onfault = if state.lock_future & vma_flag::LOCKED_ONFAULT != 0 { MCL_ONFAULT } else { 0 };
        let call = Call::new(libc::SYS_mlockall, [(libc::MCL_FUTURE | onfault) as u64]);
        husk.call(husk.pid(), call).what("locking memory that is mapped later")?;
    }
    Ok(())
}

const ITIMER_REAL: u64 = 0;

/// Timers with the time that they had left, or until their date.
pub fn timers(husk: &mut Husk, state: &TaskState, dates: &[(i32, u64)]) -> Result<(), RebuildError> {
    let mut calls = Vec::new();
    for (which, timer) in (0u64..).zip(&state.itimers) {
        // ITIMER_REAL has nothing left and still an interval between its expiry and the delivery of the SIGALRM that is
        // pending, which sets it going again (kernel/time/itimer.c). Due at once, it comes to the same.
        let due = which == ITIMER_REAL && timer.interval != 0;
        let left = if due { timer.value.max(1) } else { timer.value };
        if left == 0 {
            continue;
        }
        let split = |micros: u64| [micros / 1_000_000, micros % 1_000_000];
        let value = husk.put(&words(&[split(timer.interval), split(left)].concat()))?;
        calls.push(Call::new(libc::SYS_setitimer, [which, value, 0]));
    }
    calls.extend(posix_timers(husk, &state.timers, dates)?);
    husk.batch_ok(husk.pid(), &calls).what("making timers")?;
    husk.reset();
    Ok(())
}

/// Timers of timer_create(2) with the ids that they had. A kernel without `PR_TIMER_CREATE_RESTORE_IDS` gives each the
/// number after the last that it gave in this process, from 0, whether that timer is still there or not.
fn posix_timers(
    husk: &mut Husk,
    timers: &[PosixTimer],
    dates: &[(i32, u64)],
) -> Result<Vec<Call>, RebuildError> {
    const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
    /// So many are made and deleted in some 50 milliseconds.
    const MOST: i32 = 1 << 17;
    if timers.is_empty() {
        return Ok(Vec::new());
    }
    let mode = |on: u64| Call::new(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0]);
    let results = husk.batch(husk.pid(), &[mode(1)]).what("making timers")?;
    let by_id = results[..] == [0];
    let mut sorted: Vec<&PosixTimer> = timers.iter().collect();
    sorted.sort_by_key(|timer| timer.id);
    let mut calls = Vec::new();
    let mut next = 0;
    for timer in sorted {
        if !by_id {
            if timer.id > MOST {
                let what = format!("timer {} on a kernel that cannot make a timer with a given id", timer.id);
                return Err(RebuildError::Unsupported(what));
            }
            if next < timer.id {
                calls.extend(passed_over(husk, next..timer.id)?);
            }
            next = timer.id + 1;
        }
        let date = dates.iter().find(|(id, _)| *id == timer.id).map(|(_, date)| *date);
        calls.extend(posix_timer(husk, timer, date)?);
    }
    if by_id {
        calls.push(mode(0));
    }
    Ok(calls)
}

/// Makes and deletes timers so that the kernel has given these ids. Another than expected fails to be deleted.
fn passed_over(husk: &mut Husk, ids: std::ops::Range<i32>) -> Result<Vec<Call>, RebuildError> {
    let (mut event, id) = (words(&[0, (libc::SIGEV_NONE as u64) << 32, 0]), husk.space(8)?);
    event.resize(64, 0);
    let event = husk.put(&event)?;
    let create = Call::new(libc::SYS_timer_create, [libc::CLOCK_MONOTONIC as u64, event, id]);
    Ok(ids.flat_map(|id| [create, Call::new(libc::SYS_timer_delete, [id as u64])]).collect())
}

fn posix_timer(husk: &mut Husk, timer: &PosixTimer, date: Option<u64>) -> Result<Vec<Call>, RebuildError> {
    let pair = |low: i32, high: i32| low as u32 as u64 | (high as u32 as u64) << 32;
    let mut event = words(&[timer.sigval, pair(timer.signo, timer.notify), u64::from(timer.tid)]);
    event.resize(64, 0);
    let event = husk.put(&event)?;
    let id = husk.put(&words(&[timer.id as u32 as u64]))?;
    let mut calls = vec![Call::new(libc::SYS_timer_create, [timer.clock as i64 as u64, event, id])];
    if timer.value != 0 {
        const SECOND: u64 = 1_000_000_000;
        let split = |nanos: u64| [nanos / SECOND, nanos % SECOND];
        let flags = if date.is_some() { libc::TIMER_ABSTIME as u64 } else { 0 };
        let end = date.unwrap_or(timer.value);
        let value = husk.put(&words(&[split(timer.interval), split(end)].concat()))?;
        calls.push(Call::new(libc::SYS_timer_settime, [timer.id as u64, flags, value, 0]));
    }
    Ok(calls)
}

/// Names of the limits of getrlimit(2), by number.
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// `RLIMIT_SIGPENDING`.
const SIGPENDING: u64 = 11;

/// The hard limit of queued signals that the husk has now.
fn sigpending(husk: &mut Husk) -> Result<u64, RebuildError> {
    let at = husk.space(16)?;
    husk.call(husk.pid(), Call::new(libc::SYS_prlimit64, [0, SIGPENDING, 0, at])).what("reading a limit")?;
    let mut bytes = [0u8; 16];
    husk.read(at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes[8..].try_into().unwrap_or_default()))
}

/// The limit of queued signals, once all that are pending are queued.
pub fn last_limit(husk: &mut Husk, state: &TaskState) -> Result<(), RebuildError> {
    let Some(&(soft, hard)) = state.rlimits.get(SIGPENDING as usize) else { return Ok(()) };
    let hard = hard.min(sigpending(husk)?);
    let new = husk.put(&words(&[soft.min(hard), hard]))?;
    let call = Call::new(libc::SYS_prlimit64, [0, SIGPENDING, new, 0]);
    husk.call(husk.pid(), call).what("setting RLIMIT_SIGPENDING")?;
    husk.reset();
    Ok(())
}

/// Resource limits. A hard limit above ours needs CAP_SYS_RESOURCE; without, ours stands, which is said.
pub fn limits(husk: &mut Husk, state: &TaskState, notices: Notices<'_>) -> Result<(), RebuildError> {
    let pid = husk.pid();
    let (mut calls, mut olds) = (Vec::new(), Vec::new());
    let ours = sigpending(husk)?;
    for (number, &(soft, hard)) in (0u64..).zip(&state.rlimits).take(LIMITS.len()) {
        // Of queued signals there may be more than is allowed from now on: that limit is lowered last.
        let (soft, hard) = if number == SIGPENDING { (hard.max(ours), hard.max(ours)) } else { (soft, hard) };
        let (old, new) = (husk.space(16)?, husk.put(&words(&[soft, hard]))?);
        calls.push(Call::new(libc::SYS_prlimit64, [0, number, 0, old]));
        calls.push(Call::new(libc::SYS_prlimit64, [0, number, new, 0]));
        olds.push(old);
    }
    let results = husk.batch(pid, &calls)?;
    for (number, (old, &(soft, hard))) in olds.into_iter().zip(&state.rlimits).enumerate() {
        let (name, result) = (LIMITS[number], results[2 * number + 1]);
        if result != -i64::from(libc::EPERM) {
            raw_ok(result, || format!("setting RLIMIT_{name}"))?;
            continue;
        }
        let mut bytes = [0u8; 16];
        husk.read(old, &mut bytes)?;
        let ours = u64::from_le_bytes(bytes[8..].try_into().unwrap_or_default());
        if soft > ours {
            return Err(RebuildError::Unsupported(format!(
                "its RLIMIT_{name} is {soft}, and we may not go above {ours} here"
            )));
        }
        notices(&format!("its hard RLIMIT_{name} was {hard}, here it is {ours}"));
        let soft = if number as u64 == SIGPENDING { ours } else { soft };
        let new = husk.put(&words(&[soft, ours]))?;
        husk.call(pid, Call::new(libc::SYS_prlimit64, [0, number as u64, new, 0])).what("setting limits")?;
    }
    husk.reset();
    Ok(())
}

/// What is set through /proc.
pub fn by_proc(
    pid: i32,
    image: &Image,
    state: &TaskState,
    mm: &MmState,
    settings: &Settings,
    notices: Notices<'_>,
) -> Result<(), RebuildError> {
    values(pid, image, own_session(image.task()?, settings), notices)?;
    let filter = format!("/proc/{pid}/coredump_filter");
    fs::write(filter, format!("{:#x}\n", mm.coredump_filter)).what("setting coredump_filter")?;
    let path = format!("/proc/{pid}/oom_score_adj");
    let now = fs::read_to_string(&path).what("reading oom_score_adj")?;
    if now.trim().parse() == Ok(state.oom_score_adj) {
        return Ok(());
    }
    match fs::write(&path, state.oom_score_adj.to_string()) {
        Err(err) if matches!(err.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            notices(&format!("its oom_score_adj was {}, here it is {}", state.oom_score_adj, now.trim()));
            Ok(())
        }
        done => done.what("setting oom_score_adj"),
    }
}
