//! Signals as a flag and a descriptor to poll.
//!
//! Handlers are used, not a blocked mask with a signalfd: a mask would be inherited by every
//! process that a tool starts, through `exec` too, while handlers are reset by `exec`, and a
//! process that pc-restore builds has all its signal actions set anyway.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
pub use signal_hook::consts::signal::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Whether SIGINT or SIGTERM came. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    flag: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
    read: UnixStream,
}

/// Turns SIGINT and SIGTERM into a [`Cancel`] for the rest of the process's life.
///
/// # Errors
/// No descriptors left.
pub fn install() -> io::Result<Cancel> {
    let (read, write) = UnixStream::pair()?;
    let flag = Arc::new(AtomicBool::new(false));
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
        signal_hook::flag::register(number, flag.clone())?;
        signal_hook::low_level::pipe::register(number, write.try_clone()?)?;
    }
    Ok(Cancel(Arc::new(Inner { flag, signal, read })))
}

impl Cancel {
    /// Whether one of the signals has come.
    pub fn is_set(&self) -> bool {
        self.0.flag.load(Ordering::Relaxed)
    }

    /// Which signal came last.
    pub fn signal(&self) -> Option<i32> {
        let number = self.0.signal.load(Ordering::Relaxed);
        (number != 0).then_some(number as i32)
    }

    /// The flag itself, for libraries that do not know this crate.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.flag.clone()
    }

    /// Becomes readable with the first signal and stays so; only poll it, never read it.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.read.as_fd()
    }
}

/// A wait was given up because of a signal. Arrives inside an [`io::Error`]; [`crate::exit_of`]
/// finds it there and makes it [`crate::Exit::Cancelled`].
#[derive(Debug, thiserror::Error)]
#[error("cancelled by {}", if *.0 == SIGINT { "SIGINT" } else { "SIGTERM" })]
pub struct Cancelled(i32);

impl Cancel {
    /// An error once one of the signals has come.
    pub fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::Error::other(Cancelled(self.signal().unwrap_or(SIGTERM)))),
            false => Ok(()),
        }
    }

    /// Waits until `fd` is ready for `what` (or has failed, which using it will tell).
    ///
    /// # Errors
    /// [`Cancelled`], if a signal has come before or comes meanwhile.
    pub fn wait(&self, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
        loop {
            self.check()?;
            let mut fds = [PollFd::new(fd, what), PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any() == Some(true) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Signals that come one by one, to be passed on to another process.
#[derive(Debug)]
pub struct Watch(SignalDelivery<UnixStream, SignalOnly>);

/// Starts to collect `numbers`; their default action is off for as long as the process lives.
///
/// # Errors
/// A number that has no handler (SIGKILL, SIGSTOP, faults), or no descriptors left.
pub fn watch(numbers: &[i32]) -> io::Result<Watch> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    if let Some(bad) = numbers.iter().find(|number| signal_hook::consts::FORBIDDEN.contains(number)) {
        return Err(io::Error::other(format!("signal {bad} cannot be watched")));
    }
    SignalDelivery::with_pipe(read, write, SignalOnly, numbers).map(Watch)
}

impl Watch {
    /// Readable while signals wait to be taken.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// The signals that came since the last call, each once.
    pub fn take(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(fd: BorrowedFd<'_>, millis: u16) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(millis)).unwrap() == 1
    }

    #[test]
    fn a_signal_sets_the_flag_and_wakes_a_poll() {
        let cancel = install().unwrap();
        assert!(!cancel.is_set() && !readable(cancel.as_fd(), 0));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(readable(cancel.as_fd(), 5000));
        assert!(cancel.is_set() && cancel.flag().load(Ordering::Relaxed));
        assert_eq!(cancel.signal(), Some(SIGTERM));
        let (_writer, silent) = UnixStream::pair().unwrap();
        let error = cancel.wait(silent.as_fd(), PollFlags::POLLIN).unwrap_err();
        assert_eq!(error.to_string(), "cancelled by SIGTERM");
        assert_eq!(crate::exit_of(&error.into()), crate::Exit::Cancelled);
    }

    #[test]
    fn watched_signals_are_handed_over_once() {
        let mut watch = watch(&[SIGUSR1, SIGUSR2]).unwrap();
        signal_hook::low_level::raise(SIGUSR2).unwrap();
        assert!(readable(watch.as_fd(), 5000));
        assert_eq!(watch.take(), [SIGUSR2]);
        assert!(watch.take().is_empty() && !readable(watch.as_fd(), 0));
        assert!(super::watch(&[9]).is_err());
    }
}
