//! The preflight: what cannot be taken is found before anything is touched, and named.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pc_image::Machine;
use pc_sys::pidfd;

use crate::controls::Probe;
use crate::costs::Costs;
use crate::error::{CaptureError, Context, Result, Unsupported, unsupported};
use crate::file::Files;
use crate::foretold::Foretold;
use crate::memory::{self, Known};
use crate::mm_check;
use crate::openfile::{Fds, Seen, descriptors};
use crate::procfs::{Stat, Status};
use crate::report::Report;
use crate::shm::is_gone;
use crate::task::FDS;
use crate::tcp::{self, Connected, Connections};
use crate::{Settings, beside, controls, machine, namespace, sharing};

const PF_KTHREAD: u64 = 0x0020_0000;

/// A process that may be captured, as far as can be told while it runs.
#[derive(Debug)]
pub(crate) struct Target {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub status: Status,
    pub stat: Stat,
    pub files: Files,
    pub seen: Seen,
    /// What smaps showed of the mappings.
    pub known: Known,
    /// Its TCP connections, if they are taken along.
    pub connections: Connections,
    /// The machine, but for what it needs and the clocks.
    pub machine: Machine,
    /// What it takes to look at it.
    pub costs: Costs,
    /// What people should know of the move.
    pub report: Report,
    /// Tells whether something bars it from others.
    pub probe: Option<Probe>,
}

/// Looks the process over.
pub(crate) fn preflight(settings: &Settings) -> Result<Target> {
    let pid = settings.pid;
    let status = Status::read(pid).map_err(|_| CaptureError::NoProcess(pid))?;
    let stat = Stat::read(pid).map_err(|_| CaptureError::NoProcess(pid))?;
    may_be_taken(pid, &status, &stat)?;
    let pidfd = pidfd::pidfd_open(pid).map_err(|_| CaptureError::NoProcess(pid))?;
    let mut files = Files::new(pid);
    let mut bad = family(pid)?;
    bad.extend(sharing::running(pid, &tids(pid)?)?);
    let known = memory::read_known(pid)?;
    // Not from /proc/PID/maps: the process runs, and what is mapped may be another thing by then.
    let mut areas: Vec<_> = known.values().map(|(area, _)| area).collect();
    areas.sort_unstable_by_key(|area| area.start);
    let machine = machine::machine(pid, machine::vdso(pid, &areas)?, 0)?;
    let mut vmas = Vec::new();
    for area in areas {
        match memory::vma(pid, area, &known, &mut files) {
            Err(err) if is_gone(&err) => {}
            found => vmas.extend(collect(found, &mut bad)?),
        }
    }
    bad.extend(beside::refused(pid)?);
    bad.extend(mm_check::obstacles(pid, &status, known.values())?);
    for link in ["cwd", "root", "exe"] {
        collect(files.link(link, pc_image::FileNeed::Kind), &mut bad)?;
    }
    let all = descriptors(pid, false)?;
    let (mut seen, connected) = (Seen::default(), Connected::of(settings));
    let mut captured =
        Fds::of(pid, pidfd.as_fd(), &mut files, &mut seen, connected, false, all)?.capture(FDS)?;
    bad.append(&mut captured.unsupported);
    bad.extend(files.objects.judge()?);
    bad.extend(tcp::unready(settings, pidfd.as_fd())?);
    let tids = tids(pid)?;
    let probe = Probe::new(pid, &pidfd, &status);
    bad.extend(controls::judge(pid, &tids, probe.as_ref())?);
    if !bad.is_empty() {
        return Err(CaptureError::Unsupported(bad));
    }
    let notices = std::mem::take(&mut captured.notices);
    let foretold = Foretold::read(pid, (&status, &stat), machine, vmas, captured, &mut files)?;
    bad.extend(foretold.judge(pid, files.take_fresh()));
    if !bad.is_empty() {
        return Err(CaptureError::Unsupported(bad));
    }
    let mut report = Report::of(settings, &foretold);
    notices.into_iter().for_each(|notice| report.notice(notice));
    if let Some(namespaces) = namespace::look(pid)? {
        namespace::needs(&namespaces, &mut report);
    }
    let costs = Costs { thread: foretold.per_thread, ..Costs::default() };
    let machine = foretold.machine;
    let connections = Connections::prepare(settings)?;
    // Named once more when they are captured, as they may be others then.
    let files = files.anew();
    Ok(Target { pid, pidfd, status, stat, files, seen, known, connections, machine, costs, report, probe })
}

