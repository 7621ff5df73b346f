//! A process -> records (into a [`pc_image::Sink`]).
//!
//! The ladder: the preflight names what cannot be moved before anything is touched ([`check()`]); then what is known of the
//! running process is sent, and its memory in rounds ([`dump()`]) unless it is to be stopped at once ([`dump_once`]); it is
//! stopped; its mappings, the pages that are left and all that exists only at the stop are sent; the caller's writer commits; and the original stays stopped, runs on, or is ended ([`Frozen`]). A failure before that
//! leaves it running as before.

#![forbid(unsafe_code)]

mod beside;
mod cgroup;
mod check;
mod controls;
mod costs;
mod dump;
mod epoll;
mod error;
mod eventfd;
mod external;
mod figures;
mod file;
mod foretold;
mod frozen;
mod guardian;
mod hints;
mod inet;
mod inside;
mod keyring;
mod machine;
mod memory;
mod mm_check;
mod mm_settings;
mod namespace;
mod openfile;
mod pages;
mod pipe;
mod procfile;
mod procfs;
mod regular;
mod report;
mod resolve;
mod restart;
mod rounds;
mod session;
mod settings;
mod shared_port;
mod sharing;
mod shm;
mod signal;
mod signalfd;
mod socket;
mod sockopts;
mod stop;
mod task;
mod tcp;
mod thread;
mod timer;
mod timerfd;
mod unix;
mod unsupported;
mod vm_flags;

pub use dump::{dump, dump_once};
pub use error::{CaptureError, Result, Unsupported};
pub use figures::{Figures, RoundFigures, StopFigures};
pub use frozen::{Ending, Frozen};
pub use guardian::{GUARDIAN, Guardian, guard};
pub use machine::clocks;
pub use memory::{How, Present, Span, present};
pub use pages::{Copied, CopyPlan, copy};
pub use pc_sys::fcntl::queued;
pub use report::{Need, Report};
pub use resolve::{Fate, resolve};
pub use settings::{Caller, NetworkLock, Rounds, Settings, Track};
pub use vm_flags::{Becomes, VM_FLAGS, VmFlag};

/// Finds what cannot be moved, without touching the process: [`CaptureError::Unsupported`] names all of it. Else it can be
/// moved, and the report says what to know.
pub fn check(settings: &Settings) -> Result<Report> {
    Ok(check::preflight(settings)?.report)
}
