//! The benchmark: a redis-server under load moves between two hosts, and clients watch.
//!
//! Hosts are namespaces (see [`host`]); the stream goes over TCP between them, through a relay as
//! `nc` or `socat` would be one ([`relay`]). A client that knows both addresses measures how long
//! nobody answered ([`client`]); a second one reads or writes, and everything that was
//! acknowledged to it is compared afterwards ([`load`]). All modes run side by side in one call,
//! because only ratios within one run on one machine mean something.

#![forbid(unsafe_code)]

mod client;
mod growth;
mod guest;
mod host;
mod load;
mod matrix;
mod relay;
mod report;
mod resp;
mod run;
mod server;
mod svg;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser};
use matrix::{Link, Load, Mode};

/// Move a redis-server under load between two hosts made of namespaces, and measure (root)
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Cli {
    /// Data in the server, in bytes
    #[arg(long, value_delimiter = ',', default_value = "100M,1G", value_parser = pc_cli::parse_size)]
    memory: Vec<u64>,

    /// What a client does meanwhile
    #[arg(long, value_delimiter = ',', default_value = "idle,read,write")]
    load: Vec<Load>,

    /// The line between the hosts
    #[arg(long, value_delimiter = ',', default_value = "open,1gbit")]
    link: Vec<Link>,

    /// How to move
    #[arg(long, value_delimiter = ',', default_value = "pipelined,no-pipeline,once")]
    mode: Vec<Mode>,

    #[command(flatten)]
    how: How,

    /// Also show how the stop grows with memory, threads, mappings and descriptors
    #[arg(long)]
    growth: bool,

    /// Only the growth
    #[arg(long, conflicts_with = "growth")]
    growth_only: bool,

    /// Where to put results.json, table.txt and the pictures
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,

    /// Be a program of a certain size, that answers clients (used by --growth)
    #[arg(long, hide = true)]
    guest: Option<guest::Shape>,
}

/// What holds for all runs.
#[derive(Args, Debug, Clone)]
struct How {
    /// How often each case is run; the table shows the median
    #[arg(long, default_value_t = 3)]
    repeat: usize,

    /// Where the tools are; default: beside this program
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,

    /// Seconds of load before and after the move
    #[arg(long, default_value_t = 1.0)]
    margin: f64,

    /// Give a run up after so many seconds
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
}

fn main() -> ExitCode {
    pc_cli::main("bench", run)
}

fn run() -> anyhow::Result<ExitCode> {
    let cli: Cli = pc_cli::parse();
    if let Some(shape) = cli.guest {
        return guest::run(shape).map(|()| ExitCode::SUCCESS);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run it as root: it makes namespaces");
    }
    std::fs::create_dir_all(&cli.out).with_context(|| format!("cannot make {}", cli.out.display()))?;
    let mut report = report::Report::new(&cli.out);
    if !cli.growth_only {
        for case in matrix::cases(&cli.memory, &cli.link, &cli.load, &cli.mode) {
            report.moved(&case, run::repeat(&case, &cli.how));
        }
    }
    if cli.growth || cli.growth_only {
        for case in growth::cases(&cli.mode) {
            report.grown(&case, growth::repeat(&case, &cli.how));
        }
    }
    report.finish().map(|failed| if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