fn collect<T>(result: Result<T>, bad: &mut Vec<Unsupported>) -> Result<Option<T>> {
    match result {
        Err(CaptureError::Unsupported(list)) => {
            bad.extend(list);
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Refuses what is no process that could be captured at all.
fn may_be_taken(pid: i32, status: &Status, stat: &Stat) -> Result<()> {
    let refused = |why: String| Err(CaptureError::Refused { pid, why });
    if status.tgid != pid {
        return refused(format!("is a thread of process {}; give that", status.tgid));
    }
    if pid == std::process::id() as i32 {
        return refused("cannot be captured by itself".to_owned());
    }
    if ancestors().contains(&pid) {
        return refused("is an ancestor of this program, which would stop with it".to_owned());
    }
    if status.kthread || stat.flags & PF_KTHREAD != 0 {
        return refused(format!("is a kernel thread ({})", crate::procfs::shown(status.name.as_bytes())));
    }
    if matches!(stat.state, b'Z' | b'X') {
        let runs = |tid: &i32| Stat::read(*tid).is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'));
        if tids(pid).unwrap_or_default().iter().any(runs) {
            return unsupported(
                pid,
                None,
                "its main thread has ended while others run, which cannot be moved yet",
            );
        }
        return refused("has ended already (a zombie)".to_owned());
    }
    if status.tracer != 0 {
        return refused(format!("is traced by process {}", status.tracer));
    }
    if !pc_readable(pid) {
        return Err(CaptureError::NotPermitted {
            pid,
            what: "another user's process, or one that may not be traced".to_owned(),
        });
    }
    Ok(())
}

/// Whether its descriptors may be looked at: the same right as tracing it.
fn pc_readable(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok()
}

fn ancestors() -> Vec<i32> {
    let mut found = Vec::new();
    let mut pid = std::process::id() as i32;
    while let Ok(stat) = Stat::read(pid) {
        if stat.ppid == 0 || found.contains(&stat.ppid) {
            break;
        }
        pid = stat.ppid;
        found.push(pid);
    }
    found
}

/// Children that stay: one that ends soon is met again at the stop, and waited for there.
fn family(pid: i32) -> Result<Vec<Unsupported>> {
    let Some(child) = child_of(pid)? else { return Ok(Vec::new()) };
    std::thread::sleep(PATIENCE);
    Ok(if child_of(pid)? == Some(child) { vec![has_child(pid, child)] } else { Vec::new() })
}

/// How long a child may take to end before it counts as one.
const PATIENCE: Duration = Duration::from_millis(50);

pub(crate) fn has_child(pid: i32, child: i32) -> Unsupported {
    Unsupported::new(pid, None, format!("it has children (process {child}), which cannot be moved yet"))
}

/// One of the process's children, ended and not waited for or not.
pub(crate) fn child_of(pid: i32) -> Result<Option<i32>> {
    for tid in tids(pid)? {
        match fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")) {
            Ok(children) => {
                if let Some(child) = children.split_whitespace().find_map(|child| child.parse().ok()) {
                    return Ok(Some(child));
                }
            }
            // It has ended meanwhile, or the kernel was built without this file.
            Err(_) if tid != pid => {}
            Err(_) => return child_by_search(pid),
        }
    }
    Ok(None)
}

fn child_by_search(pid: i32) -> Result<Option<i32>> {
    let all = fs::read_dir("/proc").of(pid, "looking for its children")?;
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.into_iter().find(|other| Stat::read(*other).is_ok_and(|stat| stat.ppid == pid)))
}

/// The threads that exist now.
pub(crate) fn tids(pid: i32) -> Result<Vec<i32>> {
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).of(pid, "listing its threads")? {
        let name = entry.of(pid, "listing its threads")?.file_name();
        tids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    tids.sort_by_key(|tid| (*tid != pid, *tid));
    Ok(tids)
}
