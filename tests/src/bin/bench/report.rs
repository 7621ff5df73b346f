//! What comes out: a line as each case ends, a table, JSON, and pictures.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::growth;
use crate::matrix::Case;
use crate::run::{Move, Outcome, Tool};
use crate::svg;

/// Collects results.
pub struct Report {
    out: PathBuf,
    results: Vec<Value>,
    table: String,
    stops: Vec<(String, Vec<(String, u64)>)>,
    failed: bool,
    kind: Option<&'static str>,
}

const MOVED: &str = "case                            downtime    frozen   restore     total      bytes rounds  \
                     cpu s (src dst) peak MiB (src dst)   req/s before    during     after";
const GROWN: &str = "guest                                              mode           frozen   restore     \
                     total      bytes peak MiB (src dst)";

impl Report {
    pub fn new(out: &Path) -> Self {
        let out = out.to_owned();
        Report {
            out,
            results: Vec::new(),
            table: String::new(),
            stops: Vec::new(),
            failed: false,
            kind: None,
        }
    }

    /// Takes the runs of a case: the middle one by downtime goes into the table, all into the JSON.
    pub fn moved(&mut self, case: &Case, runs: Vec<anyhow::Result<Outcome>>) {
        self.heading("moves", MOVED);
        let mut good = self.keep_good(runs);
        good.sort_by_key(|run| run.downtime_us);
        self.results.push(json!({ "case": case, "runs": good }));
        let Some(middle) = good.get(good.len() / 2) else { return };
        self.line(&moved_line(case, middle));
        self.stop(case.to_string(), &middle.moved);
        let picture = svg::latency(&case.to_string(), middle);
        self.write(&format!("latency-{case}.svg"), picture.as_bytes());
    }

    /// Takes the runs of a guest: the middle one by time frozen goes into the table.
    pub fn grown(&mut self, case: &growth::Case, runs: Vec<anyhow::Result<Move>>) {
        self.heading("growth", GROWN);
        let mut good = self.keep_good(runs);
        good.sort_by_key(|run| run.dump.figure("frozen_time"));
        self.results.push(json!({ "guest": case, "runs": good }));
        let Some(middle) = good.get(good.len() / 2) else { return };
        self.line(&grown_line(case, middle));
        self.stop(case.to_string(), middle);
    }

    /// Writes what was collected; says whether a run failed.
    pub fn finish(mut self) -> anyhow::Result<bool> {
        let results = serde_json::to_vec_pretty(&json!({ "machine": machine(), "results": self.results }))?;
        fs::write(self.out.join("results.json"), results).context("results.json")?;
        fs::write(self.out.join("table.txt"), &self.table).context("table.txt")?;
        let picture = svg::stops(&self.stops);
        self.write("stops.svg", picture.as_bytes());
        println!("\nTable, JSON and pictures are in {}", self.out.display());
        Ok(self.failed)
    }

    fn keep_good<T>(&mut self, runs: Vec<anyhow::Result<T>>) -> Vec<T> {
        let good = runs.into_iter().filter_map(|run| match run {
            Ok(good) => Some(good),
            Err(error) => {
                self.failed = true;
                pc_cli::notice("bench", &pc_cli::chain(&error));
                None
            }
        });
        good.collect()
    }

    fn stop(&mut self, name: String, moved: &Move) {
        let phases = phases("", &moved.dump).into_iter().chain(phases("restore: ", &moved.restore)).collect();
        self.stops.push((name, phases));
    }

    fn heading(&mut self, kind: &'static str, heading: &str) {
        if self.kind.replace(kind) != Some(kind) {
            self.line(heading);
        }
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        self.table.push_str(line);
        self.table.push('\n');
    }

    fn write(&mut self, name: &str, bytes: &[u8]) {
        if let Err(error) = fs::write(self.out.join(name), bytes) {
            self.failed = true;
            pc_cli::notice("bench", &format!("{name}: {error}"));
        }
    }
}

/// The parts of the stop, in microseconds: the object `stop` of the statistics.
fn phases(prefix: &str, tool: &Tool) -> Vec<(String, u64)> {
    let Some(Value::Object(parts)) = tool.stats.get("stop") else { return Vec::new() };
    let parts = parts.iter().filter_map(|(name, time)| Some((format!("{prefix}{name}"), time.as_u64()?)));
    parts.collect()
}

fn moved_line(case: &Case, run: &Outcome) -> String {
    let moved = &run.moved;
    let mut line = format!("{:<30} {:>9}", case.to_string(), millis(Some(run.downtime_us)));
    let _ = write!(
        line,
        " {:>9} {:>9} {:>9} {:>10} {:>6}",
        millis(moved.dump.figure("frozen_time")),
        millis(moved.restore.figure("restore_time")),
        millis(Some(moved.total_us)),
        pc_cli::show_size(moved.bytes),
        moved.dump.stats.get("rounds").and_then(Value::as_array).map_or(0, Vec::len),
    );
    let _ =
        write!(line, " {:>9.2} {:>7.2} {}", moved.dump.cpu_seconds, moved.restore.cpu_seconds, peaks(moved));
    let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.0}"));
    let _ = write!(
        line,
        " {:>13} {:>9} {:>9}",
        rate(run.rate_before),
        rate(run.rate_during),
        rate(run.rate_after)
    );
    line
}

fn grown_line(case: &growth::Case, moved: &Move) -> String {
    format!(
        "{:<50} {:<11} {:>9} {:>9} {:>9} {:>10} {}",
        case.shape.to_string(),
        case.mode,
        millis(moved.dump.figure("frozen_time")),
        millis(moved.restore.figure("restore_time")),
        millis(Some(moved.total_us)),
        pc_cli::show_size(moved.bytes),
        peaks(moved)
    )
}

fn peaks(moved: &Move) -> String {
    let mib = |tool: &Tool| tool.peak_memory >> 20;
    format!("{:>12} {:>5}", mib(&moved.dump), mib(&moved.restore))
}

fn millis(micros: Option<u64>) -> String {
    micros.map_or("-".into(), |us| format!("{:.1} ms", Duration::from_micros(us).as_secs_f64() * 1e3))
}

/// What the figures were measured on.
fn machine() -> Value {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
    })
}
