//! eventfd(2).

use pc_image::{EventFd, OpenFileKind};

use crate::error::Result;
use crate::openfile::{Descriptor, Fds};

pub(crate) fn capture(fds: &Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    match d.info.event {
        Some((count, semaphore)) => Ok(OpenFileKind::Event(EventFd { count, semaphore })),
        None => fds.refuse(d, "an eventfd whose counter this kernel does not tell".to_owned()),
    }
}
