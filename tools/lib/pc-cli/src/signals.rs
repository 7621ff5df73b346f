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
use std::time::{Duration, Instant};

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
    write: UnixStream,
}

/// Turns SIGINT and SIGTERM into a [`Cancel`] for the rest of the process's life.
///
/// # Errors
/// No descriptors left.
pub fn install() -> io::Result<Cancel> {
    let cancel = Cancel::by_hand()?;
    let Inner { flag, signal, write, .. } = &*cancel.0;
    for number in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
        signal_hook::flag::register(number, flag.clone())?;
        signal_hook::low_level::pipe::register(number, write.try_clone()?)?;
    }
    Ok(cancel)
}

impl Cancel {
    /// One that no signal sets, only [`Cancel::set`].
    ///
    /// # Errors
    /// No descriptors left.
    pub fn by_hand() -> io::Result<Cancel> {
        let (read, write) = UnixStream::pair()?;
        write.set_nonblocking(true)?;
        let (flag, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        Ok(Cancel(Arc::new(Inner { flag, signal, read, write })))
    }

    /// Does what a signal would do.
    pub fn set(&self) {
        self.0.flag.store(true, Ordering::Relaxed);
        // A byte that finds no room is not needed: others wait to be seen.
        let _ = nix::unistd::write(&self.0.write, &[1]);
    }

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
#[error("cancelled{}", name(*.0))]
pub struct Cancelled(i32);

fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => " by SIGINT",
        SIGTERM => " by SIGTERM",
        _ => "",
    }
}

/// A wait was given up because nothing came for too long. Arrives inside an [`io::Error`] of kind `TimedOut`;
/// [`crate::exit_of`] finds it there and makes it [`crate::Exit::Transport`].
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {}", crate::show_duration(*.0))]
pub struct Silence(pub Duration);

impl Cancel {
    /// An error once one of the signals has come.
    pub fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::Error::other(Cancelled(self.signal().unwrap_or(0)))),
            false => Ok(()),
        }
    }

    /// Waits until `fd` is ready for `what` (or has failed, which using it will tell).
    ///
    /// # Errors
    /// [`Cancelled`], if a signal has come before or comes meanwhile.
    pub fn wait(&self, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
        self.wait_for(fd, what, None)
    }

    /// The same, for so long at the most.
    ///
    /// # Errors
    /// [`Cancelled`], and [`Silence`] if the time has passed.
    pub fn wait_for(&self, fd: BorrowedFd<'_>, what: PollFlags, most: Option<Duration>) -> io::Result<()> {
        let until = most.map(|most| Instant::now() + most);
        loop {
            self.check()?;
            let mut fds = [PollFd::new(fd, what), PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout_until(until)) {
                Ok(_) if fds[0].any() == Some(true) => return Ok(()),
                Ok(0) if until.is_some_and(|until| Instant::now() >= until) => {
                    let silence = Silence(most.unwrap_or_default());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silence));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// How long to poll so as to wake at a time: a moment later, never before.
pub fn timeout_until(until: Option<Instant>) -> PollTimeout {
    let Some(until) = until else { return PollTimeout::NONE };
    let millis = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
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
    fn a_wait_ends_by_hand_or_when_its_time_has_passed() {
        let cancel = Cancel::by_hand().unwrap();
        let (_writer, silent) = UnixStream::pair().unwrap();
        let moment = Some(Duration::from_millis(20));
        let error = cancel.wait_for(silent.as_fd(), PollFlags::POLLIN, moment).unwrap_err();
        assert_eq!(error.to_string(), "nothing came for 20.0 ms");
        assert_eq!(crate::exit_of(&error.into()), crate::Exit::Transport);
        cancel.set();
        let error = cancel.wait_for(silent.as_fd(), PollFlags::POLLIN, moment).unwrap_err();
        assert_eq!(error.to_string(), "cancelled");
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
