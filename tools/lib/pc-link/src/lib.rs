//! Bytes of any kind over sockets, bit for bit, both ways: what `pc-send` and `pc-recv` are made of.
//!
//! # Sequence
//!
//! ```text
//! connecting side                          listening side
//! greeting (cipher)         ->             drops what is no greeting
//! Noise handshake           <->            (with a key)            drops who does not hold it
//! Join (transfer, index)    ->             a new transfer starts the command; another connection joins it
//!                           <-             Welcome, or Refuse with the reason
//! Data, Fin, Stop           <->            Data, Fin, Stop         (both directions, independent)
//! Ack, once a second too    <->            Ack
//! Bye (status)              <->            Bye (status)
//! ```
//!
//! The envelope does not know what it carries. Each direction is cut into numbered chunks, spread over the connections as they take them,
//! and put back in order; at most 32 MiB of a direction are under way between the source there and the sink here.
//! The end of a source closes the sink (half-close), a sink that takes no more closes the source. Who says Bye has had
//! everything, has written everything, and its command has ended; it says it again when it has heard the other side's. The listening side
//! goes when it was heard, the connecting side when the other one goes or is gone. So with patience a break between the two matters to
//! neither side; without, a side that has heard the other's knows how all ended, and one that has not reports the loss.
//!
//! A connection that breaks fails the transfer; unless both sides are patient ([`Settings::reconnect`]): then chunks are kept until they have
//! arrived, the connecting side connects again, and goes on where it was. What goes over a connection that stalls is sent
//! over another one after two seconds.
#![forbid(unsafe_code)]

mod addr;
mod client;
mod command;
mod conn;
mod ends;
mod error;
mod flow;
mod handshake;
mod key;
mod links;
mod pack;
mod port;
mod rate;
mod server;
mod session;
mod settings;
mod stale;
mod wire;

pub use addr::Addr;
pub use client::send;
pub use command::command;
pub use error::{Failure, LinkError};
pub use key::Key;
pub use server::{Listener, MakeEnds};
pub use settings::{Ends, Figures, Outcome, Settings};

/// Most connections of a transfer.
pub const MAX_STREAMS: usize = 64;
