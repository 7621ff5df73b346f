//! The ladder: from a running process to one that stands still, all of it sent.

use std::sync::atomic::AtomicBool;

use pc_image::Sink;

use crate::error::Result;
use crate::frozen::Frozen;
use crate::session::Session;
use crate::settings::{Caller, Rounds, Settings};

/// Stops the process, copies it in one round, and leaves it standing.
///
/// After it come [`Frozen::last_signals`], the stop that outlives us ([`Frozen::set_stop`]) if the original is not to
/// run on, Commit (which the caller's writer makes), and what becomes of the original.
pub fn dump_once(
    settings: &Settings,
    sink: &mut (dyn Sink + Send),
    caller: &mut dyn Caller,
    cancel: &AtomicBool,
) -> Result<Frozen> {
    Session::begin(settings, sink, caller, cancel)?.stop(0)
}

/// Sends the memory of the running process in rounds until little is left, then stops it and sends the rest. What comes
/// afterwards is the same as after [`dump_once`].
pub fn dump(
    settings: &Settings,
    rounds: Rounds,
    sink: &mut (dyn Sink + Send),
    caller: &mut dyn Caller,
    cancel: &AtomicBool,
) -> Result<Frozen> {
    let mut session = Session::begin(settings, sink, caller, cancel)?;
    session.begin_tracking()?;
    let next = session.rounds(rounds)?;
    session.stop(next)
}
