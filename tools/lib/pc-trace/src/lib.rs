//! Another process held by ptrace: all of its threads stopped, remote system calls singly and in batches, and guards
//! that put everything back.
//!
//! Two kinds of process are held. The **source** ([`Tracees`]) is somebody's production: its registers, signal masks and
//! memory are put back as they were, and a tracer killed at any moment leaves a target that heals itself (see
//! [`Remote`]). A **husk** ([`Husk`]) is a copy in the making: it dies with its tracer.
//!
//! ptrace belongs to one thread of the tracer, so what is held is neither `Send` nor `Sync`.

mod area;
mod call;
mod error;
mod held;
mod husk;
mod mend;
mod remote;
mod sigframe;
mod target;
mod tracees;
pub mod xstate;

pub use call::Call;
pub use error::TraceError;
pub use husk::{Husk, Scratch};
pub use mend::{call_in_front, is_int_80};
pub use pc_sys::ptrace::Regs;
pub use remote::{Remote, without_our_code};
pub use tracees::{SeccompFilter, SeizeOptions, Tracees};

/// A thread id as the tracer's pid namespace sees it.
pub type Tid = i32;
