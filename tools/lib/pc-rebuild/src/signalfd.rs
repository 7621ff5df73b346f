//! signalfd(2).

use std::os::fd::OwnedFd;

use pc_image::SignalFd;

use crate::error::{Context, RebuildError};

/// A signalfd with its mask.
pub fn build(signal: &SignalFd) -> Result<OwnedFd, RebuildError> {
    pc_sys::signalfd::signalfd(signal.mask).what("making a signalfd")
}
