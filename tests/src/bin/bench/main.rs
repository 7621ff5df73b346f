//! The benchmark: a redis-server under load moves between two hosts, and clients watch.
//!
//! Hosts are namespaces (see [`host`]); the stream goes over TCP between them, through a relay as
//! `nc` or `socat` would be one ([`relay`]). A client that knows both addresses measures how long
//! nobody answered ([`client`]); a second one reads or writes, and everything that was
//! acknowledged to it is compared afterwards ([`load`]). All modes run side by side in one call,
//! because only ratios within one run on one machine mean something. Beside them stands how fast
//! memory can be filled on the machine at all ([`probe`]). What is promised is judged in [`verdict`].

#![forbid(unsafe_code)]

mod cleanup;
mod client;
mod criu;
mod growth;
mod guest;
mod host;
mod load;
mod matrix;
mod probe;
mod relay;
mod report;
mod resp;
mod results;
mod run;
mod server;
mod svg;
mod table;
mod transfer;
mod usage;
mod verdict;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, ValueEnum};
use matrix::{Link, Load, Mode};
use report::Report;
use results::Row;

/// Move a redis-server under load between two hosts made of namespaces, and measure (root)
///
/// Prints tables in Markdown and writes them, results.json and pictures to a folder. Ends with 1 if a move failed or
/// the data differed, else with 0, whatever the times are.
#[derive(Parser, Debug)]
#[command(name = "bench", max_term_width = 100)]
struct Cli {
    /// A short run: 100M, idle and writing, unshaped, each case once, guests up to 100M
    #[arg(long)]
    quick: bool,

    /// Data in the server, in bytes [default: 100M,1G,4G]
    #[arg(long, value_delimiter = ',', value_parser = pc_cli::parse_size)]
    memory: Vec<u64>,

    /// What a client does meanwhile [default: idle,read,write]
    #[arg(long, value_delimiter = ',')]
    load: Vec<Load>,

    /// The line between the hosts [default: 1gbit,open]
    #[arg(long, value_delimiter = ',')]
    link: Vec<Link>,

    /// How to move [default: pipelined,no-pipeline,once, and criu where a criu that works is installed]
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,

    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "probe,moves,growth")]
    part: Vec<Part>,

    /// A guest to see the growth with, such as threads=100,mappings=1000,files=10,memory=1G; can be given again
    /// [default: steps in each]
    #[arg(long)]
    shape: Vec<guest::Shape>,

    /// How often each case is run; tables show the median [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeat: Option<u64>,

    #[command(flatten)]
    how: How,

    /// Where to put results.md, results.json and the pictures
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,

    /// Bytes with which to find out how fast memory can be filled
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = pc_cli::parse_size)]
    probe_memory: u64,

    /// Be a program of a certain size, that answers clients (for the growth)
    #[arg(long, hide = true)]
    guest: Option<guest::Shape>,

    /// Be a process whose memory is filled (for the probe)
    #[arg(long, hide = true)]
    probed: Option<u64>,

    /// ... with huge pages
    #[arg(long, hide = true)]
    probed_huge: bool,

    /// Run a command and leave in this file what it used
    #[arg(long, hide = true, requires = "command")]
    measured: Option<PathBuf>,

    #[arg(hide = true, last = true, requires = "measured")]
    command: Vec<String>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// How fast memory can be filled on this machine
    Probe,
    /// Moves of a redis-server
    Moves,
    /// How the stop grows with memory, threads, mappings and descriptors
    Growth,
}

/// What holds for all runs.
#[derive(Args, Debug, Clone)]
struct How {
    /// Where the tools are; default: beside this program
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,

    /// Seconds of load before and after the move
    #[arg(long, default_value_t = 1.0)]
    margin: f64,

    /// Give a tool up after so many seconds
    #[arg(long, default_value_t = 180)]
    limit: u64,
}

