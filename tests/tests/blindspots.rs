//! What tracking cannot see: memory that a device fills while the page already counts as unwritten.
//!
//! The guest reads with O_DIRECT from a disk so slow that a read is under way when pages are marked as unwritten: a loop
//! device, throttled for the guest's control group. Without a compare at the stop its copy finds old content.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, dump_halted, end_original, program, said, wait_for};

const PAGE: u64 = 4096;
/// Pages of one read.
const PAGES: u64 = 256;
/// How long a read takes, about.
const READ: Duration = Duration::from_millis(300);
/// Pages that are there to be sent.
const BALLAST: u64 = 4096;
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// One slow disk at a time.
static ONE: Mutex<()> = Mutex::new(());

fn tool(name: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|err| format!("{name}: {err}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{name}: {}", said(&output).trim())) }
}

/// A file system on a loop device, slow for those in its control group. All of it goes with the guard.
struct SlowDisk {
    folder: Folder,
    device: String,
    group: PathBuf,
}

impl SlowDisk {
    /// `None`, and a line that says so, where the machine lets no such thing be made.
    fn new() -> Option<SlowDisk> {
        let skip = |why: &str| {
            println!("SKIP O_DIRECT into tracked memory: {why}");
            None
        };
        if !Path::new(BLKIO).join("blkio.throttle.read_bps_device").exists() {
            return skip("no blkio control groups (cgroup v1) to slow a disk with");
        }
        let folder = Folder::new();
        let image = folder.file("disk");
        File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("a file");
        let image = image.to_str().expect("a path");
        let device = match tool("losetup", &["--find", "--show", image]) {
            Ok(device) => device,
            Err(why) => return skip(&format!("no loop device: {why}")),
        };
        let group = Path::new(BLKIO).join(folder.file("").file_name().expect("a name"));
        let disk = SlowDisk { folder, device, group };
        tool("mkfs.ext4", &["-q", "-O", "^has_journal", &disk.device]).expect("a file system");
        fs::create_dir(disk.mount()).expect("a folder");
        tool("mount", &[&disk.device, disk.mount().to_str().expect("a path")]).expect("a mount");
        disk.fill();
        disk.slow_down();
        Some(disk)
    }

    fn mount(&self) -> PathBuf {
        self.folder.file("mount")
    }

    fn data(&self) -> PathBuf {
        self.mount().join("data")
    }

    /// Words that tell their place, three times as many as one read takes.
    fn fill(&self) {
        let bytes: Vec<u8> = (0..3 * PAGES * PAGE / 8).flat_map(|n| (n * 8).to_le_bytes()).collect();
        let mut file = File::create(self.data()).expect("a file");
        file.write_all(&bytes).and_then(|()| file.sync_all()).expect("written");
    }

    fn slow_down(&self) {
        let name = self.device.strip_prefix("/dev/").expect("a device");
        let number = fs::read_to_string(format!("/sys/block/{name}/dev")).expect("its number");
        fs::create_dir(&self.group).expect("a control group");
        let rate = PAGES * PAGE * 1000 / READ.as_millis() as u64;
        let rule = format!("{} {rate}", number.trim());
        fs::write(self.group.join("blkio.throttle.read_bps_device"), rule).expect("a limit");
    }

    /// Makes the disk slow for a guest.
    fn slow_for(&self, guest: &Guest) {
        fs::write(self.group.join("cgroup.procs"), guest.arg()).expect("a member");
    }

