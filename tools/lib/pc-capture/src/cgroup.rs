//! Cgroups of a process: see cgroups(7).

use std::io;

use pc_image::{Cgroup, CgroupPath};

use crate::error::{Context, Result, Unsupported};
use crate::procfs;
use crate::task::TASK;

/// The cgroups in which the process is, but for roots; `None` if it is in no other.
pub(crate) fn look(pid: i32) -> Result<Option<Cgroup>> {
    let text = procfs::read(pid, "cgroup").of(pid, "reading its cgroups")?;
    let paths = parse(&text);
    Ok((!paths.is_empty()).then_some(Cgroup { task: TASK, paths }))
}

/// `5:cpu,cpuacct:/a/b`
fn parse(text: &str) -> Vec<CgroupPath> {
    let line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?.to_owned(), parts.next()?);
        (path != "/").then(|| CgroupPath { controllers, path: path.into() })
    };
    text.lines().filter_map(line).collect()
}

/// Names the thread's cgroups that are not its process's.
pub(crate) fn apart(pid: i32, tid: i32) -> io::Result<Option<Unsupported>> {
    let (own, leaders) = (procfs::read(pid, &format!("task/{tid}/cgroup"))?, procfs::read(pid, "cgroup")?);
    let what =
        || format!("its thread {tid} is in another cgroup than its first thread, which cannot be moved yet");
    Ok((own != leaders).then(|| Unsupported::new(pid, None, what())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_that_are_not_roots_are_read() {
        let paths = parse("9:name=systemd:/\n4:cpu,cpuacct:/a:b\n0::/user.slice\n");
        let path =
            |controllers: &str, path: &str| CgroupPath { controllers: controllers.into(), path: path.into() };
        assert_eq!(paths, [path("cpu,cpuacct", "/a:b"), path("", "/user.slice")]);
    }
}
