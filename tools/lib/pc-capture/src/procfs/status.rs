//! /proc/PID/status: see proc_pid_status(5).

/// The lines that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Name.
    pub name: String,
    /// Process that the thread belongs to.
    pub tgid: i32,
    /// Pid of the tracer, 0 = none.
    pub tracer: i32,
    /// Real, effective, saved and file system user ids.
    pub uids: [u32; 4],
    /// The same for groups.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Pids in the namespaces from the reader's to the process's own.
    pub ns_pid: Vec<i32>,
    /// Process group in the same.
    pub ns_pgid: Vec<i32>,
    /// Session in the same.
    pub ns_sid: Vec<i32>,
    /// A kernel thread.
    pub kthread: bool,
    /// umask(2).
    pub umask: Option<u32>,
    /// Anonymous memory in bytes, resident and swapped out.
    pub anonymous: u64,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub caps: [u64; 5],
    /// no_new_privs.
    pub no_new_privs: bool,
    /// seccomp mode.
    pub seccomp: u32,
    /// Bits of an address that count (`ARCH_GET_UNTAG_MASK`): all, without tags.
    pub untag_mask: u64,
    /// Size of the address space in bytes.
    pub vm_size: u64,
    /// The thread has a shadow stack.
    pub shadow_stack: bool,
    /// Number of threads.
    pub threads: u32,
}

impl Status {
    /// Parses the file.
    pub fn parse(text: &str) -> Self {
        let mut status = Self { untag_mask: u64::MAX, ..Self::default() };
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            status.line(key, value.trim());
        }
        status
    }

    fn line(&mut self, key: &str, value: &str) {
        let number = || value.parse().unwrap_or(0);
        let hex = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            "Name" => self.name = value.to_owned(),
            "Tgid" => self.tgid = number(),
            "TracerPid" => self.tracer = number(),
            "Uid" => self.uids = four(value),
            "Gid" => self.gids = four(value),
            "Groups" => self.groups = numbers(value),
            "NSpid" => self.ns_pid = numbers(value),
            "NSpgid" => self.ns_pgid = numbers(value),
            "NSsid" => self.ns_sid = numbers(value),
            "Kthread" => self.kthread = value == "1",
            "Umask" => self.umask = u32::from_str_radix(value, 8).ok(),
            "RssAnon" | "VmSwap" => self.anonymous += bytes(value),
            "VmSize" => self.vm_size = bytes(value),
            "untag_mask" => {
                self.untag_mask = u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap_or(0);
            }
            "x86_Thread_features" => self.shadow_stack = value.contains("shstk"),
            "CapInh" => self.caps[0] = hex(),
            "CapPrm" => self.caps[1] = hex(),
            "CapEff" => self.caps[2] = hex(),
            "CapBnd" => self.caps[3] = hex(),
            "CapAmb" => self.caps[4] = hex(),
            "NoNewPrivs" => self.no_new_privs = value == "1",
            "Seccomp" => self.seccomp = value.parse().unwrap_or(0),
            "Threads" => self.threads = value.parse().unwrap_or(0),
            _ => {}
        }
    }

    /// Reads that of process or thread `pid`.
    pub fn read(pid: i32) -> std::io::Result<Self> {
        super::read(pid, "status").map(|text| Self::parse(&text))
    }

    /// Its id in its own pid namespace.
    pub fn own_pid(&self) -> i32 {
        self.ns_pid.last().copied().unwrap_or(0)
    }
}

/// A figure in kB.
fn bytes(value: &str) -> u64 {
    let kib = value.strip_suffix("kB").and_then(|n| n.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn numbers<T: std::str::FromStr>(value: &str) -> Vec<T> {
    value.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn four(value: &str) -> [u32; 4] {
    let mut ids = [0; 4];
    for (id, number) in ids.iter_mut().zip(numbers(value)) {
        *id = number;
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_capabilities_and_namespaced_pids_are_read() {
        let status = Status::parse(
            "Name:\ta: b\nUmask:\t0027\nTgid:\t70\nNSpid:\t700\t5\nUid:\t1\t2\t3\t4\nGroups:\t10 20 \nRssAnon:\t    12 kB\n\
             CapEff:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nKthread:\t0\n",
        );
        assert_eq!((status.name.as_str(), status.umask, status.own_pid()), ("a: b", Some(0o27), 5));
        assert_eq!((status.uids, status.groups.as_slice()), ([1, 2, 3, 4], [10, 20].as_slice()));
        assert_eq!((status.anonymous, status.caps[2], status.seccomp), (12288, 0x1ff_feff_ffff, 2));
        assert!(status.no_new_privs && !status.kthread);
    }
}
