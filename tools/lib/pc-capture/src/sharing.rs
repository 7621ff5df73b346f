//! What threads do not share with the first thread of their process: by unshare(2), or by a clone(2) that did not ask for it.

use std::io;

use pc_sys::kcmp::{Resource, kcmp};

use crate::error::{CaptureError, Context, Result, Unsupported};
use crate::procfs::{Stat, Status};
use crate::{cgroup, namespace};

/// What is compared, and how a thread that has its own is described.
const SHARED: [(Resource, &str); 3] = [
    (Resource::Files, "a table of descriptors of its own"),
    (Resource::Fs, "a working directory, root and umask of its own"),
    (Resource::SysVSem, "a list of SEM_UNDO of its own"),
];

/// Names what the threads of a running process do not share. One that ends meanwhile shares nothing any more, and is
/// passed over.
pub(crate) fn running(pid: i32, tids: &[i32]) -> Result<Vec<Unsupported>> {
    let mut bad = Vec::new();
    for &tid in tids.iter().filter(|tid| **tid != pid) {
        let found = unshared(pid, tid).and_then(|mut found| {
            found.extend(namespace::apart(pid, tid, None)?);
            found.extend(cgroup::apart(pid, tid)?);
            Ok(found)
        });
        match found {
            _ if is_ending(pid, tid) => {}
            found => bad.extend(found.of(tid, "comparing it with the first thread")?),
        }
    }
    Ok(bad)
}

/// The same at the stop, but for cgroups. With the status of each thread, in their order.
pub(crate) fn standing<'a>(pid: i32, threads: impl Iterator<Item = (i32, &'a Status)>) -> Result<()> {
    let mut bad = Vec::new();
    for (tid, status) in threads.filter(|(tid, _)| *tid != pid) {
        let found = unshared(pid, tid).and_then(|mut found| {
            found.extend(namespace::apart(pid, tid, Some(status))?);
            Ok(found)
        });
        bad.extend(found.of(tid, "comparing it with the first thread")?);
    }
    if bad.is_empty() { Ok(()) } else { Err(CaptureError::Unsupported(bad)) }
}

fn unshared(pid: i32, tid: i32) -> io::Result<Vec<Unsupported>> {
    let mut found = Vec::new();
    for (resource, name) in SHARED {
        if kcmp(pid, tid, resource)?.is_ne() {
            let what = format!("its thread {tid} has {name}, which cannot be moved yet");
            found.push(Unsupported::new(pid, None, what));
        }
    }
    Ok(found)
}

/// Whether a thread, or the first of its process, is gone or on its way out: it lets go of what it shares before it is a
/// zombie.
fn is_ending(pid: i32, tid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    [pid, tid].iter().any(|id| {
        let stat = Stat::read(*id);
        stat.map_or(true, |stat| stat.flags & PF_EXITING != 0 || matches!(stat.state, b'Z' | b'X'))
    })
}
