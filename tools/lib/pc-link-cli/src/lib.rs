//! Manners that the tools of links share: [`LinkArgs`] are their options, [`Transfer`] what surrounds a transfer, [`finish`] its
//! exit code.

#![forbid(unsafe_code)]

mod args;
mod ending;
mod transfer;

pub use args::{LinkArgs, parse_streams};
pub use ending::{exit_for, finish};
pub use transfer::{Direction, Transfer, input};
