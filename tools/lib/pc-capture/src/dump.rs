//! From a running process to the last record before Commit, and what then becomes of the original.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pc_image::{
    Counts, MapChange, Record, RoundBegin, RoundEnd, SigInfo, Sink, Space, SpaceKind, TaskState, Thread, Vma,
};
use pc_sys::pagemap::Pagemap;
use pc_sys::pidfd::pidfd_send_signal;
use pc_trace::{SeizeOptions, Tracees};

use crate::check::{Target, preflight, tids};
use crate::error::{CaptureError, Context, Result};
use crate::figures::Figures;
use crate::inside::{self, Told};
use crate::machine;
use crate::memory::{self, Present};
use crate::openfile::{Captured, Fds};
use crate::pages::{self, CopyPlan};
use crate::procfs::Status;
use crate::restart::Waits;
use crate::task::{self, FDS, SIGS, SPACE, TASK};
use crate::{Settings, signal, thread};

/// A process being captured: what was found, where it goes, and what was counted.
pub struct Session<'a> {
    target: Target,
    tcp_close: bool,
    sink: &'a mut (dyn Sink + Send),
    cancel: &'a AtomicBool,
    /// Of the round that is being sent.
    counts: Counts,
    figures: Figures,
}

/// The process stands still, and all that is to be said of it was sent but for Commit. Dropped, it runs on as if
/// nothing had been.
#[derive(Debug)]
pub struct Frozen {
    tracees: Tracees,
    pidfd: std::os::fd::OwnedFd,
    state: TaskState,
    threads: Vec<Thread>,
    since: Instant,
    figures: Figures,
}

/// Stops the process, copies it in one round, and leaves it standing.
///
/// Behind it come [`Frozen::last_signals`], the stop that outlives us ([`Frozen::set_stop`]) if the original is not to
/// run on, Commit (which the caller's writer makes), and what becomes of the original.
pub fn dump_once(settings: &Settings, sink: &mut (dyn Sink + Send), cancel: &AtomicBool) -> Result<Frozen> {
    let mut session = Session::begin(settings, sink, cancel)?;
    let waits = Waits::read(session.target.pid);
    let tracees = session.freeze()?;
    session.last_round(0, tracees, &waits)
}

impl<'a> Session<'a> {
    /// Looks the process over ([`CaptureError::Unsupported`] names what cannot be moved) and sends what is known of the
    /// machine while it runs.
    pub fn begin(
        settings: &Settings,
        sink: &'a mut (dyn Sink + Send),
        cancel: &'a AtomicBool,
    ) -> Result<Self> {
        let target = preflight(settings)?;
        let pid = target.pid;
        let areas = memory::read_areas(pid, &mut target.known.clone(), u64::MAX)?;
        let vdso = machine::vdso(pid, &areas)?;
        let machine = machine::machine(pid, vdso, target.status.anonymous)?;
        sink.record(&Record::Machine(machine))?;
        let figures = Figures::default();
        Ok(Self { target, tcp_close: settings.tcp_close, sink, cancel, counts: Counts::default(), figures })
    }

    /// Stops all threads.
    pub fn freeze(&mut self) -> Result<Tracees> {
        self.check_cancel()?;
        let began = Instant::now();
        let tracees = Tracees::seize(self.target.pid, &SeizeOptions::default())?;
        self.figures.freezing_time = micros(began);
        self.figures.frozen_at = Some(began);
        Ok(tracees)
    }

    fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            Err(CaptureError::Cancelled(self.target.pid))
        } else {
            Ok(())
        }
    }

    fn put(&mut self, record: Record) -> Result<()> {
        Ok(self.sink.record(&record)?)
    }

    /// The round that holds what exists only at the stop.
    fn last_round(mut self, number: u32, mut tracees: Tracees, waits: &Waits) -> Result<Frozen> {
        let pid = self.target.pid;
        let began = Instant::now();
        let round = RoundBegin { number, last: true, clocks: machine::clocks(pid)? };
        // Mappings and pages are looked at before any remote call, which has a mapping of its own.
        let areas = memory::read_areas(pid, &mut self.target.known, self.target.status.anonymous)?;
        let vmas = memory::vmas(pid, &areas, &self.target.known, &mut self.target.files)?;
        let pagemap = Pagemap::open(pid).of(pid, "opening its page map")?;
        let present = memory::present(pid, &pagemap, &vmas)?;
        let timers = task::timers(pid)?;
        let told = inside::ask(&mut tracees, &timers)?;
        let captured = self.descriptors()?;
        let state = task::state(&tracees, &told, &timers, &mut self.target.files)?;
        let guards = present.guards.clone();
        let mm = task::mm(pid, &self.target.stat, &told, guards, &mut self.target.files)?;
        let threads = threads(&tracees, &told, waits)?;
        self.put(Record::RoundBegin(round))?;
        self.births()?;
        self.mappings(vmas)?;
        self.pages(&present, false)?;
        self.put(Record::MmState(mm))?;
        self.put(Record::SigTable(signal::table(SIGS, &told.actions)))?;
        for file in captured.files {
            self.put(Record::OpenFile(file))?;
        }
        self.put(Record::FdTable(captured.table))?;
        self.put(Record::TaskState(state.clone()))?;
        for thread in &threads {
            self.put(Record::Thread(thread.clone()))?;
        }
        self.figures.round(number, true, self.counts, micros(began));
        let Self { target, figures, .. } = self;
        let since = figures.frozen_at.unwrap_or(began);
        Ok(Frozen { tracees, pidfd: target.pidfd, state, threads, since, figures })
    }

    fn descriptors(&mut self) -> Result<Captured> {
        let Target { pid, pidfd, files, .. } = &mut self.target;
        let captured = Fds::list(*pid, pidfd.as_fd(), files, self.tcp_close, true)?.capture(FDS)?;
        if captured.unsupported.is_empty() {
            Ok(captured)
        } else {
            Err(CaptureError::Unsupported(captured.unsupported))
        }
    }

    /// The process, its memory, and the files that were named.
    fn births(&mut self) -> Result<()> {
        let pid = self.target.pid;
        self.put(Record::Space(Space { id: SPACE, kind: SpaceKind::Mm }))?;
        let status = Status::read(pid).of(pid, "reading its status")?;
        let mut own = Vec::new();
        for tid in tids(pid)? {
            own.push(Status::read(tid).of(tid, "reading its status")?.own_pid() as u32);
        }
        let task = task::task(pid, &status, &self.target.stat, own);
        self.put(Record::Task(task))?;
        self.named_files()
    }

    fn named_files(&mut self) -> Result<()> {
        for file in self.target.files.take_fresh() {
            self.put(Record::File(file))?;
        }
        Ok(())
    }

    fn mappings(&mut self, vmas: Vec<Vma>) -> Result<()> {
        let change = MapChange { space: SPACE, unmap: Vec::new(), map: vmas, modify: Vec::new() };
        self.put(Record::MapChange(change))
    }

    /// Copies pages; `running` as in [`CopyPlan`].
    fn pages(&mut self, present: &Present, running: bool) -> Result<()> {
        let began = Instant::now();
        let plan = CopyPlan { pid: self.target.pid, space: SPACE, running, cancel: self.cancel };
        let copied = pages::copy(plan, &present.spans, self.sink)?;
        self.counts.pages += copied.counts.pages;
        self.counts.zero_pages += copied.counts.zero_pages;
        self.figures.pages_scanned += present.scanned;
        self.figures.memdump_time += micros(began);
        self.figures.memwrite_time += copied.write_us;
        Ok(())
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn threads(tracees: &Tracees, told: &Told, waits: &Waits) -> Result<Vec<Thread>> {
    told.threads.iter().map(|told| thread::thread(tracees, TASK, told, waits)).collect()
}

impl Frozen {
    /// Looks once more at what signals wait, as some may have arrived meanwhile, and sends again what has changed; then
    /// the end of the round. Fails if the process has died.
    pub fn last_signals(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let pid = self.tracees.pid();
        let pending = signal::pending(self.tracees.pending(pid, true)?);
        if pending != self.state.pending {
            self.state.pending = pending;
            sink.record(&Record::TaskState(self.state.clone()))?;
        }
        let held = self.tracees.tids();
        for (tid, thread) in held.into_iter().zip(&mut self.threads) {
            let pending: Vec<SigInfo> = signal::pending(self.tracees.pending(tid, false)?);
            if pending != thread.pending {
                thread.pending = pending;
                sink.record(&Record::Thread(thread.clone()))?;
            }
        }
        let last = self.figures.rounds.last();
        let (number, counts) = last.map_or((0, Counts::default()), |round| (round.round, round.counts));
        sink.record(&Record::RoundEnd(RoundEnd { number, counts }))?;
        Ok(())
    }

    /// Gives the process a stop that outlives us. Taken back on drop.
    pub fn set_stop(&mut self) -> Result<()> {
        Ok(self.tracees.set_stop()?)
    }

    /// Commit is written: no more time counts as frozen on the way of the stream.
    pub fn committed(&mut self) {
        self.figures.frozen_time = micros(self.since);
    }

    /// Lets go of the process. It runs on, or stays stopped if it was given a stop.
    pub fn let_go(self) -> Result<Figures> {
        self.tracees.detach()?;
        Ok(self.figures)
    }

    /// Ends the process; does not wait until its memory is freed.
    pub fn kill(self) -> Result<Figures> {
        let pid = self.tracees.pid();
        pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).of(pid, "ending it")?;
        // It is dying: whatever fails here fails because of that.
        let _ = self.tracees.detach();
        Ok(self.figures)
    }
}
