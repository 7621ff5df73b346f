//! What was measured, and the middle of it.

use serde::Serialize;

use crate::growth;
use crate::matrix::Case;
use crate::probe::Probe;
use crate::run::Outcome;
use crate::transfer::Move;

/// The runs of one case.
#[derive(Debug, Serialize)]
pub struct Row<C, R> {
    pub case: C,
    pub runs: Vec<R>,
    /// Why runs failed.
    pub failures: Vec<String>,
}

impl<C, R> Row<C, R> {
    pub fn new(case: C) -> Self {
        Row { case, runs: Vec::new(), failures: Vec::new() }
    }

    /// The median of a figure over the runs that have it.
    pub fn median<T: PartialOrd + Copy>(&self, figure: impl Fn(&R) -> Option<T>) -> Option<T> {
        let mut found: Vec<T> = self.runs.iter().filter_map(figure).collect();
        found.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        found.get(found.len() / 2).copied()
    }

    /// The run that has the median of a figure.
    pub fn middle<T: PartialOrd + Copy>(&self, figure: impl Fn(&R) -> Option<T>) -> Option<&R> {
        let median = self.median(&figure)?;
        self.runs.iter().find(|run| figure(run).is_some_and(|value| value == median))
    }
}

impl<C> Row<C, Outcome> {
    /// The median of a figure of the tools.
    pub fn of_move<T: PartialOrd + Copy>(&self, figure: impl Fn(&Move) -> Option<T>) -> Option<T> {
        self.median(|run| figure(&run.moved))
    }

    /// The median of what the watching client saw, in microseconds.
    pub fn downtime(&self) -> Option<u64> {
        self.median(|run| Some(run.downtime_us))
    }
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub machine: Machine,
    /// Why there are no rows of CRIU, if there are none.
    pub criu: Option<String>,
    pub probe: Option<Probe>,
    pub moves: Vec<Row<Case, Outcome>>,
    pub growth: Vec<Row<growth::Case, Move>>,
}

impl Results {
    /// Whether a run failed.
    pub fn failed(&self) -> bool {
        let moves = self.moves.iter().any(|row| !row.failures.is_empty());
        moves || self.growth.iter().any(|row| !row.failures.is_empty())
    }
}

/// What the figures were measured on.
#[derive(Debug, Default, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// The load average of the last minute before the first run.
    pub load: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let kib: u64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&cpu, "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory: kib << 10,
            load: read("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_each_figure_by_itself() {
        let row = Row { case: (), runs: vec![(3, 10), (1, 30), (2, 20)], failures: Vec::new() };
        assert_eq!(row.median(|run| Some(run.0)), Some(2));
        assert_eq!(row.median(|run| (run.1 > 10).then_some(run.1)), Some(30));
        assert_eq!(row.middle(|run| Some(run.0)), Some(&(2, 20)));
        assert_eq!(row.median(|_| None::<u64>), None);
    }
}
