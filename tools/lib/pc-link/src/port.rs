//! The ends of a link on this machine: descriptors whose waits can be ended.
//!
//! A descriptor that others share is never made non-blocking (that belongs to the open file description): pipes are opened
//! anew through /proc, sockets get MSG_DONTWAIT with each call.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Makes all waits end, once and for all.
#[derive(Debug)]
pub(crate) struct Stop {
    read: PipeReader,
    write: Mutex<Option<PipeWriter>>,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        Ok(Stop { read, write: Mutex::new(Some(write)) })
    }

    /// Readable (hung up) once set.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    pub(crate) fn set(&self) {
        self.write.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until `fd` is ready; false if it is not, and it is time to stop.
    pub(crate) fn wait(&self, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<bool> {
        self.wait_for(fd, what, None)
    }

    /// The same, for so long at most.
    fn wait_for(&self, fd: BorrowedFd<'_>, what: PollFlags, limit: Option<Duration>) -> io::Result<bool> {
        let mut fds = [PollFd::new(fd, what), PollFd::new(self.read.as_fd(), PollFlags::empty())];
        let limit = limit.and_then(|limit| PollTimeout::try_from(limit).ok()).unwrap_or(PollTimeout::NONE);
        loop {
            match poll(&mut fds, limit) {
                Ok(0) => return Ok(false),
                Ok(_) if fds[0].any() == Some(true) => return Ok(true),
                Ok(_) if fds[1].any() == Some(true) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Where bytes come from.
#[derive(Debug)]
pub(crate) struct Source(File);

impl Source {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        enlarge(fd.as_fd());
        Source(fd.into())
    }

    /// Reads what there is; `None` if it is time to stop or nothing came for so long, 0 at the end.
    pub(crate) fn read(
        &mut self,
        bytes: &mut [u8],
        stop: &Stop,
        limit: Option<Duration>,
    ) -> io::Result<Option<usize>> {
        loop {
            if !stop.wait_for(self.0.as_fd(), PollFlags::POLLIN, limit)? {
                return Ok(None);
            }
            match self.0.read(bytes) {
                Ok(n) => return Ok(Some(n)),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Where bytes go.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    socket: bool,
}

impl Sink {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let found = file.metadata()?.file_type();
        if !found.is_fifo() {
            return Ok(Sink { file, socket: found.is_socket() });
        }
        enlarge(file.as_fd());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let own = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        // Another user's pipe cannot be opened anew: then a wait for its reader cannot be ended early.
        Ok(Sink { file: own.unwrap_or(file), socket: false })
    }

    /// A descriptor to wait on, apart from this one's life.
    pub(crate) fn watched(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Writes all; false if it was time to stop.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], stop: &Stop) -> io::Result<bool> {
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !stop.wait(self.file.as_fd(), PollFlags::POLLOUT)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.socket {
            return self.file.write(bytes);
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let none: &[ControlMessage<'_>] = &[];
        Ok(sendmsg::<()>(self.file.as_raw_fd(), &[IoSlice::new(bytes)], none, flags, None)?)
    }
}

/// Makes a pipe as large as anybody may. What is no pipe, or may not grow, works too.
fn enlarge(fd: BorrowedFd<'_>) {
    let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(1 << 20));
}
