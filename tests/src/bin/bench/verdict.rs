//! What is promised of the figures, and whether this run shows it. Nothing here makes the program fail: times depend
//! on the machine and what else it does.

use serde::Serialize;

use crate::matrix::{Case, Link, Load, Mode, size};
use crate::results::{Results, Row};
use crate::run::Outcome;
use crate::table::millis;
use crate::transfer::Move;

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub what: String,
    /// Which case.
    pub at: String,
    pub measured: String,
    pub wanted: String,
    pub holds: Holds,
}

/// Whether it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holds {
    Yes,
    No,
    /// Nothing is promised.
    Reported,
    /// The run has not measured what is needed.
    Unknown,
}

impl From<Option<bool>> for Holds {
    fn from(holds: Option<bool>) -> Self {
        match holds {
            Some(true) => Holds::Yes,
            Some(false) => Holds::No,
            None => Holds::Unknown,
        }
    }
}

/// The size at which most is promised.
const BASE: u64 = 1 << 30;
/// How many times as long the best published restore takes without a pipeline.
const RESTORE_RATIO: f64 = 38.8;
/// The longest that a restore may take, in microseconds.
const RESTORE_MOST: u64 = 10_000;
/// The part of the probe's rate with which the baseline must fill memory.
const FILL_PART: f64 = 0.7;

/// Judges a run.
pub fn judge(results: &Results) -> Vec<Verdict> {
    let Some(base) = base(results) else { return Vec::new() };
    let mut out = Vec::new();
    for (link, load) in situations(results) {
        let judged = At { results, memory: base, link, load };
        out.push(judged.restore_ratio());
        out.push(judged.restore_time());
    }
    for (link, load) in situations(results).into_iter().filter(|(_, load)| *load == Load::Idle) {
        out.push(At { results, memory: base, link, load }.fill_rate());
    }
    for (link, load) in situations(results) {
        out.push(At { results, memory: base, link, load }.growth());
    }
    for (link, load) in situations(results) {
        let judged = At { results, memory: base, link, load };
        if link == Link::Gigabit {
            out.push(judged.downtime());
        }
        out.push(judged.frozen());
    }
    out
}

/// 1 GiB, or the largest that was measured.
fn base(results: &Results) -> Option<u64> {
    let sizes = || results.moves.iter().map(|row| row.case.memory);
    sizes().find(|size| *size == BASE).or_else(|| sizes().max())
}

fn situations(results: &Results) -> Vec<(Link, Load)> {
    let mut found = Vec::new();
    for Row { case, .. } in &results.moves {
        if !found.contains(&(case.link, case.load)) {
            found.push((case.link, case.load));
        }
    }
    found
}

/// A situation to be judged.
#[derive(Clone, Copy)]
struct At<'a> {
    results: &'a Results,
    memory: u64,
    link: Link,
    load: Load,
}

