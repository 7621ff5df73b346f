//! Files of /proc that mean a process: of the one that is captured, or of a stranger.

use std::os::unix::fs::MetadataExt;

use pc_image::{OpenFileKind, ProcFile};

use crate::error::Result;
use crate::file::Files;
use crate::openfile::{Descriptor, Fds};
use crate::procfs::Status;
use crate::regular;
use crate::task::TASK;

/// A file of a procfs: as any other unless it means a process.
pub(crate) fn capture(fds: &mut Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    match whose(fds.pid, fds.files, d) {
        Ok(None) => regular::capture(fds, d),
        Ok(Some((thread, path))) => {
            Ok(OpenFileKind::Proc(ProcFile { task: TASK, thread, path, offset: d.info.pos }))
        }
        Err(why) => fds.refuse(d, why),
    }
}

type Found = Option<(Option<u32>, Vec<u8>)>;

/// The thread whose file it is, and its path in the directory of that or of the process; `None` if it means no process.
fn whose(pid: i32, files: &Files, d: &Descriptor) -> std::result::Result<Found, String> {
    let shown = d.link_text();
    if d.link == b"/proc" {
        return Ok(None);
    }
    let Some(inside) = d.link.strip_prefix(b"/proc/") else {
        return Err(format!("{shown}, of a procfs that is not mounted at /proc, which cannot be moved"));
    };
    let Some((number, rest)) = leading_number(inside) else { return Ok(None) };
    if !is_there(files, d) {
        return Err(format!("{shown}, of a process or thread that has ended, which cannot be moved"));
    }
    if !means(pid, files, number) {
        return Err(format!("{shown}, of process {number}, which is not moved with it"));
    }
    if d.meta.file_type().is_symlink() {
        return Err(format!("{shown}, a link opened with O_PATH, which cannot be moved"));
    }
    match rest.strip_prefix(b"task/").and_then(leading_number) {
        None => Ok(Some((None, rest.to_vec()))),
        Some((tid, rest)) => {
            let path = format!("/proc/{number}/task/{tid}/status");
            let own = status(files, &path).map(|status| status.own_pid()).unwrap_or(0);
            let thread = u32::try_from(own).ok().filter(|own| *own != 0);
            thread.map_or(Err(format!("{shown}, of a thread that has ended")), |tid| {
                Ok(Some((Some(tid), rest.to_vec())))
            })
        }
    }
}

/// A number as the first part of a path, and what follows.
fn leading_number(path: &[u8]) -> Option<(i32, &[u8])> {
    let len = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let number = std::str::from_utf8(&path[..len]).ok()?.parse().ok()?;
    Some((number, path.get(len + 1..).unwrap_or_default()))
}

/// Whether its path still leads to it: the kernel makes a new directory for a new process of the same number.
fn is_there(files: &Files, d: &Descriptor) -> bool {
    std::fs::symlink_metadata(files.reach(&d.link))
        .is_ok_and(|meta| (meta.dev(), meta.ino()) == (d.meta.dev(), d.meta.ino()))
}

/// Whether a number in the process's /proc is its own: it has the same number in the same pid namespace.
fn means(pid: i32, files: &Files, number: i32) -> bool {
    let namespace = |path: std::path::PathBuf| std::fs::read_link(path).ok();
    let there = namespace(files.reach(format!("/proc/{number}/ns/pid").as_bytes()));
    let own = Status::read(pid).map(|status| status.own_pid()).unwrap_or(0);
    let found = status(files, &format!("/proc/{number}/status")).map(|status| status.own_pid());
    there.is_some()
        && there == namespace(format!("/proc/{pid}/ns/pid").into())
        && own != 0
        && found == Some(own)
}

fn status(files: &Files, path: &str) -> Option<Status> {
    let text = std::fs::read(files.reach(path.as_bytes())).ok()?;
    Some(Status::parse(&String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_leads_a_path_only_as_a_whole_part() {
        assert_eq!(leading_number(b"12/task/13/mem"), Some((12, &b"task/13/mem"[..])));
        assert_eq!(leading_number(b"12"), Some((12, &b""[..])));
        assert_eq!(leading_number(b"sys/kernel"), None);
        assert_eq!(leading_number(b"12x/mem"), None);
    }
}
