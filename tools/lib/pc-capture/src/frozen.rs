//! The process standing still, with all sent but Commit, and what then becomes of it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pc_image::rules::Rules;
use pc_image::{Counts, Record, RoundEnd, SigInfo, Sink, TaskState, Thread};
use pc_sys::pidfd::pidfd_send_signal;
use pc_trace::{Tid, Tracees};

use crate::error::{Context, Result};
use crate::figures::{Figures, micros};
use crate::procfs::Stat;
use crate::rounds::Tracking;
use crate::session::judge;
use crate::signal;
use crate::tcp::Connections;

/// The process stands still, and all that is to be said of it was sent but for Commit. Dropped, it runs on as if
/// nothing had been.
#[derive(Debug)]
pub struct Frozen {
    // The order of these is that in which they are dropped: first the process runs, then its packets pass, then tracking
    // ends.
    pub(crate) tracees: Tracees,
    pub(crate) connections: Connections,
    pub(crate) tracking: Tracked,
    pub(crate) pidfd: OwnedFd,
    pub(crate) state: TaskState,
    pub(crate) threads: Vec<Thread>,
    pub(crate) since: Instant,
    pub(crate) figures: Figures,
    pub(crate) rules: Rules,
}

/// Tracking that ends piece by piece when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Tracked(pub Option<Tracking>);

impl Tracked {
    /// Ends tracking of a process that stands, in a child that goes on when we end: it takes 18 ms a GiB, and a program that waits
    /// for our end (sudo, nsenter) may keep the stream open for so long.
    fn end_behind(mut self) {
        let Some(tracking) = &mut self.0 else { return };
        if pc_sys::birth::leave_behind(|| tracking.end()).is_ok() {
            std::mem::forget(self);
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(tracking) = &mut self.0 {
            tracking.end();
        }
    }
}

impl Frozen {
    /// Looks once more at what signals wait, as some may have arrived meanwhile, and sends again what has changed; then
    /// the end of the round. Fails if the process has died.
    pub fn last_signals(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let pid = self.tracees.pid();
        let pending = signal::pending(self.tracees.pending(pid, true)?);
        if pending != self.state.pending {
            self.state.pending = pending;
            self.put(sink, Record::TaskState(self.state.clone()))?;
        }
        let held = self.tracees.tids();
        for (at, tid) in held.into_iter().enumerate().take(self.threads.len()) {
            let pending: Vec<SigInfo> = signal::pending(self.tracees.pending(tid, false)?);
            if pending != self.threads[at].pending {
                self.threads[at].pending = pending;
                self.put(sink, Record::Thread(self.threads[at].clone()))?;
            }
        }
        let last = self.figures.rounds.last();
        let (number, counts) = last.map_or((0, Counts::default()), |round| (round.round, round.counts));
        sink.record(&Record::RoundEnd(RoundEnd { number, counts }))?;
        Ok(())
    }

    fn put(&mut self, sink: &mut dyn Sink, record: Record) -> Result<()> {
        judge(self.tracees.pid(), &mut self.rules, &record)?;
        Ok(sink.record(&record)?)
    }

    /// Whether it was stopped (by SIGSTOP and the like) before it was frozen.
    pub fn was_stopped(&self) -> bool {
        self.tracees.job_stop().is_some()
    }

    /// Gives the process a stop that outlives us. Taken back on drop.
    pub fn set_stop(&mut self) -> Result<()> {
        Ok(self.tracees.set_stop()?)
    }

    /// Commit is written: no more time counts as frozen on the way of the stream.
    pub fn committed(&mut self) {
        self.figures.frozen_time = micros(self.since);
        if let Some(from) = self.figures.written_from {
            self.figures.stop.write = micros(from);
        }
    }

    /// The copy runs: so long was there none that did.
    pub fn taken_over(&mut self) {
        self.figures.frozen_time = micros(self.since);
    }

    /// Lets go of the process. It runs on, or stays stopped if it was given a stop.
    pub fn let_go(self) -> Result<Figures> {
        let Self { tracees, connections, tracking, mut figures, .. } = self;
        let (pid, stopped) = (tracees.pid(), tracees.stop_is_set());
        // A copy may run: whatever fails here, a process that was given a stop keeps it.
        let held = if stopped { connections.leave_held(pid) } else { Ok(None) };
        tracees.detach()?;
        drop(connections);
        if stopped {
            tracking.end_behind();
            see_it_stand(pid);
        }
        figures.left_held = held?;
        Ok(figures)
    }

    /// Ends the process; does not wait until its memory is freed, which [`Ending::wait`] does. One that cannot be ended without a word to its peers
    /// keeps the stop that it was given, as by [`Frozen::let_go`].
    pub fn kill(mut self) -> Result<(Figures, Ending)> {
        match self.end() {
            Ok(held) => self.figures.left_held = held,
            Err(error) => {
                // What fails now, too, is less than that.
                let _ = self.let_go();
                return Err(error);
            }
        }
        let Self { tracees, connections, tracking, figures, pidfd, .. } = self;
        let tids = tracees.tids();
        // It is dying: whatever fails here fails because of that.
        let _ = tracees.detach();
        drop((connections, tracking));
        Ok((figures, Ending { pidfd, tids }))
    }

    /// Ends it without a word to its peers. Gives the table that goes on to hold back its packets.
    fn end(&self) -> Result<Option<String>> {
        let pid = self.tracees.pid();
        let silenced = self.connections.silence(pid, self.pidfd.as_fd())?;
        let held = self.connections.leave_held(pid)?;
        pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).of(pid, "ending it")?;
        silenced.for_good();
        Ok(held)
    }
}

/// A process that is being ended. Its memory is freed meanwhile, and until then it has its number.
#[derive(Debug)]
pub struct Ending {
    pidfd: OwnedFd,
    /// The threads that were held. Those that died before they could be let go are there until their tracer hears of it.
    tids: Vec<Tid>,
}

impl Ending {
    /// Waits until it has ended, but for what its parent still has to hear; no longer than `limit`. Gives whether it has.
    pub fn wait(mut self, limit: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(5);
        let began = Instant::now();
        loop {
            self.hear();
            let left = limit.saturating_sub(began.elapsed());
            let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            let next = if self.tids.is_empty() { left } else { left.min(LOOK) };
            let timeout = PollTimeout::try_from(next).unwrap_or(PollTimeout::MAX);
            match nix::poll::poll(&mut ended, timeout) {
                Err(nix::errno::Errno::EINTR) if !left.is_zero() => {}
                Ok(0) if !left.is_zero() => {}
                found => return found.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Hears of the ends of threads, as far as they have come: ptrace(2).
    fn hear(&mut self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        // Those that were let go are not ours to hear of (`ECHILD`).
        self.tids
            .retain(|tid| matches!(waitpid(Pid::from_raw(*tid), Some(flags)), Ok(WaitStatus::StillAlive)));
    }
}

/// Waits until the kernel shows the process as stopped. It runs no instruction of its own before it is, but on a busy
/// machine that may take its time; somebody may also have resumed or ended it already.
pub(crate) fn see_it_stand(pid: i32) {
    let began = Instant::now();
    let not_yet = || Stat::read(pid).is_ok_and(|stat| stat.state == b'R' || stat.state == b'S');
    while not_yet() && began.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_micros(200));
    }
}