impl At<'_> {
    fn row(&self, memory: u64, mode: Mode) -> Option<&Row<Case, Outcome>> {
        let is_it = |case: &Case| {
            (case.memory, case.link, case.load, case.mode) == (memory, self.link, self.load, mode)
        };
        self.results.moves.iter().find(|row| is_it(&row.case))
    }

    fn figure(&self, mode: Mode, figure: impl Fn(&Row<Case, Outcome>) -> Option<u64>) -> Option<u64> {
        figure(self.row(self.memory, mode)?)
    }

    fn verdict(&self, what: &str, measured: Option<String>, wanted: &str, holds: Holds) -> Verdict {
        Verdict {
            what: what.to_owned(),
            at: format!("{}-{}-{}", size(self.memory), self.link, self.load),
            measured: measured.unwrap_or_else(|| "-".to_owned()),
            wanted: wanted.to_owned(),
            holds,
        }
    }

    /// How many times shorter a time is with the pipeline than in another mode.
    fn shorter(
        &self,
        what: &str,
        other: Mode,
        least: Option<f64>,
        figure: fn(&Row<Case, Outcome>) -> Option<u64>,
    ) -> Verdict {
        let (ours, theirs) = (self.figure(Mode::Pipelined, figure), self.figure(other, figure));
        let ratio = ours.zip(theirs).map(|(ours, theirs)| theirs as f64 / ours.max(1) as f64);
        let measured = ratio.map(|ratio| format!("{} to {}: {ratio:.1}×", millis(ours), millis(theirs)));
        let holds = match (ratio, least) {
            (Some(_), None) => Holds::Reported,
            (ratio, least) => ratio.zip(least).map(|(ratio, least)| ratio >= least).into(),
        };
        let wanted = least.map_or("-".to_owned(), |least| format!("at least {least}×"));
        self.verdict(&format!("{what}, pipelined to {other}"), measured, &wanted, holds)
    }

    fn restore_ratio(&self) -> Verdict {
        let figure = |row: &Row<_, _>| row.of_move(Move::restoring);
        self.shorter("restore time", Mode::NoPipeline, Some(RESTORE_RATIO), figure)
    }

    fn restore_time(&self) -> Verdict {
        let time = self.figure(Mode::Pipelined, |row| row.of_move(Move::restoring));
        let holds = time.map(|time| time <= RESTORE_MOST).into();
        self.verdict("restore time, pipelined", time.map(|us| millis(Some(us))), "at most 10 ms", holds)
    }

    fn fill_rate(&self) -> Verdict {
        let rate = self.row(self.memory, Mode::NoPipeline).and_then(|row| row.of_move(Move::fill_rate));
        let probe = self.results.probe.map(|probe| probe.small());
        let part = rate.zip(probe).map(|(rate, probe)| rate / probe);
        let measured = rate.zip(probe).zip(part).map(|((rate, probe), part)| {
            format!("{:.2} of {:.2} GB/s: {:.0} %", rate / 1e9, probe / 1e9, part * 100.0)
        });
        let holds = part.map(|part| part >= FILL_PART).into();
        self.verdict("fill rate of no-pipeline to the probe's", measured, "at least 70 %", holds)
    }

    fn growth(&self) -> Verdict {
        let time = |memory| self.row(memory, Mode::Pipelined).and_then(|row| row.of_move(Move::restoring));
        let (large, small) = (time(4 << 30), time(100 << 20));
        let ratio = large.zip(small).map(|(large, small)| large as f64 / small.max(1) as f64);
        let measured = ratio.map(|ratio| format!("{} to {}: {ratio:.2}×", millis(large), millis(small)));
        let verdict = self.verdict(
            "restore time, pipelined, 4G to 100M",
            measured,
            "at most 2×",
            ratio.map(|ratio| ratio <= 2.0).into(),
        );
        Verdict { at: format!("{}-{}", self.link, self.load), ..verdict }
    }

    fn downtime(&self) -> Verdict {
        let least = (self.load != Load::Write).then_some(10.0);
        self.shorter("downtime of the client", Mode::NoPipeline, least, Row::downtime)
    }

    fn frozen(&self) -> Verdict {
        let least = (self.load != Load::Write).then_some(50.0);
        self.shorter("time frozen", Mode::Once, least, |row| row.of_move(Move::frozen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::Tool;
    use serde_json::json;

    fn row(mode: Mode, frozen: u64, restoring: u64) -> Row<Case, Outcome> {
        let tool = |stats| Tool { stats, ..Tool::default() };
        let moved = Move {
            dump: tool(json!({ "frozen_time": frozen })),
            restore: tool(json!({ "restore_time": restoring })),
            ..Move::default()
        };
        let run = Outcome {
            moved,
            downtime_us: frozen + restoring,
            stall_us: 0,
            rate_before: None,
            rate_during: None,
            rate_after: None,
            began_us: 0,
            samples: Vec::new(),
        };
        let case = Case { memory: BASE, link: Link::Open, load: Load::Idle, mode };
        Row { case, runs: vec![run], failures: Vec::new() }
    }

    fn holds(verdicts: &[Verdict], what: &str) -> Holds {
        verdicts.iter().find(|verdict| verdict.what.starts_with(what)).expect(what).holds
    }

    #[test]
    fn promises_are_judged_by_the_figures_of_both_modes() {
        let modes =
            [(Mode::Pipelined, 5_000, 9_000), (Mode::NoPipeline, 5_000, 360_000), (Mode::Once, 1_000, 0)];
        let moves = modes.into_iter().map(|(mode, frozen, restoring)| row(mode, frozen, restoring)).collect();
        let results = Results { moves, ..Results::default() };
        let verdicts = judge(&results);
        assert_eq!(holds(&verdicts, "restore time, pipelined to no-pipeline"), Holds::Yes);
        assert_eq!(holds(&verdicts, "restore time, pipelined"), Holds::Yes);
        assert_eq!(holds(&verdicts, "time frozen"), Holds::No);
        assert_eq!(holds(&verdicts, "fill rate"), Holds::Unknown);
        assert_eq!(holds(&verdicts, "restore time, pipelined, 4G"), Holds::Unknown);
        assert!(judge(&Results::default()).is_empty());
    }
}
