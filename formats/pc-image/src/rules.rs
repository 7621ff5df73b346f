//! What this version cannot rebuild on any machine, told from records alone.
//!
//! The one set of rules that both ends use: pc-dump runs the records that it would send through it before anything is
//! touched (`--check`), again in rounds and at the stop; pc-restore runs those that arrive through it. So what is accepted
//! there is not refused here for a reason that was known before. Pure: what depends on the machine is judged elsewhere.
//!
//! [`refusals`] judges one record; [`Rules`] judges the records of a stream in their order, and knows what came before.

mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{
    Backing, ExternalFile, ExternalKind, MapChange, OpenFile, OpenFileId, OpenFileKind, PosixTimer, ProcFile,
    Record, Seccomp, SpaceId, SpaceKind, Task, TaskId, TaskState, Thread, Vma, vma_flag,
};

/// What of a process a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The process as a whole: the reason is a sentence about "it".
    Process,
    /// The mapping that begins at this address: the reason follows "its mapping at …".
    Mapping(u64),
    /// An open file: the reason follows "descriptor N is".
    File(OpenFileId),
    /// A thread, by its tid in its own pid namespace: the reason follows "its thread N".
    Thread(u32),
}

/// Why a record cannot be rebuilt by this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it is about.
    pub subject: Subject,
    /// The reason, for people.
    pub what: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, what } = self;
        match subject {
            Subject::Process => write!(f, "{what}"),
            Subject::Mapping(start) => write!(f, "its mapping at {start:#x} {what}"),
            Subject::File(_) => write!(f, "it has {what}"),
            Subject::Thread(tid) => write!(f, "its thread {tid} {what}"),
        }
    }
}

fn refuse(subject: Subject, what: impl Into<String>) -> Refusal {
    Refusal { subject, what: what.into() }
}

/// Why a record cannot be rebuilt, whatever came before it; empty if it can.
pub fn refusals(record: &Record) -> Vec<Refusal> {
    match record {
        Record::Machine(machine) => vdso(&machine.vdso.image).into_iter().collect(),
        Record::Task(it) => task(it).into_iter().collect(),
        Record::Space(space) => match &space.kind {
            SpaceKind::Shm { name, .. } => shared_memory(name).into_iter().collect(),
            SpaceKind::Mm => Vec::new(),
        },
        Record::File(file) if !file.path.starts_with(b"/") => {
            let path = String::from_utf8_lossy(&file.path);
            vec![refuse(Subject::Process, format!("it uses the file {path}, whose path is not absolute"))]
        }
        Record::File(file) => {
            let uses = |what| refuse(Subject::Process, format!("it uses the file {what}"));
            by_number(&file.path).map(uses).into_iter().collect()
        }
        Record::MapChange(change) => {
            let all = change.map.iter().chain(&change.modify);
            all.filter_map(|vma| Some(refuse(Subject::Mapping(vma.start), mapping(vma)?))).collect()
        }
        Record::MmSettings(settings) => memory::settings(settings).into_iter().collect(),
        Record::Thread(it) => thread(it).into_iter().collect(),
        Record::OpenFile(open) => {
            open_file(open).into_iter().map(|what| refuse(Subject::File(open.id), what)).collect()
        }
        _ => Vec::new(),
    }
}

fn vdso(image: &[u8]) -> Option<Refusal> {
    const ELF_32: &[u8] = b"\x7fELF\x01";
    if image.is_empty() {
        Some(refuse(Subject::Process, NO_VDSO))
    } else if image.starts_with(ELF_32) {
        Some(refuse(Subject::Process, "it is a 32-bit program, which cannot be moved yet"))
    } else {
        None
    }
}

const NO_VDSO: &str = "it has no [vdso], which cannot be moved yet";

fn task(task: &Task) -> Option<Refusal> {
    if task.space.is_none() {
        Some(refuse(
            Subject::Process,
            format!("its process {} has ended (a zombie), which cannot be moved yet", task.pid),
        ))
    } else if task.parent.is_some() {
        Some(refuse(
            Subject::Process,
            format!("it has children (process {}), which cannot be moved yet", task.pid),
        ))
    } else {
        None
    }
}

/// Memfds and shared anonymous memory, as /proc/PID/maps shows them.
fn shared_memory(name: &str) -> Option<Refusal> {
    let known = name.starts_with("/memfd:") || name == "/dev/zero (deleted)";
    let what = || format!("it has shared memory of an unknown kind ({name}), which cannot be moved yet");
    (!known).then(|| refuse(Subject::Process, what()))
}

/// Protection keys that there are (pkeys(7)).
const PKEYS: u8 = 16;

/// Why a mapping cannot be made: follows "its mapping at …".
pub fn mapping(vma: &Vma) -> Option<String> {
    let shared = vma.flags & vma_flag::SHARED != 0;
    match vma.backing {
        _ if vma.pkey >= PKEYS => {
            Some(format!("has the memory protection key {}, which no processor has", vma.pkey))
        }
        Backing::Anonymous | Backing::Hugetlb { .. } if shared => {
            Some("is shared memory of a kind that cannot be moved yet".to_owned())
        }
        _ => None,
    }
}

