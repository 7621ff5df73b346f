//! Results as tables in Markdown.

use std::fmt::Write as _;

use crate::growth;
use crate::matrix::{Case, size};
use crate::results::{Machine, Results, Row};
use crate::run::Outcome;
use crate::transfer::{Move, Tool};
use crate::verdict::{Holds, Verdict};

/// The whole document.
pub fn document(results: &Results, verdicts: &[Verdict]) -> String {
    let mut out = machine(&results.machine);
    if let Some(why) = &results.criu {
        let _ = writeln!(out, "\nNo rows of CRIU: {why}.");
    }
    if !results.moves.is_empty() {
        out += "\n## A redis-server moves\n\n";
        out += &moves(&results.moves);
    }
    if !results.growth.is_empty() {
        out += "\n## What the stop grows with\n\n";
        out += &growth(&results.growth);
    }
    if results.probe.is_some() || !results.moves.is_empty() {
        out += "\n## How fast memory is filled\n\n";
        out += &filling(results);
    }
    if !verdicts.is_empty() {
        out += "\n## What must hold\n\n";
        out += &judged(verdicts);
    }
    out
}

fn machine(machine: &Machine) -> String {
    let Machine { kernel, cpu, cpus, memory, load } = machine;
    format!(
        "{cpus} CPUs ({cpu}), {} memory, Linux {kernel}; load before: {load}.\n",
        pc_cli::show_size(*memory)
    )
}

/// A table with its heading; all columns but the first `words` hold numbers.
fn table(heading: &[&str], words: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|", heading.join(" | "));
    for column in 0..heading.len() {
        out += if column < words { " --- |" } else { " ---: |" };
    }
    out.push('\n');
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out
}

const MOVES: [&str; 19] = [
    "data",
    "link",
    "load",
    "how",
    "downtime",
    "stall",
    "frozen",
    "restore",
    "total",
    "bytes",
    "rounds",
    "CPU source",
    "CPU dest.",
    "peak source",
    "peak dest.",
    "req/s before",
    "during",
    "after",
    "runs",
];

fn moves(rows: &[Row<Case, Outcome>]) -> String {
    table(&MOVES, 4, rows.iter().map(moved))
}

fn moved(row: &Row<Case, Outcome>) -> Vec<String> {
    let case = &row.case;
    let mut cells =
        vec![size(case.memory), case.link.to_string(), case.load.to_string(), case.mode.to_string()];
    cells.extend([
        millis(row.downtime()),
        millis(row.median(|run| Some(run.stall_us))),
        millis(row.of_move(Move::frozen)),
        millis(row.of_move(Move::restoring)),
        millis(row.of_move(|moved| Some(moved.total_us))),
        bytes(row.of_move(|moved| Some(moved.bytes))),
        number(row.of_move(Move::rounds)),
    ]);
    cells.extend(used(|figure| row.of_move(figure)));
    let rate = |figure: fn(&Outcome) -> Option<f64>| {
        row.median(figure).map_or("-".into(), |rate| format!("{rate:.0}"))
    };
    cells.extend([rate(|run| run.rate_before), rate(|run| run.rate_during), rate(|run| run.rate_after)]);
    cells.push(runs(row));
    cells
}

const GROWTH: [&str; 15] = [
    "memory",
    "threads",
    "mappings",
    "descriptors",
    "how",
    "frozen",
    "restore",
    "total",
    "bytes",
    "rounds",
    "CPU source",
    "CPU dest.",
    "peak source",
    "peak dest.",
    "runs",
];

/// Mappings and descriptors are those beside the ones that every program has.
fn growth(rows: &[Row<growth::Case, Move>]) -> String {
    table(&GROWTH, 5, rows.iter().map(grown))
}

fn grown(row: &Row<growth::Case, Move>) -> Vec<String> {
    let shape = &row.case.shape;
    let mut cells = vec![
        size(shape.memory),
        shape.threads.to_string(),
        format!("+{}", shape.mappings),
        format!("+{}", shape.files),
        row.case.mode.to_string(),
        millis(row.median(Move::frozen)),
        millis(row.median(Move::restoring)),
        millis(row.median(|moved| Some(moved.total_us))),
        bytes(row.median(|moved| Some(moved.bytes))),
        number(row.median(Move::rounds)),
    ];
    cells.extend(used(|figure| row.median(figure)));
    cells.push(runs(row));
    cells
}

/// Processor time in milliseconds and the most memory, of both sides.
fn used(median: impl Fn(fn(&Move) -> Option<u64>) -> Option<u64>) -> [String; 4] {
    fn cpu(tool: &Tool) -> Option<u64> {
        Some((tool.cpu_seconds * 1e6) as u64)
    }
    let seconds = |us: Option<u64>| us.map_or("-".into(), |us| format!("{:.2} s", us as f64 / 1e6));
    [
        seconds(median(|moved| cpu(&moved.dump))),
        seconds(median(|moved| cpu(&moved.restore))),
        bytes(median(|moved| Some(moved.dump.peak_memory))),
        bytes(median(|moved| Some(moved.restore.peak_memory))),
    ]
}

fn filling(results: &Results) -> String {
    let gigabytes = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
    let mut rows = Vec::new();
    if let Some(probe) = &results.probe {
        let mut row = |what: &str, rate| rows.push(vec![format!("probe: {what}"), gigabytes(rate)]);
        row("pages of 4 KiB, one process", probe.small_one);
        row("pages of 4 KiB, two processes at a time", probe.small_two);
        row("huge pages, one process", probe.huge_one);
    }
    for row in results.moves.iter().filter(|row| row.case.mode == crate::matrix::Mode::NoPipeline) {
        let rate = row.of_move(Move::fill_rate);
        rows.extend(rate.map(|rate| vec![row.case.to_string(), gigabytes(rate)]));
    }
    table(&["what", "reached"], 1, rows.into_iter())
}

fn judged(verdicts: &[Verdict]) -> String {
    let rows = verdicts.iter().map(|verdict| {
        let holds = match verdict.holds {
            Holds::Yes => "yes",
            Holds::No => "**no**",
            Holds::Reported => "reported",
            Holds::Unknown => "not measured",
        };
        vec![
            verdict.what.clone(),
            verdict.at.clone(),
            verdict.measured.clone(),
            verdict.wanted.clone(),
            holds.into(),
        ]
    });
    table(&["what", "where", "measured", "wanted", "holds"], 5, rows)
}

/// How many runs there were, and how many of them failed.
fn runs<C, R>(row: &Row<C, R>) -> String {
    match row.failures.len() {
        0 => row.runs.len().to_string(),
        failed => format!("{}, {failed} failed", row.runs.len() + failed),
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn bytes(value: Option<u64>) -> String {
    value.map_or("-".into(), pc_cli::show_size)
}

/// Microseconds as milliseconds.
pub fn millis(micros: Option<u64>) -> String {
    micros.map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1e3))
}
