//! `pc-dump PID | relay | pc-restore --detach`, measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;

use crate::How;
use crate::criu;
use crate::host::Net;
use crate::matrix::Mode;
use crate::relay::Relay;
use crate::usage::{self, Usage};

const PAGE: u64 = 4096;

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

    /// A part of the stop.
    fn part(&self, name: &str) -> Option<u64> {
        self.stats.get("stop")?.get(name)?.as_u64()
    }
}

/// What was measured of the tools and the stream.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Move {
    /// From the start of both tools to the end of both.
    pub total_us: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    pub dump: Tool,
    pub restore: Tool,
}

impl Move {
    /// How long the original stood still before it had been sent.
    pub fn frozen(&self) -> Option<u64> {
        self.dump.figure("frozen_time")
    }

    /// From the last byte to running.
    pub fn restoring(&self) -> Option<u64> {
        self.restore.figure("restore_time")
    }

    pub fn rounds(&self) -> Option<u64> {
        Some(self.dump.stats.get("rounds")?.as_array()?.len() as u64)
    }

    /// Mappings and pages after the last byte: what descriptors, threads and release leave of the restore time.
    pub fn filling(&self) -> Option<u64> {
        let other: Option<u64> =
            ["descriptors", "threads", "release"].map(|name| self.restore.part(name)).into_iter().sum();
        Some(self.restoring()?.saturating_sub(other?))
    }

    /// Bytes a second with which memory was filled, for a copy that was built after the last byte.
    pub fn fill_rate(&self) -> Option<f64> {
        let bytes = self.restore.figure("pages_restored")? * PAGE;
        Some(bytes as f64 * 1e6 / self.filling()?.max(1) as f64)
    }

    /// The parts of the time in which nobody answers, in their order.
    pub fn stop(&self) -> Vec<(String, u64)> {
        let names = ["freeze", "scan", "registers", "descriptors", "copy", "write"];
        let mut parts: Vec<_> = names
            .iter()
            .filter_map(|name| Some((format!("source: {name}"), self.dump.part(name)?)))
            .collect();
        // Behind the last byte; the rest of the applying is hidden behind the receiving.
        parts.extend(self.filling().map(|time| ("destination: apply".to_owned(), time)));
        let there = ["descriptors", "threads", "release"];
        parts.extend(
            there.iter().filter_map(|name| Some((format!("destination: {name}"), self.restore.part(name)?))),
        );
        parts
    }
}

/// Moves a process of the source.
pub fn run(net: &Net, folder: &Path, pid: i32, mode: Mode, how: &How) -> anyhow::Result<Move> {
    let (dump_options, restore_options): (&[&str], &[&str]) = match mode {
        Mode::Pipelined => (&[], &[]),
        Mode::NoPipeline => (&[], &["--no-pipeline"]),
        Mode::Once => (&["--once"], &[]),
        Mode::Criu => return criu::run(net, folder, pid, how),
    };
    let tools = how.tools()?;
    let began = Instant::now();
    let mut restore = net.destination.command(tools.join("pc-restore"));
    restore.arg("--detach").args(restore_options);
    let mut restore = Running::with_stats(restore, folder, "pc-restore", Side::Reads)?;
    let mut dump = net.source.command(tools.join("pc-dump"));
    dump.arg("--tcp-close").args(dump_options).arg(pid.to_string());
    let mut dump = Running::with_stats(dump, folder, "pc-dump", Side::Writes)?;
    let (from, to) = (dump.stdout()?, restore.stdin()?);
    let relay = Relay::start(net, from, to)?;
    let (dump, restore) = thread::scope(|scope| {
        let limit = how.limit();
        let dump = scope.spawn(move || dump.finish(limit));
        let restore = restore.finish(limit);
        (dump.join(), restore)
    });
    let total_us = began.elapsed().as_micros() as u64;
    let dump = dump.map_err(|_| anyhow!("a thread panicked"))?;
    let (dump, restore) = both(dump, restore)?;
    Ok(Move { total_us, bytes: relay.finish()?, dump, restore })
}

/// Where both failed, both are told: one of them is the cause.
fn both<T>(dump: anyhow::Result<T>, restore: anyhow::Result<T>) -> anyhow::Result<(T, T)> {
    match (dump, restore) {
        (Err(dump), Err(restore)) => Err(anyhow!("{}; {}", pc_cli::chain(&dump), pc_cli::chain(&restore))),
        (dump, restore) => Ok((dump?, restore?)),
    }
}

/// Which end of the stream a tool has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Reads,
    Writes,
    Neither,
}

/// A tool that runs on a host.
pub struct Running {
    child: Child,
    name: &'static str,
    /// Where it leaves its figures.
    stats: Option<PathBuf>,
    /// Where what it used is left.
    usage: PathBuf,
    log: PathBuf,
}

impl Running {
    /// Starts a tool of ours.
    fn with_stats(
        mut command: Command,
        folder: &Path,
        name: &'static str,
        side: Side,
    ) -> anyhow::Result<Self> {
        let stats = folder.join(format!("{name}.json"));
        command.args(["--progress", "none", "--stats"]).arg(&stats);
        let running = Running::start(command, folder, name, side)?;
        Ok(Running { stats: Some(stats), ..running })
    }

    /// Starts any tool.
    pub fn start(command: Command, folder: &Path, name: &'static str, side: Side) -> anyhow::Result<Self> {
        let (log, usage) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.usage")));
        let mut measured = usage::measured(&command, &usage)?;
        let piped = |piped: bool| if piped { Stdio::piped() } else { Stdio::null() };
        measured.stdin(piped(side == Side::Reads)).stdout(piped(side == Side::Writes));
        measured.stderr(fs::File::create(&log)?);
        let child = measured.spawn().with_context(|| format!("cannot run {name}"))?;
        Ok(Running { child, name, stats: None, usage, log })
    }

    fn stdin(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().context("no stdin")
    }

    fn stdout(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().context("no stdout")
    }

    /// Waits for the end; a tool that is not through after `limit` is given up.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<Tool> {
        let pid = Pid::from_raw(self.child.id() as i32);
        let (through, timer) = channel::<()>();
        let watchdog = thread::spawn(move || {
            if timer.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        });
        let ended = self.child.wait();
        drop(through);
        let _ = watchdog.join();
        let status = ended?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        ensure!(status.success(), "{}: {status}: {}", self.name, log.trim());
        let usage: Usage = serde_json::from_slice(&fs::read(&self.usage).context("what a tool used")?)?;
        Ok(Tool {
            cpu_seconds: usage.cpu_seconds,
            peak_memory: usage.peak_memory,
            stats: self.stats.map_or(Ok(Value::Null), |path| read_stats(&path))?,
        })
    }
}

fn read_stats(path: &Path) -> anyhow::Result<Value> {
    let stats = fs::read(path).with_context(|| format!("no figures in {}", path.display()))?;
    serde_json::from_slice(&stats).context("figures")
}