fn thread(thread: &Thread) -> Option<Refusal> {
    /// `cs` in `struct user_regs_struct`, and its value for 32-bit code (`__USER32_CS`).
    const CS: usize = 17;
    const CODE_32: u64 = 0x23;
    let what = if thread.regs[CS] == CODE_32 {
        "runs 32-bit code, which cannot be moved yet"
    } else if matches!(&thread.seccomp, Seccomp::Filter(all) if all.iter().any(|it| asks_another(&it.insns)))
    {
        "has a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF), which cannot be moved yet"
    } else {
        return None;
    };
    Some(refuse(Subject::Thread(thread.tid), what))
}

/// Whether a seccomp filter may hand calls to another process, which the copy would lack.
fn asks_another(insns: &[u8]) -> bool {
    const RETURN: u16 = 0x06;
    const USER_NOTIF: u32 = 0x7fc0_0000;
    insns.chunks_exact(8).any(|insn| {
        let code = u16::from_le_bytes([insn[0], insn[1]]);
        let value = u32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
        code == RETURN && value & 0xffff_0000 == USER_NOTIF
    })
}

/// Why an open file cannot be made: follows "descriptor N is".
pub fn open_file(open: &OpenFile) -> Option<String> {
    match &open.kind {
        OpenFileKind::Timer(timer) if !TIMERFD_CLOCKS.contains(&timer.clock) => {
            Some(format!("a timerfd of clock {}, which cannot be moved yet", timer.clock))
        }
        OpenFileKind::Proc(file) => procfs_file(file, open.flags),
        _ => None,
    }
}

/// A path that leads to whoever has a number, or to whoever asks.
fn by_number(path: &[u8]) -> Option<String> {
    let first = path.strip_prefix(b"/proc/")?.split(|byte| *byte == b'/').next()?;
    let means_one = !first.is_empty() && first.iter().all(u8::is_ascii_digit);
    (means_one || [&b"self"[..], b"thread-self"].contains(&first)).then(|| {
        format!("{}, which means a process, and cannot be moved by its path", String::from_utf8_lossy(path))
    })
}

/// What a process can write of itself that is judged by who has opened the file (`file_ns_capable` in the kernel): opened
/// anew, it would be judged by another.
const JUDGED_BY_OPENER: [&[u8]; 4] = [b"uid_map", b"gid_map", b"projid_map", b"setgroups"];
/// Directories whose entries are links to elsewhere.
const LINKS: [&[u8]; 6] = [b"fd", b"map_files", b"ns", b"root", b"cwd", b"exe"];

fn procfs_file(file: &ProcFile, flags: u32) -> Option<String> {
    const ACCMODE: u32 = 3;
    let shown = || format!("the file {} of /proc/PID", String::from_utf8_lossy(&file.path));
    let mut parts = file.path.split(|byte| *byte == b'/');
    let first = parts.clone().next().unwrap_or_default();
    let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.contains(&0);
    let odd = !file.path.is_empty() && parts.any(odd);
    if odd || LINKS.contains(&first) && first != file.path {
        return Some(format!("{}, which cannot be moved", shown()));
    }
    if JUDGED_BY_OPENER.contains(&first) && flags & ACCMODE != 0 {
        return Some(format!("{}, open for writing, which cannot be moved", shown()));
    }
    None
}

/// Whether a file that is watched once (`EPOLLONESHOT`, epoll_ctl(2)) has been reported: then all events are taken out of its
/// mask, also those that it has unasked.
pub fn is_used_up(events: u32) -> bool {
    const EPOLLERR_AND_EPOLLHUP: u32 = 0x18;
    const EPOLLONESHOT: u32 = 1 << 30;
    events & EPOLLONESHOT != 0 && events & EPOLLERR_AND_EPOLLHUP == 0
}

/// What somebody has to say at the destination about something that reaches outside, with the option to type. `None` where
/// there is a default: a terminal becomes the caller's, and so does standard error with what goes there.
pub fn needs_attach(external: &ExternalFile) -> Option<String> {
    let ExternalFile { id, kind } = external;
    let does = match kind {
        ExternalKind::Terminal => return None,
        ExternalKind::PipeWrite if [STDERR_PIPE, STDOUT_TO_STDERR].contains(&id.as_str()) => return None,
        ExternalKind::PipeRead => "is read from",
        ExternalKind::PipeWrite => "is written to",
    };
    Some(format!(
        "{id} is a pipe that {does} and whose other end is outside: --attach {id}=WHERE of pc-restore says what \
         it becomes (a path, fd:N or null)"
    ))
}

/// The id of a pipe to the outside behind descriptor 2.
pub const STDERR_PIPE: &str = "pipe:2";
/// That of descriptor 1, where it is an open file description of its own of the pipe behind descriptor 2.
pub const STDOUT_TO_STDERR: &str = "pipe:2:1";

/// Clocks of a timerfd that can be made (timerfd_create(2)): `CLOCK_REALTIME`, `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`, and the
/// first and the last as alarms.
const TIMERFD_CLOCKS: [i32; 5] = [0, 1, 7, 8, 9];

