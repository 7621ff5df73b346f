//! The husk's birth: a child with the right pid, held, and emptied of all that it inherited.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use pc_image::{Backing, Vma};
use pc_sys::birth::{Birth, HUSK_SOCKET, fork_husk, fork_init};
use pc_trace::{Call, Husk, Scratch};

use crate::clocks::Offsets;
use crate::error::{Context, RebuildError};
use crate::fdtable::words;
use crate::layout::{KERNEL_MAPS, KernelMaps, TASK_SIZE, find_hole, own_mappings};
use crate::settings::Settings;

/// Bytes of the scratch area.
const SCRATCH: u64 = 2 << 20;
/// How long a pid that is in nobody's use may remain taken: the kernel frees it some time after it has left /proc.
const PID_PATIENCE: Duration = Duration::from_millis(500);

/// A husk that holds nothing but its vDSO and the scratch area.
#[derive(Debug)]
pub struct Newborn {
    pub husk: Husk,
    /// Its limit of open files while it is built.
    pub open_files: u64,
    /// Our end of the socket pair through which it gets descriptors.
    pub socket: OwnedFd,
    /// The number of its own end.
    pub husk_socket: i32,
    /// The init of its pid namespace.
    pub init: Option<Init>,
    /// The scratch area's range, and after it the parking place of the vDSO.
    pub reserved: (u64, u64),
    /// Where its vDSO lies.
    pub vdso: (u64, u64),
    /// What its clocks have more than ours, once that is settled.
    pub clocks: Option<Offsets>,
}

/// The init of a new pid namespace. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Init {
    pub pid: i32,
    control: Option<OwnedFd>,
}

impl Init {
    /// Lets it go on: on its own if `detached`, else it dies with us.
    pub fn release(mut self, detached: bool) -> Result<i32, RebuildError> {
        let byte = if detached { b"d" } else { b"f" };
        if let Some(control) = self.control.take() {
            nix::unistd::write(&control, byte).what("releasing the namespace's init")?;
            // It closes its end once it no longer dies with us; were we gone before that, it and the copy would go too.
            nix::unistd::read(&control, &mut [0u8; 1]).what("waiting for the namespace's init")?;
        }
        let pid = self.pid;
        std::mem::forget(self);
        Ok(pid)
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        // Nothing can be done if it has gone already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
    }
}

/// Raises our soft limit of open files to the hard one, and both where that is less than `needed`; a refusal if we may not.
/// Returns the limit.
pub fn make_room_for_descriptors(needed: u64) -> Result<u64, RebuildError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).what("reading the limit of open files")?;
    let most = hard.max(needed);
    if soft < most {
        setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|_| {
            RebuildError::Unsupported(format!(
                "the hard limit of open files is {hard}, and to build a process takes {needed}"
            ))
        })?;
    }
    Ok(most)
}

/// Makes the husk of process `pid`, whose mappings will be `vmas`.
pub fn make(settings: &Settings, pid: u32, vmas: &[Vma], new_session: bool) -> Result<Newborn, RebuildError> {
    let own = own_mappings().what("reading our mappings")?;
    let kernel = KernelMaps::of(&own);
    let park = kernel.span().next_multiple_of(4096);
    let taken: Vec<(u64, u64)> =
        own.iter().map(|m| (m.start, m.end)).chain(vmas.iter().map(|v| (v.start, v.end))).collect();
    let full = || RebuildError::Unsupported("no room between the mappings of the process".into());
    let base = find_hole(&taken, SCRATCH + park).ok_or_else(full)?;
    let scratch = Scratch::prepare(base, SCRATCH).what("mapping the scratch area")?;
    // It has its socket under a high number, whatever limit was set for us.
    let open_files = make_room_for_descriptors(HUSK_SOCKET as u64 + 1)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (socket, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).what("making a socket pair")?;
    let (child, init) = born(settings, pid, &theirs, new_session)?;
    drop(theirs);
    // From its first word on it does nothing but pause.
    let mut ready = [0u8; 1];
    let said = nix::unistd::read(&socket, &mut ready).what("waiting for the new process")?;
    if said != 1 {
        return Err(io::Error::from_raw_os_error(libc::ECHILD)).what("starting the new process");
    }
    // If this fails before it is seized, it dies with us by its parent-death signal.
    let husk = Husk::adopt(child, &scratch)?;
    let reserved = (base, base + SCRATCH + park);
    let mut newborn = Newborn {
        husk,
        socket,
        husk_socket: HUSK_SOCKET,
        open_files,
        init,
        reserved,
        vdso: (0, 0),
        clocks: None,
    };
    newborn.forget_threads_state()?;
    newborn.raise_limits()?;
    newborn.empty(&kernel)?;
    newborn.place_kernel_maps(&kernel.moved_to(base + SCRATCH), vmas)?;
    Ok(newborn)
}

