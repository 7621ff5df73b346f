//! Frames <-> typed records, and the grammar of their order.
//!
//! [`Writer`] and [`Reader`] turn records into a stream and back; [`Validator`] is the grammar. What a record says is
//! documented at its type; every type's number stands in one table (`table.rs`). pc-stream(5) has the bytes.
#![forbid(unsafe_code)]

mod cgroup;
mod codec;
mod controls;
mod epoll;
mod error;
mod eventfd;
mod external;
mod file;
mod ids;
mod inet;
mod machine;
mod memory;
mod mm_settings;
mod namespace;
mod older;
mod openfile;
mod pages;
mod patches;
mod pipe;
mod procfile;
mod ranges;
mod reader;
mod record;
mod regular;
mod round;
pub mod rules;
mod shm;
mod signal;
mod signalfd;
mod socket;
pub mod sockopt;
mod table;
mod task;
mod tcp;
mod thread;
mod timerfd;
mod unix;
mod validator;
mod writer;

pub use cgroup::*;
pub use controls::*;
pub use epoll::*;
pub use error::*;
pub use eventfd::*;
pub use external::*;
pub use file::*;
pub use ids::*;
pub use inet::*;
pub use machine::*;
pub use memory::*;
pub use mm_settings::*;
pub use namespace::*;
pub use openfile::*;
pub use pipe::*;
pub use procfile::*;
pub use ranges::Ranges;
pub use reader::{FrameInfo, Reader, Step};
pub use record::*;
pub use regular::*;
pub use round::*;
pub use shm::*;
pub use signal::*;
pub use signalfd::*;
pub use socket::*;
pub use table::{PAGES, PATCHES, VERSION, record_name, record_version};
pub use task::*;
pub use tcp::*;
pub use thread::*;
pub use timerfd::*;
pub use unix::*;
pub use validator::Validator;
pub use writer::Writer;
