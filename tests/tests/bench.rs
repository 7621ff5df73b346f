//! The benchmark works: tiny sizes, and no word about times. Needs root, redis-server and iproute2.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_tests::{Folder, program, said, wait_for};
use serde_json::Value;

const TINY: [&str; 6] = ["--memory", "4M", "--link", "1gbit", "--repeat", "1"];

/// A benchmark whose temporary files go to a place of their own, so that what it leaves behind can be found.
struct Bench {
    folder: Folder,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { folder: Folder::new() };
        fs::create_dir(bench.temporary()).expect("a folder");
        bench
    }

    fn temporary(&self) -> PathBuf {
        self.folder.file("temporary")
    }

    fn out(&self, name: &str) -> String {
        fs::read_to_string(self.folder.file("out").join(name)).expect(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("bench"));
        command.args(TINY).args(args).arg("--out").arg(self.folder.file("out"));
        command.env("TMPDIR", self.temporary()).stdin(Stdio::null());
        command
    }

    /// Fails if a file or a process is left.
    fn left_nothing(&self) {
        let files: Vec<_> = fs::read_dir(self.temporary()).expect("the folder").flatten().collect();
        assert!(files.is_empty(), "{files:?}");
        wait_for("the end of all processes", Duration::from_secs(5), || {
            processes(&self.temporary()).is_empty()
        });
    }
}

/// Processes that were started with this folder for temporary files, or work in it.
fn processes(temporary: &Path) -> Vec<String> {
    let name = temporary.to_str().expect("UTF-8").as_bytes();
    let names_it = |process: &fs::DirEntry| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        let works_in = fs::read_link(process.path().join("cwd")).unwrap_or_default();
        environment.windows(name.len()).any(|part| part == name) || works_in.starts_with(temporary)
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten().filter(names_it);
    all.map(|process| process.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_way_to_move_is_measured_and_shown() {
    let bench = Bench::new();
    let modes = ["pipelined", "no-pipeline", "once"];
    let shape = ["--shape", "threads=3,mappings=20,files=7", "--margin", "0.2"];
    let load = ["--load", "write", "--probe-memory", "1M", "--mode", "pipelined,no-pipeline,once"];
    let output = bench.command(&[&load[..], &shape].concat()).output().expect("the benchmark starts");
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    bench.left_nothing();
    let all: Value = serde_json::from_str(&bench.out("results.json")).expect("JSON");
    let results = &all["results"];
    assert!(results["probe"]["small_one"].as_f64().expect("a rate") > 0.0);
    for (kind, least) in [("moves", 4 << 20), ("growth", 1 << 20)] {
        for (mode, row) in modes.iter().zip(results[kind].as_array().expect("rows")) {
            assert_eq!(row["case"]["mode"], *mode);
            check(&row["runs"][0], least);
        }
    }
    let during = &results["moves"][0]["runs"][0]["rate_before"];
    assert!(during.as_f64().expect("a rate") > 0.0, "{during}");
    let verdicts = all["verdicts"].as_array().expect("verdicts");
    assert!(verdicts.iter().any(|verdict| verdict["at"] == "4M-1gbit-write"), "{verdicts:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains(&bench.out("results.md")), "{printed}");
    for row in ["| 4M | 1gbit | write | once |", "| 1M | 3 | +20 | +7 | pipelined |", "## What must hold"] {
        assert!(printed.contains(row), "{printed}");
    }
    for picture in ["latency-4M-1gbit-write.svg", "stop-moves.svg", "stop-growth.svg"] {
        let svg = bench.out(picture);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(modes.iter().all(|mode| svg.contains(mode)), "{svg}");
    }
}

/// A run has all figures, and they can be true.
fn check(run: &Value, least: u64) {
    let figure =
        |path: &str| run.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {run}"));
    assert!(figure("/bytes") > least, "{run}");
    assert!(figure("/dump/peak_memory") > 0 && figure("/restore/peak_memory") > 0, "{run}");
    let (frozen, restoring) = (figure("/dump/stats/frozen_time"), figure("/restore/stats/restore_time"));
    assert!(frozen > 0 && restoring > 0 && figure("/total_us") > frozen.max(restoring), "{run}");
    assert!(run.pointer("/downtime_us").is_none_or(|time| time.as_u64() > Some(0)), "{run}");
}

#[test]
fn interrupted_in_the_middle_it_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bench = Bench::new();
        // So long a load that nothing else can end it.
        let args = ["--part", "moves", "--load", "write", "--mode", "once", "--margin", "60"];
        let mut command = bench.command(&args[..]);
        let mut child =
            Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        let begun = || {
            let mut folders = fs::read_dir(bench.temporary()).expect("the folder").flatten();
            folders.any(|folder| folder.path().join("redis.pid").exists())
        };
        wait_for("a server", Duration::from_secs(10), begun);
        assert!(processes(&bench.temporary()).len() > 3);
        kill(Pid::from_raw(child.0.id() as i32), signal).expect("it is there");
        let mut code = None;
        wait_for("the end", Duration::from_secs(10), || {
            code = child.0.try_wait().expect("a child").map(|status| status.code());
            code.is_some()
        });
        assert_eq!(code, Some(Some(128 + signal as i32)));
        bench.left_nothing();
    }
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
