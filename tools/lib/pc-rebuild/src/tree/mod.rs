//! Trees of processes.

mod family;
mod groups;
mod order;
pub mod plan;
