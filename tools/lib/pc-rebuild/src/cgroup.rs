//! Cgroups that the process is put into while it is a husk, so that what it takes is charged there: see cgroups(7).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pc_image::Cgroup;

use crate::error::{Context, RebuildError};
use crate::settings::{Cgroups, Notices, Settings};

/// A hierarchy of cgroups that is mounted here.
struct Hierarchy {
    /// Where.
    mount: PathBuf,
    /// What of it is to be seen there.
    root: String,
    version2: bool,
    /// Words of the file system's options: its controllers are among them.
    options: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controllers: &str) -> bool {
        match controllers {
            "" => self.version2,
            all => {
                !self.version2 && all.split(',').all(|one| self.options.iter().any(|option| option == one))
            }
        }
    }

    /// Where a cgroup of it is.
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        let inside = !below.components().any(|part| part == std::path::Component::ParentDir);
        inside.then(|| self.mount.join(below))
    }
}

fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let line = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, at) = (words.next()?, words.next()?);
        let mut words = file_system.split(' ');
        let (kind, _, options) = (words.next()?, words.next()?, words.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Hierarchy {
            mount: at.into(),
            root: root.to_owned(),
            version2: kind == "cgroup2",
            options: options.split(',').map(str::to_owned).collect(),
        })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// Controllers and path of each hierarchy in which we are.
fn own() -> io::Result<Vec<(String, String)>> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// The path that a process had in a hierarchy.
fn path_of(cgroup: Option<&Cgroup>, controllers: &str) -> String {
    let path = cgroup.and_then(|all| all.paths.iter().find(|path| path.controllers == controllers));
    path.map_or_else(|| "/".to_owned(), |path| String::from_utf8_lossy(&path.path).into_owned())
}

/// The folders that the process is to be put into. They have to be there: limits are not moved, and a cgroup without its
/// limits would be none.
pub fn folders(cgroup: Option<&Cgroup>, settings: &Settings) -> Result<Vec<PathBuf>, RebuildError> {
    let folders = match &settings.cgroups {
        Cgroups::None => return Ok(Vec::new()),
        Cgroups::At(folders) => folders.clone(),
        Cgroups::Keep => kept(cgroup)?,
    };
    match folders.iter().find(|folder| !folder.join("cgroup.procs").exists()) {
        Some(folder) => {
            Err(RebuildError::Unsupported(format!("{}: there is no such cgroup here", folder.display())))
        }
        None => Ok(folders),
    }
}

fn kept(cgroup: Option<&Cgroup>) -> Result<Vec<PathBuf>, RebuildError> {
    let here = hierarchies(&fs::read_to_string("/proc/self/mountinfo").what("reading our mounts")?);
    let own = own().what("reading our cgroups")?;
    let mut wanted: Vec<String> = own.iter().map(|(controllers, _)| controllers.clone()).collect();
    wanted.extend(cgroup.iter().flat_map(|all| &all.paths).map(|path| path.controllers.clone()));
    wanted.sort();
    wanted.dedup();
    let mut folders = Vec::new();
    for controllers in wanted {
        let path = path_of(cgroup, &controllers);
        if own.iter().any(|(ours, at)| *ours == controllers && *at == path) {
            continue;
        }
        let folder = here.iter().filter(|it| it.has(&controllers)).find_map(|it| it.folder(&path));
        folders.push(folder.ok_or_else(|| {
            let name = if controllers.is_empty() { "version 2" } else { &controllers };
            RebuildError::Unsupported(format!(
                "its cgroup {path} of {name} cannot be kept: it is not to be seen here"
            ))
        })?);
    }
    Ok(folders)
}

/// Puts a process into its cgroups.
pub fn enter(pid: i32, folders: &[PathBuf]) -> Result<(), RebuildError> {
    for folder in folders {
        let done = fs::write(folder.join("cgroup.procs"), pid.to_string());
        done.what_of(|| format!("putting the process into the cgroup {}", folder.display()))?;
    }
    Ok(())
}

/// Says that cgroups were not kept, where that makes a difference.
pub fn notice(cgroup: Option<&Cgroup>, settings: &Settings, notices: Notices<'_>) {
    if !matches!(settings.cgroups, Cgroups::None) {
        return;
    }
    // What cannot be read cannot be compared; then the process is where we are, too.
    let own = own().unwrap_or_default();
    let lost: Vec<String> = cgroup
        .iter()
        .flat_map(|all| &all.paths)
        .filter(|path| !own.iter().any(|(ours, at)| *ours == path.controllers && at.as_bytes() == path.path))
        .map(|path| String::from_utf8_lossy(&path.path).into_owned())
        .collect();
    if !lost.is_empty() {
        let lost = lost.join(", ");
        notices(&format!(
            "it was in the cgroup {lost}; here it is in ours (--cgroup keep, or --cgroup PATH)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_cgroup_is_found_by_its_hierarchy_and_never_outside_of_it() {
        let all = hierarchies(
            "35 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             36 30 0:33 /slice /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
             37 30 0:34 / /sys/fs/cgroup/systemd rw - cgroup none rw,xattr,name=systemd\n\
             38 30 0:35 / /tmp rw - tmpfs tmpfs rw\n",
        );
        let folder = |controllers: &str, path: &str| {
            all.iter().find(|it| it.has(controllers)).and_then(|it| it.folder(path))
        };
        assert_eq!(folder("cpu,cpuacct", "/a"), Some("/sys/fs/cgroup/cpu,cpuacct/a".into()));
        assert_eq!(folder("", "/slice/a"), Some("/sys/fs/cgroup/unified/a".into()));
        assert_eq!(folder("", "/other"), None);
        assert_eq!(folder("name=systemd", "/../x"), None);
        assert_eq!(folder("memory", "/a"), None);
    }
}
