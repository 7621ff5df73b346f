//! Output that a signal can interrupt, however long the reader lets it wait.
//!
//! A blocking write to a full pipe would sit there with the target frozen, deaf to SIGTERM: a
//! handler that runs just before the call is missed. So the descriptor must not block; but
//! O_NONBLOCK belongs to the open file description, which other processes may share. A pipe is
//! therefore opened anew through /proc, and a socket gets MSG_DONTWAIT with each call.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::signals::{Cancel, timeout_until};

/// The stream going out; see [`output_until`].
#[derive(Debug)]
pub struct Output {
    file: File,
    kind: Kind,
    cancel: Option<Cancel>,
    /// When a wait for the reader ends.
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Does not wait for readers: a regular file or a device.
    File,
    /// A description of its own that does not block.
    Pipe,
    /// Does not block where that is asked for with each call.
    Socket,
    /// A pipe that could not be opened anew (another user's): a signal may be heard late.
    Blocking,
}

/// [`crate::output()`], but a wait for the reader ends with [`crate::signals::Cancelled`] when a
/// signal comes.
///
/// # Errors
/// As [`crate::output()`].
pub fn output_until(tool: &str, cancel: &Cancel) -> anyhow::Result<Output> {
    Ok(Output::new(crate::output(tool)?, Some(cancel.clone()))?)
}

impl Output {
    /// Takes over an opened file, pipe or socket.
    pub fn new(file: File, cancel: Option<Cancel>) -> io::Result<Self> {
        let found = file.metadata()?.file_type();
        if found.is_socket() {
            return Ok(Output { file, kind: Kind::Socket, cancel, until: None });
        }
        if !found.is_fifo() {
            return Ok(Output { file, kind: Kind::File, cancel, until: None });
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let own = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        Ok(match own {
            Ok(own) => Output { file: own, kind: Kind::Pipe, cancel, until: None },
            Err(_) => Output { file, kind: Kind::Blocking, cancel, until: None },
        })
    }

    /// From here on signals no longer interrupt: what follows must not be left half written.
    pub fn hold_signals(&mut self) {
        self.cancel = None;
    }

    /// From here on the reader is waited for until then at the most, signal or not.
    pub fn give_up_at(&mut self, until: Instant) {
        (self.cancel, self.until) = (None, Some(until));
    }

    /// Waits until everything is on the disk, where it is a file.
    ///
    /// # Errors
    /// Those of fsync(2), among them a disk that turns out to be full only now.
    pub fn sync(&self) -> io::Result<()> {
        if self.file.metadata()?.is_file() { self.file.sync_all() } else { Ok(()) }
    }

    /// Tries `write` until it does not have to wait.
    fn repeat(&mut self, mut write: impl FnMut(&File, Kind) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if let Some(cancel) = &self.cancel {
                cancel.check()?;
            }
            match write(&self.file, self.kind) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        if let Some(cancel) = &self.cancel {
            return cancel.wait(self.file.as_fd(), PollFlags::POLLOUT);
        }
        let mut fds = [nix::poll::PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        match nix::poll::poll(&mut fds, timeout_until(self.until)) {
            Ok(0) if self.until.is_some_and(|until| Instant::now() >= until) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.repeat(|mut file, kind| match kind {
            Kind::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<()>(file.as_raw_fd(), slices, &[] as &[ControlMessage<'_>], flags, None)?)
            }
            _ => file.write_vectored(slices),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn file(fd: impl Into<OwnedFd>) -> File {
        File::from(fd.into())
    }

    fn sample() -> Vec<u8> {
        (0..3_000_000_u32).map(|i| (i >> 3) as u8).collect()
    }

    #[test]
    fn pipes_and_sockets_that_fill_up_lose_nothing() {
        let (pipe_read, pipe_write) = io::pipe().unwrap();
        let (socket_read, socket_write) = UnixStream::pair().unwrap();
        for (mut read, write) in
            [(file(pipe_read), file(pipe_write)), (file(socket_read), file(socket_write))]
        {
            let mut output = Output::new(write, None).unwrap();
            assert!(matches!(output.kind, Kind::Pipe | Kind::Socket));
            let writer = std::thread::spawn(move || output.write_all(&sample()));
            let mut read_back = Vec::new();
            read.read_to_end(&mut read_back).unwrap();
            writer.join().unwrap().unwrap();
            assert_eq!(read_back, sample());
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_a_broken_pipe() {
        let (read, write) = io::pipe().unwrap();
        let mut output = Output::new(file(write), None).unwrap();
        drop(read);
        assert_eq!(output.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (read, write) = UnixStream::pair().unwrap();
        let mut output = Output::new(file(write), None).unwrap();
        drop(read);
        assert_eq!(output.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_waited_for_until_the_time_is_up() {
        let (_read, write) = io::pipe().unwrap();
        let mut output = Output::new(file(write), None).unwrap();
        output.give_up_at(Instant::now() + std::time::Duration::from_millis(20));
        assert_eq!(output.write_all(&sample()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_description_that_others_share_still_blocks() {
        let (read, write) = io::pipe().unwrap();
        let shared = write.try_clone().unwrap();
        let output = Output::new(file(write), None).unwrap();
        let flags = nix::fcntl::fcntl(&shared, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        assert!(output.sync().is_ok());
        drop(read);
    }
}
