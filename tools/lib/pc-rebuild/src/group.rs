//! The control groups that limit our memory, and what they leave.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::RebuildError;

/// Below so many bytes of room it is looked whether what is still to come fits.
const LITTLE: u64 = 8 << 20;

/// A control group with a limit, of either version.
#[derive(Debug)]
pub struct Group {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// Names of what can be taken back of what is used: files that are cached.
    cached: [&'static str; 2],
}

/// Those that limit us: our own and all above it.
pub fn limited() -> Vec<Group> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().flat_map(groups).filter(|group| group.figures().is_some()).collect()
}

/// The groups that a line of /proc/self/cgroup names, if they are those of memory.
fn groups(line: &str) -> Vec<Group> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, names, cached) = if controllers.is_empty() {
        let hybrid = "/sys/fs/cgroup/unified";
        let root = if Path::new(hybrid).exists() { hybrid } else { "/sys/fs/cgroup" };
        (root, ["memory.max", "memory.current"], ["inactive_file ", "active_file "])
    } else if controllers.split(',').any(|c| c == "memory") {
        let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
        ("/sys/fs/cgroup/memory", names, ["total_inactive_file ", "total_active_file "])
    } else {
        return Vec::new();
    };
    let group = |dir: &Path| {
        let dir = Path::new(root).join(dir.strip_prefix("/").unwrap_or(dir));
        let [limit, usage] = names.map(|name| dir.join(name));
        Group { limit, usage, stat: dir.join("memory.stat"), cached }
    };
    Path::new(path).ancestors().map(group).collect()
}

impl Group {
    /// What it may use and what it uses.
    fn figures(&self) -> Option<(u64, u64)> {
        // Version 1 has a number for "no limit", too.
        const NONE: u64 = 1 << 60;
        let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let limit = number(&self.limit).filter(|limit| *limit < NONE)?;
        Some((limit, number(&self.usage)?))
    }

    fn cached(&self) -> u64 {
        let stat = fs::read_to_string(&self.stat).unwrap_or_default();
        let bytes = |line: &str| {
            let value = self.cached.iter().find_map(|name| line.strip_prefix(name))?;
            value.trim().parse::<u64>().ok()
        };
        stat.lines().filter_map(bytes).sum()
    }
}

/// Bytes that these groups still allow.
pub fn room(groups: &[Group]) -> Option<u64> {
    let room = |group: &Group| {
        let (limit, usage) = group.figures()?;
        Some(limit.saturating_sub(usage.saturating_sub(group.cached())))
    };
    groups.iter().filter_map(room).min()
}

/// Refuses to go on where what is still to come does not fit any more: else the kernel would make room by killing us.
pub fn judge(groups: &[Group], to_come: u64) -> Result<(), RebuildError> {
    let is_little = |group: &Group| group.figures().is_some_and(|(limit, usage)| usage + LITTLE > limit);
    if !groups.iter().any(is_little) {
        return Ok(());
    }
    match room(groups) {
        Some(room) if room < to_come.min(LITTLE) => Err(RebuildError::Unsupported(format!(
            "memory is short here: {to_come} bytes are still to come, our cgroup allows {room} more"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_memory_are_found_by_their_line() {
        let limits =
            |line| groups(line).into_iter().map(|g| g.limit.display().to_string()).collect::<Vec<_>>();
        let root = "/sys/fs/cgroup/memory";
        let name = "memory.limit_in_bytes";
        assert_eq!(
            limits("4:memory:/a/b"),
            [format!("{root}/a/b/{name}"), format!("{root}/a/{name}"), format!("{root}/{name}")]
        );
        assert!(limits("0::/a").iter().all(|limit| limit.ends_with("memory.max")));
        assert!(limits("3:cpuset:/a").is_empty() && limits("").is_empty());
    }
}
