//! The hand-over: who runs the process, and how both sides come to agree on it.
//!
//! # Sequence
//!
//! ```text
//! source                                   destination
//!                           <-             Hello (protocol version, clocks, producer)
//! skeleton, first round     ->             judges what it needs
//!                           <-             Accepted (stream id), or Refused (reason)
//! ... rounds ...            ->             applies them
//!                           <-             RoundApplied (round, bytes taken), Alive now and then
//! freezes; final round      ->             builds everything
//!                           <-             Ready, or Lost or Failed (reason)
//! Commit                    ->             lets it run
//!                           <-             Running (pid)
//! ends the original
//! ```
//!
//! # What travels where
//!
//! Forward there is the image stream and nothing else, byte for byte what a one-way move sends: its preamble and its Machine record
//! are the source's greeting (version, producer, clocks), Commit and Cancel are records of it, and its end says that
//! the source is gone. Back there are the [`Message`]s of this crate, in frames of pc-frame ([`Encoder`], [`Decoder`]).
//!
//! # Who runs
//!
//! Five rules, from which it follows that there are never two, and never none unless the source ends in doubt:
//!
//! 1. The destination lets the copy run only on a Commit that it was sent when it had said Ready.
//! 2. The source sends either Commit or Cancel, never both, and Commit only to one who said Ready.
//! 3. Until it begins to send Commit, the source may let the original run at any moment.
//! 4. From then on it lets the original run only if the destination says Refused, Lost, Failed or Cancelled: these are promises
//!    that nothing runs there and nothing will, and the destination gives them only after its husks are dead.
//! 5. The source ends the original only when the destination says Running.
//!
//! In between, with Commit sent and no answer, the original stays stopped: [`SourceOutcome::InDoubt`].
//!
//! # Machines
//!
//! [`Source`] and [`Destination`] do nothing themselves: `on(event)` gives the [actions](SourceAction) that a driver carries out
//! in their order. Their modules have a table of all states and transitions. A driver is a loop over one channel of events that is
//! fed by a thread that reads messages, by timers, by signals and by the work itself.
//!
//! # Versions
//!
//! Hello has the lowest and the highest protocol version that the destination speaks; the source goes on if its own
//! lies between. A message of an unknown type is passed over if its frame says so, else it is an error.
#![forbid(unsafe_code)]

mod codec;
mod destination;
mod message;
mod source;

pub use codec::{CtlError, Decoder, Encoder, decode, message_name};
pub use destination::{
    Destination, DestinationAction, DestinationEvent, DestinationOutcome, DestinationState,
};
pub use message::{Clocks, MAX_TEXT, Message, PROTOCOL};
pub use source::{OriginalIfKilled, Source, SourceAction, SourceEvent, SourceOutcome, SourceState};

/// Why a move did not take place. Reads as a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// The destination cannot take the process (exit code 6).
    #[error("the destination refused: {0}")]
    Refused(String),
    /// Building or releasing failed at the destination (1).
    #[error("the destination failed: {0}")]
    PeerFailed(String),
    /// The destination gave up because the stream failed or brought nothing for too long (5).
    #[error("the destination gave up: {0}")]
    PeerLost(String),
    /// The other side was asked to give up (7).
    #[error("the other side cancelled: {0}")]
    PeerCancelled(String),
    /// Something failed on this side (1, or what the failure itself says).
    #[error("{0}")]
    Failed(String),
    /// A signal came (7).
    #[error("cancelled by a signal")]
    Interrupted,
    /// The other side is gone, or what it says cannot be read (5).
    #[error("the other side is lost: {0}")]
    Lost(String),
    /// Nothing was heard for too long (5).
    #[error("nothing was heard from the other side for too long")]
    Silence,
    /// The destination was not ready within the time that the original may be frozen (7).
    #[error("the destination was not ready in time")]
    FreezeTimeout,
    /// A message that cannot be at this point (5).
    #[error("{0} came where it cannot be")]
    Protocol(&'static str),
    /// No protocol version in common (6).
    #[error("the destination speaks hand-over versions {lowest} to {highest}, this is version {PROTOCOL}")]
    Version {
        /// The lowest that it speaks.
        lowest: u16,
        /// The highest that it speaks.
        highest: u16,
    },
}