    /// Lets it be in our own control group again, which a copy of it will be in too.
    fn no_longer_slow_for(&self, guest: &Guest) {
        let groups = fs::read_to_string("/proc/self/cgroup").expect("our groups");
        let ours = groups.lines().find_map(|line| line.split_once(":blkio:/")).map_or("", |(_, path)| path);
        fs::write(Path::new(BLKIO).join(ours).join("cgroup.procs"), guest.arg()).expect("a member");
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = tool("umount", &["--lazy", self.mount().to_str().unwrap_or_default()]);
        let _ = tool("losetup", &["--detach", &self.device]);
        // Members that have just ended may still be counted.
        for _ in 0..500 {
            match fs::remove_dir(&self.group) {
                Err(err) if err.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

/// The guest, with its disk.
struct Reader {
    guest: Guest,
    report: PathBuf,
    disk: SlowDisk,
}

impl Reader {
    fn start(disk: SlowDisk, args: &[&str]) -> Reader {
        let report = disk.folder.file("report");
        let mut command = Command::new(program("guest-direct"));
        command.arg(disk.data()).arg(&report).args([PAGES.to_string(), BALLAST.to_string()]).args(args);
        let reader = Reader { guest: Guest::start(&mut command), report, disk };
        reader.disk.slow_for(&reader.guest);
        let ready = reader.beside("ready");
        wait_for("the guest's memory", Duration::from_secs(10), || ready.exists());
        reader
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.report.with_extension(what)
    }

    /// How many reads were begun.
    fn reads(&self) -> u64 {
        let beat = fs::read_to_string(self.beside("beat")).unwrap_or_default();
        beat.trim().parse().unwrap_or(0)
    }

    /// Waits until another read has begun, and is under way for long.
    fn begins_to_read(&self) {
        let before = self.reads();
        wait_for("another read", Duration::from_secs(20), || {
            self.is_well();
            self.reads() > before
        });
        std::thread::sleep(READ / 10);
    }

    fn is_well(&self) {
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        assert!(report.is_empty(), "{report}");
    }

    /// Its copy, which takes its pid, goes on on the slow disk too.
    fn restored(mut self, image: &Path) -> Reader {
        self.disk.no_longer_slow_for(&self.guest);
        end_original(&mut self.guest, image);
        self.guest = pc_tests::restored(image, &[]);
        self.disk.slow_for(&self.guest);
        self
    }

    /// Ends it with its last look.
    fn end(mut self) {
        self.begins_to_read();
        self.guest.signal(Signal::SIGTERM);
        let code = self.guest.ended(Duration::from_secs(20));
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        assert!(code == Some(0) && report.starts_with("OK"), "exit {code:?}: {report}");
    }
}

fn dumping(reader: &Reader, args: &[&str]) -> Command {
    let mut dump = Command::new(program("pc-dump"));
    dump.args(["--track=uffd", "--downtime-limit=0"]).args(args).arg(reader.guest.arg());
    dump.stdin(Stdio::null()).stderr(Stdio::piped());
    dump
}

fn told(output: &Output, word: &str) {
    let text = said(output);
    assert!(output.status.success() && text.contains(word), "{}: no {word:?} in {text}", output.status);
}

#[test]
fn what_a_device_writes_behind_the_back_of_tracking_is_in_the_copy() {
    let _one = ONE.lock();
    let Some(disk) = SlowDisk::new() else { return };
    let image = disk.folder.file("image");
    let mut reader = Reader::start(disk, &[]);
    for _ in 0..3 {
        reader.begins_to_read();
        let out = File::create(&image).expect("an image");
        let output = dumping(&reader, &["--rounds=3"]).stdout(out).output().expect("pc-dump runs");
        told(&output, "it uses O_DIRECT");
        reader = reader.restored(&image);
        reader.begins_to_read();
    }
    reader.end();
}

/// Lets pc-dump send half of the ballast, and makes the guest open its file and begin to read before the rest is taken.
fn opened_during_the_first_round(rounds: &str, word: &str) {
    let _one = ONE.lock();
    let Some(disk) = SlowDisk::new() else { return };
    let image = disk.folder.file("image");
    let reader = Reader::start(disk, &["--late"]);
    let output = dump_halted(&mut dumping(&reader, &[rounds]), &image, BALLAST * PAGE / 2, || {
        reader.guest.signal(Signal::SIGUSR1);
        reader.begins_to_read();
    });
    told(&output, word);
    reader.restored(&image).end();
}

#[test]
fn a_device_that_begins_to_write_after_the_first_round_is_provided_for() {
    opened_during_the_first_round("--rounds=3", "it has begun to use O_DIRECT");
}

#[test]
fn a_device_that_begins_to_write_just_before_the_stop_is_provided_for() {
    opened_during_the_first_round("--rounds=1", "it has just begun to use O_DIRECT");
}
