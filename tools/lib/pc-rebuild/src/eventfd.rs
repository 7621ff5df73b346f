//! eventfd(2).

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use pc_image as image;

use crate::error::{Context, RebuildError};

/// An eventfd with its counter.
pub fn build(event: &image::EventFd) -> Result<OwnedFd, RebuildError> {
    let semaphore = if event.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | semaphore;
    let made = EventFd::from_value_and_flags(0, flags).what("making an eventfd")?;
    if event.count > 0 {
        made.write(event.count).what("setting an eventfd's counter")?;
    }
    let fd = made.as_fd().try_clone_to_owned().what("making an eventfd")?;
    blocking(&fd)?;
    Ok(fd)
}

/// Takes `O_NONBLOCK` away again.
pub fn blocking(fd: &OwnedFd) -> Result<(), RebuildError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::empty())).what("setting the flags of a descriptor")?;
    Ok(())
}