fn born(
    settings: &Settings,
    pid: u32,
    theirs: &OwnedFd,
    new_session: bool,
) -> Result<(i32, Option<Init>), RebuildError> {
    let set_tid = [pid as i32];
    let birth = Birth { set_tid: &set_tid, socket: theirs.as_fd(), new_session };
    if settings.new_pid_ns {
        let (init, child) = inside(birth)?;
        return Ok((child, Some(init)));
    }
    let start = Instant::now();
    let child = loop {
        match fork_husk(birth) {
            Err(err) if err.raw_os_error() == Some(libc::EEXIST) => {
                if let Some(holder) = still_taken(pid) {
                    return Err(RebuildError::PidTaken { pid, holder });
                }
                if start.elapsed() > PID_PATIENCE {
                    return Err(RebuildError::PidTaken { pid, holder: "the kernel".into() });
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => {
                let why = "choosing a process id needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN";
                return Err(RebuildError::Unsupported(why.into()));
            }
            child => break child.what("making the process")?,
        }
    };
    Ok((child, None))
}

/// How long the end of a process is waited for that was killed, and for the parent of one that has ended.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);
const ZOMBIE_PATIENCE: Duration = Duration::from_millis(500);

/// Who has a pid and keeps it: one who is just ending (the original, say) is given a while.
pub fn still_taken(pid: u32) -> Option<String> {
    let start = Instant::now();
    loop {
        let holder = holder_of(pid)?;
        let patience = match ending(pid) {
            Some(Ending::Zombie(_)) => ZOMBIE_PATIENCE,
            Some(Ending::Dying) => ENDING_PATIENCE,
            None => return Some(holder),
        };
        if start.elapsed() > patience {
            return Some(holder);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How far a process or thread has ended.
enum Ending {
    /// It frees what it had, or is about to.
    Dying,
    /// Its parent has to hear of it.
    Zombie(String),
}

fn ending(pid: u32) -> Option<Ending> {
    const PF_EXITING: u64 = 0x4;
    const SIGKILL: u64 = 1 << 8;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return Some(Ending::Zombie((*fields.get(1)?).to_owned()));
    }
    let exiting = fields.get(6)?.parse::<u64>().is_ok_and(|flags| flags & PF_EXITING != 0);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut pending = status.lines().filter_map(|line| line.split_once(':'));
    let killed = pending.any(|(key, mask)| {
        matches!(key, "SigPnd" | "ShdPnd")
            && u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & SIGKILL != 0)
    });
    (exiting || killed).then_some(Ending::Dying)
}

/// Who has a pid: a process, a thread, or a process group or session of that number.
pub fn holder_of(pid: u32) -> Option<String> {
    let text = |name: &str| {
        fs::read(format!("/proc/{pid}/{name}")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let comm = text("comm").ok()?;
    let status = text("status").unwrap_or_default();
    let line = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
    let stopped = line("State:").is_some_and(|s| s.starts_with('T'));
    let thread = line("Tgid:").filter(|t| *t != pid.to_string()).map(|t| format!(", a thread of {t}"));
    let state = match ending(pid) {
        Some(Ending::Zombie(parent)) => format!(", a zombie, its parent is {parent}"),
        Some(Ending::Dying) => ", which is ending".to_owned(),
        None if stopped => ", which is stopped (the original?)".to_owned(),
        None => String::new(),
    };
    Some(format!("“{}”{}{state}", comm.trim().escape_debug(), thread.unwrap_or_default()))
}

/// A husk as the child of a new namespace's init.
fn inside(birth: Birth<'_>) -> Result<(Init, i32), RebuildError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (control, theirs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, flags).what("making a socket pair")?;
    let pid = fork_init(birth, theirs.as_fd()).what("making a pid namespace")?;
    drop(theirs);
    let init = Init { pid, control: Some(control) };
    let mut errno = [0u8; 4];
    let got = init.control.as_ref().map_or(Ok(0), |c| nix::unistd::read(c, &mut errno));
    let errno = i32::from_ne_bytes(errno);
    if got.what("waiting for the namespace's init")? != 4 || errno != 0 {
        let why = if errno == 0 { libc::ECHILD } else { errno };
        return Err(io::Error::from_raw_os_error(why)).what("starting the new pid namespace");
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let child = children.what("looking for the namespace's child")?;
    let child = child.split_whitespace().next().and_then(|c| c.parse().ok());
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    Ok((init, child.ok_or_else(gone).what("looking for the namespace's child")?))
}

impl Newborn {
    /// What the kernel keeps about the thread that forked.
    fn forget_threads_state(&mut self) -> Result<(), RebuildError> {
        let pid = self.husk.pid();
        let mut calls = vec![
            Call::new(libc::SYS_set_robust_list, [0, 24]),
            Call::new(libc::SYS_set_tid_address, [0]),
            Call::new(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0]),
        ];
        if let Some(rseq) =
            pc_sys::ptrace::get_rseq_configuration(pid).what("reading the rseq registration")?
        {
            let (addr, len, sig) = (rseq.rseq_abi_pointer, rseq.rseq_abi_size, rseq.signature);
            const UNREGISTER: u64 = 1;
            calls.push(Call::new(libc::SYS_rseq, [addr, u64::from(len), UNREGISTER, u64::from(sig)]));
        }
        self.husk.batch_ok(pid, &calls)?;
        Ok(())
    }

    /// Nothing that was set for us alone is in the way while it is built. Its own limits are set at the end.
    fn raise_limits(&mut self) -> Result<(), RebuildError> {
        const OF_MEMORY: [(Resource, u32); 4] = [
            (Resource::RLIMIT_AS, libc::RLIMIT_AS),
            (Resource::RLIMIT_DATA, libc::RLIMIT_DATA),
            (Resource::RLIMIT_STACK, libc::RLIMIT_STACK),
            (Resource::RLIMIT_MEMLOCK, libc::RLIMIT_MEMLOCK),
        ];
        let mut calls = Vec::new();
        for (resource, number) in OF_MEMORY {
            let (soft, hard) = getrlimit(resource).what("reading our limits")?;
            if soft < hard {
                let limit = self.husk.put(&words(&[hard, hard]))?;
                calls.push(Call::new(libc::SYS_prlimit64, [0, u64::from(number), limit, 0]));
            }
        }
        self.husk.batch_ok(self.husk.pid(), &calls).what("raising limits")?;
        self.husk.reset();
        Ok(())
    }

    /// Parks the vDSO and its data after the scratch area and unmaps all else.
    fn empty(&mut self, kernel: &KernelMaps) -> Result<(), RebuildError> {
        let (base, end) = self.reserved;
        let parked = kernel.moved_to(base + SCRATCH);
        let mut calls: Vec<Call> =
            kernel.parts.iter().zip(&parked.parts).map(|(a, b)| moving(a, b)).collect();
        calls.push(Call::new(libc::SYS_munmap, [0, base]));
        calls.push(Call::new(libc::SYS_munmap, [end, TASK_SIZE - end]));
        self.husk.batch_ok(self.husk.pid(), &calls).what("emptying the process")?;
        Ok(())
    }

    /// Moves the vDSO and its data from the parking place to where the process has them.
    fn place_kernel_maps(&mut self, parked: &KernelMaps, vmas: &[Vma]) -> Result<(), RebuildError> {
        let mut calls = Vec::new();
        for part in &parked.parts {
            let target = vmas.iter().find(|v| kernel_name(&v.backing) == Some(part.0.as_str()));
            match target {
                Some(v) if v.end - v.start == part.2 - part.1 => {
                    calls.push(moving(part, &(part.0.clone(), v.start, v.end)));
                }
                Some(_) => {
                    return Err(RebuildError::Unsupported(format!("its {} has another length", part.0)));
                }
                None if part.0 == KERNEL_MAPS[0] => {
                    return Err(RebuildError::Unsupported("a process without its vDSO".into()));
                }
                None => calls.push(Call::new(libc::SYS_munmap, [part.1, part.2 - part.1])),
            }
        }
        self.husk.batch_ok(self.husk.pid(), &calls).what("placing the vDSO")?;
        let vdso = vmas.iter().find(|v| v.backing == Backing::Vdso).map(|v| (v.start, v.end));
        self.vdso = vdso.ok_or_else(|| RebuildError::Unsupported("a process without its vDSO".into()))?;
        Ok(())
    }
}

/// The name under which /proc/PID/maps shows a mapping of the kernel's making.
fn kernel_name(backing: &Backing) -> Option<&'static str> {
    match backing {
        Backing::Vdso => Some("[vdso]"),
        Backing::Vvar => Some("[vvar]"),
        Backing::VvarVclock => Some("[vvar_vclock]"),
        _ => None,
    }
}

type Part = (String, u64, u64);

fn moving(from: &Part, to: &Part) -> Call {
    let len = from.2 - from.1;
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    Call::new(libc::SYS_mremap, [from.1, len, len, flags, to.1])
}
