//! What `pc-show` shows of a stream. Nothing here trusts the stream: it is read once from start to end, whatever is
//! kept grows with its metadata only, and no text of it reaches a terminal with its control characters.
#![forbid(unsafe_code)]

mod args;
mod describe;
mod fds;
mod frames;
mod json;
mod map;
mod maps;
mod memory;
mod model;
mod ps;
mod search;
mod show;
mod summary;
mod svg;
mod text;
mod threads;
mod timeline;
mod touched;

pub use args::{Args, Needle, Span};
pub use model::{Mapping, Model, Round};
pub use show::{Shown, show};
