//! Options of links.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;
use pc_cli::{parse_duration, parse_size};

/// Options that both ends of a link have; use with `#[command(flatten)]`.
#[derive(Debug, clap::Args)]
pub struct LinkArgs {
    /// The key that both ends share (pc-recv --new-key makes one)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    /// Speak to other machines without a key: unencrypted, with anybody who is there
    #[arg(long, conflicts_with = "key_file")]
    pub plaintext: bool,
    /// Compress what goes out where that pays, with zstd at LEVEL (1 to 19; 1 without it)
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compress: Option<i32>,
    /// Send no more than so many bytes a second (50M, 12MB)
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// When the connection breaks, go on where it was if it stands again within so long, and the other side wants that too
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    pub reconnect: Duration,
    /// Take the other side for gone after so much silence
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Those of every tool.
    #[command(flatten)]
    pub common: pc_cli::CommonArgs,
}

/// A number of connections, for clap.
///
/// # Errors
/// No number, or one that is not possible.
pub fn parse_streams(text: &str) -> Result<usize, String> {
    let n = text.parse().ok().filter(|n| (1..=pc_link::MAX_STREAMS).contains(n));
    n.ok_or_else(|| format!("a number from 1 to {} is wanted", pc_link::MAX_STREAMS))
}

fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text)
        .and_then(|n| if n >= 1024 { Ok(n) } else { Err("1024 bytes a second or more are wanted".into()) })
}

/// Seconds, or a duration with its unit.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| parse_duration(text))
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(2);
    parse_seconds(text)
        .and_then(|d| if d >= least { Ok(d) } else { Err("2 seconds or more are wanted".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        assert_eq!(parse_streams("64"), Ok(64));
        assert!(parse_streams("0").is_err() && parse_streams("65").is_err() && parse_streams("x").is_err());
        assert_eq!(parse_rate("1024"), Ok(1024));
        assert!(parse_rate("1023").is_err());
        assert_eq!(parse_seconds("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_timeout("2500ms"), Ok(Duration::from_millis(2500)));
        assert!(parse_timeout("1").is_err());
    }
}
