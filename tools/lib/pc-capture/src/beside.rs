//! What is sent beside a task: its namespaces, its cgroups, and values of /proc that are not those of its birth.

use std::path::Path;

use pc_image::{Cgroup, NamespaceKind, Record, Sink, TaskNamespaces, TaskProc};

use crate::error::{Context, Result, Unsupported, unsupported};
use crate::task::TASK;
use crate::{cgroup, namespace, procfs};

/// All of it, as it is now; the default is what nothing is sent of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    namespaces: Option<TaskNamespaces>,
    cgroup: Option<Cgroup>,
    values: Option<TaskProc>,
}

impl Beside {
    pub fn look(pid: i32) -> Result<Self> {
        let (namespaces, cgroup) = (namespace::look(pid)?, cgroup::look(pid)?);
        Ok(Self { namespaces, cgroup, values: values(pid)? })
    }

    /// Puts what was not sent yet; `told` is what was, `None` before the first time. Namespaces that have changed are refused: the
    /// destination has entered others by then.
    pub fn put(&self, pid: i32, told: Option<&Self>, sink: &mut dyn Sink) -> Result<()> {
        if told.is_some_and(|told| told.namespaces != self.namespaces) {
            return unsupported(
                pid,
                None,
                "it has entered another namespace meanwhile; it can be moved anew",
            );
        }
        let nothing = Self::default();
        let told = told.unwrap_or(&nothing);
        if let Some(namespaces) = self.namespaces.clone().filter(|_| told.namespaces.is_none()) {
            sink.record(&Record::TaskNamespaces(namespaces))?;
        }
        if self.cgroup != told.cgroup {
            let roots = Cgroup { task: TASK, paths: Vec::new() };
            sink.record(&Record::Cgroup(self.cgroup.clone().unwrap_or(roots)))?;
        }
        if self.values != told.values {
            sink.record(&Record::TaskProc(self.values.clone().unwrap_or(AS_BY_BIRTH)))?;
        }
        Ok(())
    }
}

/// Names what of it cannot be moved.
pub(crate) fn refused(pid: i32) -> Result<Vec<Unsupported>> {
    let unsupported = |what: String| Unsupported::new(pid, None, what);
    let mut bad = Vec::new();
    let root = std::fs::read_link(format!("/proc/{pid}/root")).of(pid, "reading its root")?;
    let mounts =
        namespace::look(pid)?.is_some_and(|all| all.others.iter().any(|it| it.kind == NamespaceKind::Mnt));
    if mounts && root != Path::new("/") {
        let root = root.display();
        bad.push(unsupported(format!(
            "its root directory is {root} in a mount namespace of its own, which cannot be moved yet"
        )));
    }
    bad.extend(labels(pid)?.into_iter().map(unsupported));
    Ok(bad)
}

/// Labels of security modules that are not ours, and those that it has chosen for what it will make: see
/// proc_pid_attr(5). Confinement by a profile would be lost.
fn labels(pid: i32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in ["current", "exec", "fscreate", "keycreate", "sockcreate"] {
        // No file, or EINVAL: no module has such a label.
        let Ok(its) = procfs::read(pid, &format!("attr/{name}")) else { continue };
        let ours = std::fs::read_to_string(format!("/proc/self/attr/{name}")).unwrap_or_default();
        let (its, ours) = (its.trim_end_matches(['\0', '\n']), ours.trim_end_matches(['\0', '\n']));
        if its != ours {
            found.push(format!(
                "its security label ({name}) is “{its}”, ours is “{ours}”, and labels cannot be moved yet"
            ));
        }
    }
    Ok(found)
}

const AS_BY_BIRTH: TaskProc = TaskProc { task: TASK, autogroup_nice: 0, loginuid: u32::MAX };

/// What can be set in /proc/PID and no other record has. A kernel may lack either file.
fn values(pid: i32) -> Result<Option<TaskProc>> {
    let text = |name: &str| match procfs::read(pid, name) {
        Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(String::new()),
        text => text.of(pid, format_args!("reading its {name}")),
    };
    let autogroup_nice = nice(&text("autogroup")?).unwrap_or(0);
    let loginuid = text("loginuid")?.trim().parse().unwrap_or(u32::MAX);
    let values = TaskProc { task: TASK, autogroup_nice, loginuid };
    Ok((values != AS_BY_BIRTH).then_some(values))
}

/// `/autogroup-25 nice -5`; the file is empty where the kernel does no grouping.
fn nice(text: &str) -> Option<i32> {
    text.trim().rsplit_once(" nice ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nice_value_of_an_autogroup_is_read() {
        assert_eq!(nice("/autogroup-25 nice -5\n"), Some(-5));
        assert_eq!(nice(""), None);
    }
}
