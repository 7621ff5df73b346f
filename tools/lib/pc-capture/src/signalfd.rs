//! signalfd(2).

use pc_image::{OpenFileKind, SignalFd};

use crate::error::Result;
use crate::openfile::{Descriptor, Fds};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    match d.info.sigmask {
        Some(mask) => Ok(OpenFileKind::Signal(SignalFd { mask })),
        None => fds.refuse(d, "a signalfd whose mask this kernel does not tell".to_owned()),
    }
}
