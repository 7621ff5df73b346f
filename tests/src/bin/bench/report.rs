//! What comes out: a line as each run ends, and at the end tables, JSON and pictures.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use crate::growth;
use crate::matrix::Case;
use crate::probe::Probe;
use crate::results::{Machine, Results, Row};
use crate::run::Outcome;
use crate::svg;
use crate::table::{self, millis};
use crate::transfer::Move;
use crate::verdict;

/// Collects results.
pub struct Report {
    out: PathBuf,
    results: Results,
}

impl Report {
    pub fn new(out: &Path, criu: Option<String>) -> anyhow::Result<Self> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let results = Results { machine: Machine::this(), criu, ..Results::default() };
        Ok(Report { out: out.to_owned(), results })
    }

    pub fn probed(&mut self, probe: Probe) {
        say(&format!("memory can be filled with {:.2} GB/s", probe.small() / 1e9));
        self.results.probe = Some(probe);
    }

    /// Takes all runs of a situation.
    pub fn moved(&mut self, rows: Vec<Row<Case, Outcome>>) {
        self.results.moves.extend(rows);
    }

    /// Takes all runs of a guest.
    pub fn grown(&mut self, rows: Vec<Row<growth::Case, Move>>) {
        self.results.growth.extend(rows);
    }

    /// Writes and prints what was collected; says whether a run failed.
    pub fn finish(self) -> anyhow::Result<bool> {
        let verdicts = verdict::judge(&self.results);
        let all = json!({ "results": self.results, "verdicts": verdicts });
        self.write("results.json", &serde_json::to_string_pretty(&all)?)?;
        let document = table::document(&self.results, &verdicts);
        self.write("results.md", &document)?;
        self.pictures()?;
        println!("{document}");
        println!("These tables, results.json and pictures are in {}", self.out.display());
        Ok(self.results.failed())
    }

    fn pictures(&self) -> anyhow::Result<()> {
        let mut stops = Vec::new();
        for group in self.results.moves.chunk_by(|a, b| a.case.situation() == b.case.situation()) {
            let middle = group.iter().map(|row| (row, row.middle(|run| Some(run.downtime_us))));
            let runs: Vec<_> =
                middle.filter_map(|(row, run)| Some((row.case.mode.to_string(), run?))).collect();
            let situation = group[0].case.situation();
            self.write(&format!("latency-{situation}.svg"), &svg::latency(&situation, &runs))?;
            stops.extend(group.iter().filter_map(|row| {
                let run = row.middle(|run| run.moved.frozen())?;
                Some((row.case.to_string(), run.moved.stop()))
            }));
        }
        self.write("stop-moves.svg", &svg::stops(&stops))?;
        let grown = self.results.growth.iter();
        let grown: Vec<_> =
            grown.filter_map(|row| Some((row.case.to_string(), row.middle(Move::frozen)?.stop()))).collect();
        self.write("stop-growth.svg", &svg::stops(&grown))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Takes the outcome of one run of a case, and says it.
pub fn take<C: std::fmt::Display, R>(
    row: &mut Row<C, R>,
    outcome: anyhow::Result<R>,
    show: fn(&R) -> String,
) {
    match outcome {
        Ok(run) => {
            say(&format!("{}: {}", row.case, show(&run)));
            row.runs.push(run);
        }
        Err(error) => {
            let why = pc_cli::chain(&error);
            say(&format!("{}: failed: {why}", row.case));
            row.failures.push(why);
        }
    }
}

pub fn show_outcome(run: &Outcome) -> String {
    format!("{} without an answer, {}", millis(Some(run.downtime_us)), show_move(&run.moved))
}

pub fn show_move(moved: &Move) -> String {
    let (frozen, restoring) = (millis(moved.frozen()), millis(moved.restoring()));
    format!("frozen {frozen}, restore {restoring}, total {}", millis(Some(moved.total_us)))
}

fn say(text: &str) {
    pc_cli::notice("bench", text);
}