/// Clocks of a timer of timer_create(2) that are the same for all threads: those of timerfds, the CPU time of the process,
/// and `CLOCK_TAI`.
const TIMER_CLOCKS: [i32; 7] = [0, 1, 2, 7, 8, 9, 11];
/// The CPU time of the thread that made the timer.
const THREAD_CPU: i32 = 3;

/// The records of a stream, judged in their order.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    tasks: BTreeMap<TaskId, Task>,
    /// Length in bytes of the vDSO, its data and its clock pages, as the machine's record has them.
    vdso: Option<[u64; 3]>,
    /// Mappings were announced.
    mapped: bool,
    /// Address spaces.
    spaces: BTreeSet<SpaceId>,
}

impl Rules {
    /// Why the next record of the stream cannot be rebuilt; empty if it can.
    pub fn judge(&mut self, record: &Record) -> Vec<Refusal> {
        let mut found = refusals(record);
        match record {
            Record::Machine(machine) => {
                let vdso = &machine.vdso;
                self.vdso = Some([vdso.image.len() as u64, vdso.vvar_len, vdso.vvar_vclock_len]);
            }
            Record::Task(task) => found.extend(self.task(task)),
            Record::TaskGone(id) => drop(self.tasks.remove(id)),
            Record::SpaceGone(id) => drop(self.spaces.remove(id)),
            Record::Space(space) if space.kind == SpaceKind::Mm => {
                self.spaces.insert(space.id);
                let what = "it has several address spaces, which cannot be moved yet";
                found.extend((self.spaces.len() > 1).then(|| refuse(Subject::Process, what)));
            }
            Record::MapChange(change) if !std::mem::replace(&mut self.mapped, true) => {
                found.extend(self.kernel_mappings(change));
            }
            Record::TaskState(state) => found.extend(self.timers(state)),
            _ => {}
        }
        found
    }

    fn task(&mut self, task: &Task) -> Option<Refusal> {
        self.tasks.insert(task.id, task.clone());
        let others = self.tasks.len() > 1 && task.parent.is_none();
        let what = || format!("process {} is another than the first, which cannot be moved yet", task.pid);
        others.then(|| refuse(Subject::Process, what()))
    }

    /// What every process has by birth has to be in it, as long as the machine's record says.
    fn kernel_mappings(&self, change: &MapChange) -> Vec<Refusal> {
        let Some(wanted) = self.vdso else { return Vec::new() };
        let kinds =
            [(Backing::Vdso, "[vdso]"), (Backing::Vvar, "[vvar]"), (Backing::VvarVclock, "[vvar_vclock]")];
        let mut found = Vec::new();
        for ((backing, name), wanted) in kinds.iter().zip(wanted) {
            match change.map.iter().find(|vma| vma.backing == *backing) {
                Some(vma) if vma.end.saturating_sub(vma.start) != wanted => {
                    let what = format!(
                        "its {name} has another length than the kernel gives it, which cannot be moved yet"
                    );
                    found.push(refuse(Subject::Process, what));
                }
                None if *backing == Backing::Vdso => found.push(refuse(Subject::Process, NO_VDSO)),
                _ => {}
            }
        }
        found
    }

    fn timers(&self, state: &TaskState) -> Vec<Refusal> {
        let task = self.tasks.get(&state.task);
        state.timers.iter().filter_map(|timer| timer_of(timer, task)).collect()
    }
}

/// A timer on a clock that the copy has not, or that is not told: the CPU time of another process, or of a thread of
/// which nobody says which it is.
fn timer_of(timer: &PosixTimer, task: Option<&Task>) -> Option<Refusal> {
    let alone = task.is_none_or(|task| task.tids.len() <= 1);
    let whose = match timer.clock {
        clock if TIMER_CLOCKS.contains(&clock) => return None,
        THREAD_CPU if alone => return None,
        THREAD_CPU => "the CPU time of one of its threads".to_owned(),
        clock if clock < 0 => match (cpu_clock(clock), task) {
            ((0, false), _) => return None,
            ((0, true), _) if alone => return None,
            ((0, true), _) => "the CPU time of one of its threads".to_owned(),
            ((id, false), Some(task)) if id == task.pid => return None,
            ((id, true), Some(task)) if task.tids.contains(&id) => return None,
            ((id, false), _) => format!("the CPU time of process {id}"),
            ((id, true), _) => format!("the CPU time of thread {id}"),
        },
        clock => format!("clock {clock}"),
    };
    Some(refuse(
        Subject::Process,
        format!("its timer {} runs on {whose}, which cannot be moved yet", timer.id),
    ))
}

/// Whose CPU time a clock of clock_getcpuclockid(3) tells (0: the caller's own), and whether of one thread alone
/// (`include/linux/posix-timers_types.h`).
fn cpu_clock(clock: i32) -> (u32, bool) {
    const PER_THREAD: i32 = 4;
    (!(clock >> 3) as u32, clock & PER_THREAD != 0)
}

#[cfg(test)]
mod tests;
