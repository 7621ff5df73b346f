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
    /// CRIU's dump and restore by way of files, if a criu that works is installed
    Criu,
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

impl Case {
    /// All but the way in which it is moved.
    pub fn situation(&self) -> String {
        format!("{}-{}-{}", size(self.memory), self.link, self.load)
    }
}

/// All combinations: a group for each situation, with the ways to move in it.
pub fn groups(memory: &[u64], links: &[Link], loads: &[Load], modes: &[Mode]) -> Vec<Vec<Case>> {
    let mut groups = Vec::new();
    for &memory in memory {
        for &link in links {
            for &load in loads {
                groups.push(modes.iter().map(|&mode| Case { memory, link, load, mode }).collect());
            }
        }
    }
    groups
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// `1G`, `100M`.
pub fn size(bytes: u64) -> String {
    let shown = pc_cli::show_size(bytes).replace(".0 ", " ").replace(' ', "");
    shown.trim_end_matches("iB").to_owned()
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
        write!(f, "{}-{}", self.situation(), self.mode)
    }
}
