//! Cgroups and values of /proc that go with a process, or are said to be lost.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use pc_tests::apart::Apart;
use pc_tests::said;

/// A new cgroup that goes with its guard, when nothing is left in it.
struct Group {
    folder: PathBuf,
    /// Its hierarchy, as /proc/PID/cgroup has it.
    controllers: &'static str,
}

impl Group {
    /// In a hierarchy of version 1 or 2, wherever that is mounted here.
    fn new(version: u8, name: &str) -> Group {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let (kind, controllers) = if version == 1 { ("cgroup", "pids") } else { ("cgroup2", "") };
        let at = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let here = words[2] == kind
                && (controllers.is_empty() || words[3].split(',').any(|word| word == controllers));
            here.then(|| words[1].to_owned())
        });
        let at =
            at.unwrap_or_else(|| panic!("no {kind} {controllers} is mounted: hybrid cgroups are needed"));
        let folder = Path::new(&at).join(format!("pc-tests-{}-{name}", std::process::id()));
        fs::create_dir(&folder).expect("a cgroup");
        Group { folder, controllers }
    }

    fn take(&self, id: i32, file: &str) {
        fs::write(self.folder.join(file), id.to_string()).expect("a process");
    }

    fn has(&self, pid: i32) -> bool {
        let all = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
        let name = self.folder.file_name().and_then(|name| name.to_str()).expect("a name");
        all.lines().any(|line| line.ends_with(&format!(":{}:/{name}", self.controllers)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.folder).is_ok();
        if !std::thread::panicking() {
            pc_tests::wait_for("the cgroup is empty", std::time::Duration::from_secs(10), gone);
        } else {
            gone();
        }
    }
}

#[test]
fn cgroups_are_kept_chosen_or_said_to_be_others() {
    for version in [1, 2] {
        let (was, other) = (Group::new(version, "was"), Group::new(version, "other"));
        let guest = Apart::start(&[]);
        was.take(guest.guest.pid(), "cgroup.procs");
        let (copy, said) = guest.dumped(&[]).restored(&[]);
        assert!(!was.has(copy.guest.pid()) && said.contains("it was in the cgroup"), "{said}");
        was.take(copy.guest.pid(), "cgroup.procs");
        let (copy, said) = copy.dumped(&[]).restored(&["--cgroup", "keep"]);
        assert!(was.has(copy.guest.pid()), "{said}");
        let (copy, _) =
            copy.dumped(&[]).restored(&["--new-pid-ns", "--cgroup", &other.folder.display().to_string()]);
        assert!(other.has(copy.guest.pid()));
        let image = copy.dumped(&[]);
        fs::remove_dir(&other.folder).expect("an empty cgroup");
        image.refused(&["--cgroup", "keep"], &["no such cgroup"]);
        image.refused(&["--cgroup", "/nowhere"], &["/nowhere", "no such cgroup"]);
        fs::create_dir(&other.folder).expect("a cgroup");
    }
}

#[test]
fn a_thread_in_a_cgroup_of_its_own_is_refused_by_name() {
    let group = Group::new(1, "thread");
    let guest = Apart::start(&["thread", "cgroup"]);
    let pid = guest.guest.pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let tids = tasks.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    group.take(tids.into_iter().find(|tid| *tid != pid).expect("a second thread"), "tasks");
    let output = pc_tests::run("pc-dump", &["--check", &guest.guest.arg()]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("in another cgroup"), "{}", said(&output));
}

#[test]
fn the_login_of_a_process_and_the_nice_value_of_its_autogroup_are_the_same_in_the_copy() {
    for way in [["loginuid", "1234"], ["autogroup", "7"]] {
        let guest = Apart::start(&way);
        let found = guest.findings();
        assert!(found.contains(&way.join(" ")), "{found}");
        let (copy, _) = guest.dumped(&[]).restored(&["--new-pid-ns"]);
        assert_eq!(copy.findings(), found);
        let (copy, _) = copy.dumped(&[]).restored(&[]);
        assert_eq!(copy.findings(), found);
    }
}
