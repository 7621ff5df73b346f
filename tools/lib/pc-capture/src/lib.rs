//! A process -> records (into a [`pc_image::Sink`]).
//!
//! The ladder: the preflight names what cannot be moved before anything is touched ([`check`]); then what is known of the
//! running process is sent; it is stopped; its mappings, their pages and all that exists only at the stop are sent; the
//! caller's writer commits; and the original stays stopped, runs on, or is ended ([`Frozen`]). A failure before that
//! leaves it running as before.

#![forbid(unsafe_code)]

mod check;
mod dump;
mod epoll;
mod error;
mod eventfd;
mod external;
mod figures;
mod file;
mod inet;
mod inside;
mod machine;
mod memory;
mod openfile;
mod pages;
mod pipe;
mod procfs;
mod regular;
mod restart;
mod signal;
mod signalfd;
mod sockopts;
mod task;
mod thread;
mod timerfd;
mod unix;

pub use dump::{Frozen, Session, dump_once};
pub use error::{CaptureError, Result, Unsupported};
pub use figures::{Figures, RoundFigures};
pub use machine::clocks;
pub use memory::{Present, Span, present};
pub use pages::{Copied, CopyPlan, copy};

/// What to capture, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// The process, in the caller's pid namespace.
    pub pid: i32,
    /// Connected TCP sockets are not taken along: the copy finds them reset.
    pub tcp_close: bool,
}

/// Finds what cannot be moved, without touching the process: [`CaptureError::Unsupported`] names all of it.
pub fn check(settings: &Settings) -> Result<()> {
    check::preflight(settings).map(drop)
}
