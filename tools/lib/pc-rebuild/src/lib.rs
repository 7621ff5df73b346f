//! Records -> a process.
//!
//! [`restore`] takes records from a source as they come. The first of them make a *husk*: a stopped process with the
//! right pid that holds nothing, mapped and filled by remote system calls. Each round is applied to it in place; what
//! belongs to the process beside its memory (threads, descriptors, signals, …) is kept, the latest word counting, and
//! built when the stream is complete. Nothing runs before the stream was committed and has ended. Any failure before
//! that leaves nothing behind.
//!
//! A kind of kernel object has one file of the same name here, in `pc-image` and in `pc-capture`.

#![forbid(unsafe_code)]

mod cgroup;
mod clocks;
mod controls;
mod creds;
mod early;
mod engine;
mod epoll;
mod error;
mod eventfd;
mod external;
mod fdtable;
mod file;
mod fillable;
mod group;
mod image;
mod inet;
mod join;
mod kept;
mod layout;
mod machine;
mod mapping;
mod memory;
mod mm_settings;
mod namespace;
mod newborn;
mod openfile;
mod pipe;
mod place;
mod procfile;
mod regular;
mod running;
mod settings;
mod shm;
mod shortage;
mod signal;
mod signalfd;
mod socket;
mod task;
mod tcp;
mod thread;
mod timerfd;
pub mod tree;
mod unix;
mod writers;

#[doc(hidden)]
pub use engine::plan;
pub use engine::restore;
pub use error::RebuildError;
pub use namespace::{Join, Joins};
pub use running::{Restored, Times};
pub use settings::{Attach, Cgroups, NetworkLock, Notices, OnReady, Settings, Stage, Stages};
