//! Numbers that may differ between a process and its copy and mean the same: pids, and inodes of what has no name.

use std::collections::HashMap;
use std::fs;

/// A group or session led from outside: the copy gets another.
pub const OUTSIDE: &str = "led from outside";

/// What has a number of its own wherever it is made.
pub const NAMELESS: [&str; 3] = ["/memfd:", "/dev/zero (deleted)", "/SYSV"];

/// The process's threads by the number that they have here, and its unnamed inodes.
pub struct Who {
    /// Thread ids as this process's pid namespace sees them, with those that the threads themselves see.
    threads: Vec<(i32, i32)>,
    inodes: HashMap<String, usize>,
}

impl Who {
    /// Of a process.
    pub fn of(pid: i32) -> Who {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
        let mut threads: Vec<_> = tasks
            .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
            .map(|tid: i32| (tid, own_id(tid)))
            .collect();
        threads.sort_unstable();
        Who { threads, inodes: HashMap::new() }
    }

    /// All threads: the number here, and their own.
    pub fn threads(&self) -> &[(i32, i32)] {
        &self.threads
    }

    /// A thread as a subject of readings.
    pub fn thread(&self, tid: i32) -> String {
        format!("thread {}", self.id(tid))
    }

    /// A number of this pid namespace as the process itself sees it, or that it is outside.
    pub fn id(&self, outer: i32) -> String {
        match self.threads.iter().find(|(tid, _)| *tid == outer) {
            Some((_, own)) => own.to_string(),
            None if outer == 0 => "0".to_owned(),
            None => "outside".to_owned(),
        }
    }

    /// A group or session as the process itself numbers it: its own, or one led from outside.
    pub fn led(&self, own: &str) -> String {
        let leader = self.threads.iter().any(|(_, id)| id.to_string() == own);
        if leader { own.to_owned() } else { OUTSIDE.to_owned() }
    }

    /// An inode that only its number tells apart, by the order of its first mention.
    pub fn inode(&mut self, number: &str) -> String {
        let next = self.inodes.len() + 1;
        format!("#{}", self.inodes.entry(number.to_owned()).or_insert(next))
    }

    /// An inode that was mentioned as one without a name, else the number itself.
    pub fn known_inode(&self, number: &str) -> String {
        self.inodes.get(number).map_or_else(|| number.to_owned(), |n| format!("#{n}"))
    }
}

/// The number that a thread has in its own pid namespace.
fn own_id(tid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|ids| ids.split_whitespace().last()?.parse().ok()).unwrap_or(tid)
}