impl How {
    /// Where the tools are.
    fn tools(&self) -> anyhow::Result<PathBuf> {
        if let Some(bin) = &self.bin {
            return Ok(bin.canonicalize()?);
        }
        let own = std::env::current_exe()?;
        Ok(own.parent().context("no folder of its own")?.to_owned())
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }
}

impl Cli {
    /// Puts in what was not given. Says why there is nothing of CRIU, unless there is.
    fn complete(&mut self) -> anyhow::Result<Option<String>> {
        let quick = self.quick;
        fill(&mut self.memory, if quick { &[100 << 20] } else { &[100 << 20, 1 << 30, 4 << 30] });
        fill(
            &mut self.load,
            if quick { &[Load::Idle, Load::Write] } else { &[Load::Idle, Load::Read, Load::Write] },
        );
        fill(&mut self.link, if quick { &[Link::Open] } else { &[Link::Gigabit, Link::Open] });
        fill(&mut self.shape, &growth::steps(quick));
        let usable = criu::usable();
        if self.mode.contains(&Mode::Criu) {
            usable.as_ref().map_err(|why| anyhow::anyhow!("--mode criu: {why}"))?;
        }
        if self.mode.is_empty() {
            self.mode = vec![Mode::Pipelined, Mode::NoPipeline, Mode::Once];
            self.mode.extend(usable.is_ok().then_some(Mode::Criu));
        }
        Ok(if self.mode.contains(&Mode::Criu) {
            None
        } else {
            Some(usable.err().unwrap_or("not wanted".into()))
        })
    }

    fn repeat(&self) -> usize {
        self.repeat.unwrap_or(if self.quick { 1 } else { 3 }) as usize
    }
}

fn fill<T: Copy>(list: &mut Vec<T>, defaults: &[T]) {
    if list.is_empty() {
        list.extend(defaults);
    }
}

fn main() -> ExitCode {
    pc_cli::main("bench", run)
}

fn run() -> anyhow::Result<ExitCode> {
    let mut cli: Cli = pc_cli::parse();
    if let Some(shape) = cli.guest {
        return guest::run(shape).map(|()| ExitCode::SUCCESS);
    }
    if let Some(bytes) = cli.probed {
        return probe::be_filled(bytes, cli.probed_huge).map(|()| ExitCode::SUCCESS);
    }
    if let Some(file) = cli.measured {
        return usage::run(file, &cli.command);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run it as root: it makes namespaces");
    }
    cleanup::on_signals()?;
    let no_criu = cli.complete()?;
    let mut report = Report::new(&cli.out, no_criu)?;
    measure(&cli, &mut report)?;
    report.finish().map(|failed| if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(cli: &Cli, report: &mut Report) -> anyhow::Result<()> {
    let (how, repeat) = (&cli.how, cli.repeat());
    if cli.part.contains(&Part::Probe) {
        report.probed(probe::measure(cli.probe_memory, repeat)?);
    }
    if cli.part.contains(&Part::Moves) {
        for group in matrix::groups(&cli.memory, &cli.link, &cli.load, &cli.mode) {
            let once = |case: &_| run::once(case, how);
            report.moved(side_by_side(group, repeat, once, report::show_outcome));
        }
    }
    if cli.part.contains(&Part::Growth) {
        for group in growth::groups(&cli.shape, &cli.mode) {
            let once = |case: &_| growth::once(case, how);
            report.grown(side_by_side(group, repeat, once, report::show_move));
        }
    }
    Ok(())
}

/// Runs the cases of a group in turn, again and again, so that what else the machine does hits all alike.
fn side_by_side<C: Display, R>(
    group: Vec<C>,
    repeat: usize,
    once: impl Fn(&C) -> anyhow::Result<R>,
    show: fn(&R) -> String,
) -> Vec<Row<C, R>> {
    let mut rows: Vec<_> = group.into_iter().map(Row::new).collect();
    for _ in 0..repeat {
        for row in &mut rows {
            let outcome = once(&row.case);
            report::take(row, outcome, show);
        }
    }
    rows
}
