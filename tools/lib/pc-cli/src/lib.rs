//! Manners that all pc-tools share.
//!
//! A tool's `main` is `pc_cli::main("pc-x", run)`: [`main`] prints an error's chain once, as
//! `tool: what: why`, and turns it into one of the [`Exit`] codes. [`parse`] reads the arguments,
//! [`input()`] and [`output()`] open the stream (never a terminal), [`Progress`] talks on stderr,
//! [`write_stats`] leaves figures in a file, and [`signals`] turns SIGINT and SIGTERM into a flag.
//!
//! SIGPIPE is ignored in every Rust program, so a reader that goes away is an ordinary `EPIPE`
//! error here; `std::process::Command` gives children the default action back.

#![forbid(unsafe_code)]

mod args;
mod exit;
mod hooks;
mod input;
mod outlet;
mod output;
mod progress;
mod report;
pub mod signals;
mod stats;
mod units;

pub use args::{CommonArgs, parse, parse_from};
pub use exit::{Exit, WithExit, coded, exit_of, in_a_line};
pub use hooks::{Hook, Running, Undo};
pub use input::{CompressedInput, Input, WINDOW_LOG_MAX, input, input_until, input_within};
pub use outlet::{Output, output_until};
pub use output::{Pending, create_private, output, write_private};
pub use progress::{Progress, ProgressMode, Round};
pub use report::{chain, main, notice};
pub use stats::write_stats;
pub use units::{parse_duration, parse_size, parse_timeout, show_duration, show_rate, show_size};
