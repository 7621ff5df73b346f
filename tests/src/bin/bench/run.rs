//! One move, measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use serde::Serialize;
use serde_json::Value;
use wait4::Wait4 as _;

use crate::How;
use crate::client::{self, Sample};
use crate::host::Net;
use crate::load::{self, Done, Model};
use crate::matrix::{Case, Mode};
use crate::relay::Relay;
use crate::server;

/// What one tool used.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tool {
    pub cpu_seconds: f64,
    /// The most memory it had resident at a time, in bytes.
    pub peak_memory: u64,
    /// What it wrote with `--stats`.
    pub stats: Value,
}

impl Tool {
    /// A figure at the top level of the statistics.
    pub fn figure(&self, name: &str) -> Option<u64> {
        self.stats.get(name)?.as_u64()
    }
}

/// What was measured of the tools and the stream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Move {
    pub total_us: u64,
    pub bytes: u64,
    pub dump: Tool,
    pub restore: Tool,
}

/// What was measured of a whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub moved: Move,
    /// The longest time without an answer to the watching client.
    pub downtime_us: u64,
    /// Operations a second of the working client.
    pub rate_before: Option<f64>,
    /// From the move's begin until the server stood still.
    pub rate_during: Option<f64>,
    pub rate_after: Option<f64>,
    /// When the move began, on the samples' clock.
    pub began_us: u64,
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

/// Runs a case as often as is wanted.
pub fn repeat(case: &Case, how: &How) -> Vec<anyhow::Result<Outcome>> {
    (0..how.repeat).map(|_| one(case, how).with_context(|| case.to_string())).collect()
}

/// A new folder, and gone again.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join("pc-bench-XXXXXX");
        Ok(Folder(nix::unistd::mkdtemp(&path).context("cannot make a folder")?))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn one(case: &Case, how: &How) -> anyhow::Result<Outcome> {
    let folder = Folder::new()?;
    let net = Net::new(case.link)?;
    let (pid, keys) = net.clients.within(|| server::start(&net.source, &folder.0, case.memory))?;
    let mut model = Model::new(keys);
    let begin = Instant::now();
    let stop = AtomicBool::new(false);
    let margin = Duration::from_secs_f64(how.margin);
    let (samples, done, moved, began, ended) = thread::scope(|scope| {
        let watching = scope.spawn(|| net.clients.within(|| client::watch(Net::service(), begin, &stop)));
        let work = || model.work(case.load, Net::service(), begin, &stop);
        let working = scope.spawn(|| net.clients.within(work));
        thread::sleep(margin);
        let began = begin.elapsed();
        let moved = move_process(&net, &folder.0, pid, case.mode, how);
        let ended = begin.elapsed();
        if moved.is_ok() {
            thread::sleep(margin);
        }
        stop.store(true, Ordering::Relaxed);
        (watching.join(), working.join(), moved, began, ended)
    });
    let moved = moved?;
    let panicked = |_| anyhow!("a client panicked");
    let samples = samples.map_err(panicked)?.context("watching client")?;
    let done = done.map_err(panicked)?.context("working client")?;
    ensure!(samples.last().is_some_and(|last| last.from == 1), "the copy never answered");
    let [_, copy] = Net::service();
    net.clients.within(|| model.compare(copy)).context("after the move")?;
    let (began, ended) = (began.as_micros() as u64, ended.as_micros() as u64);
    Ok(outcome(moved, samples, &done, began, ended))
}

fn outcome(moved: Move, samples: Vec<Sample>, done: &Done, began: u64, ended: u64) -> Outcome {
    let last_there = samples.iter().rfind(|sample| sample.from == 0).map_or(began, |sample| sample.at_us);
    Outcome {
        downtime_us: client::longest_silence(&samples, began),
        rate_before: load::rate(done, 0, began),
        rate_during: load::rate(done, began, last_there),
        rate_after: load::rate(done, ended, u64::MAX),
        began_us: began,
        moved,
        samples,
    }
}

/// `pc-dump PID | relay | pc-restore --detach`
pub fn move_process(net: &Net, folder: &Path, pid: i32, mode: Mode, how: &How) -> anyhow::Result<Move> {
    let tools = how.tools()?;
    let began = Instant::now();
    let mut restore = net.destination.command(tools.join("pc-restore"));
    restore.arg("--detach").args(mode.restore_options());
    let mut restore = Running::start(restore, folder, "restore", true)?;
    let mut dump = net.source.command(tools.join("pc-dump"));
    dump.arg("--tcp-close").args(mode.dump_options()).arg(pid.to_string());
    let mut dump = Running::start(dump, folder, "dump", false)?;
    let (from, to) = (dump.stdout()?, restore.stdin()?);
    let relay = Relay::start(net, from, to)?;
    let (dump, restore) = thread::scope(|scope| {
        let limit = Duration::from_secs(how.limit);
        let dump = scope.spawn(move || dump.finish(limit));
        let restore = restore.finish(limit);
        (dump.join(), restore)
    });
    let total_us = began.elapsed().as_micros() as u64;
    let (dump, restore) = (dump.map_err(|_| anyhow!("a thread panicked"))??, restore?);
    Ok(Move { total_us, bytes: relay.finish()?, dump, restore })
}

/// A tool that runs on a host.
struct Running {
    child: Child,
    name: &'static str,
    stats: PathBuf,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, folder: &Path, name: &'static str, reads: bool) -> anyhow::Result<Self> {
        let stats = folder.join(format!("{name}.json"));
        let log = folder.join(format!("{name}.log"));
        command.args(["--progress", "none", "--stats"]).arg(&stats).stderr(fs::File::create(&log)?);
        command.stdin(if reads { Stdio::piped() } else { Stdio::null() });
        command.stdout(if reads { Stdio::null() } else { Stdio::piped() });
        let child = command.spawn().with_context(|| format!("cannot run pc-{name}"))?;
        Ok(Running { child, name, stats, log })
    }

    fn stdin(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().context("no stdin")
    }

    fn stdout(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().context("no stdout")
    }

    /// Waits for the end, and kills after `limit`.
    fn finish(mut self, limit: Duration) -> anyhow::Result<Tool> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let (ended, timer) = std::sync::mpsc::channel::<()>();
        let watchdog = thread::spawn(move || {
            if timer.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
        });
        let used = self.child.wait4();
        drop(ended);
        let _ = watchdog.join();
        let used = used?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        ensure!(used.status.success(), "pc-{}: {}: {}", self.name, used.status, log.trim());
        let stats = fs::read(&self.stats).with_context(|| format!("pc-{} left no statistics", self.name))?;
        Ok(Tool {
            cpu_seconds: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
            peak_memory: used.rusage.maxrss,
            stats: serde_json::from_slice(&stats).context("statistics")?,
        })
    }
}
