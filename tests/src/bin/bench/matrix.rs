//! Which cases are run.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// How a process is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Rounds, and the copy is built while they arrive
    Pipelined,
    /// Rounds, but the copy is built after Commit: the baseline
    NoPipeline,
    /// Stop and copy
    Once,
}

impl Mode {
    pub fn dump_options(self) -> &'static [&'static str] {
        if self == Mode::Once { &["--once"] } else { &[] }
    }

    pub fn restore_options(self) -> &'static [&'static str] {
        if self == Mode::NoPipeline { &["--no-pipeline"] } else { &[] }
    }
}

/// What a client does while the server moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Only the watching client's PING, a thousand a second
    Idle,
    /// GETs of random keys, at up to a quarter of 1 Gbit/s
    Read,
    /// SETs of random keys, at up to a quarter of 1 Gbit/s
    Write,
}

/// The line between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// As fast as the kernel moves bytes
    Open,
    /// Shaped to 1 Gbit/s by a token bucket
    #[value(name = "1gbit")]
    #[serde(rename = "1gbit")]
    Gigabit,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Data in the server, in bytes.
    pub memory: u64,
    pub link: Link,
    pub load: Load,
    pub mode: Mode,
}

/// All combinations, the modes of one situation next to each other.
pub fn cases(memory: &[u64], links: &[Link], loads: &[Load], modes: &[Mode]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &memory in memory {
        for &link in links {
            for &load in loads {
                cases.extend(modes.iter().map(|&mode| Case { memory, link, load, mode }));
            }
        }
    }
    cases
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

macro_rules! show_by_name {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&name(self))
            }
        }
    )*};
}
show_by_name!(Mode, Load, Link);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = pc_cli::show_size(self.memory).replace(".0 ", " ").replace(' ', "");
        write!(f, "{memory}-{}-{}-{}", self.link, self.load, self.mode)
    }
}
