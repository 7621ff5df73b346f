//! A process being captured: what was found, what was said of it, and where it goes.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pc_image::rules::Rules;
use pc_image::{
    Counts, Machine, MapChange, OpenFile, OpenFileId, OpenFileKind, PageRun, Patch, Ranges, Record, Sink,
    Space, SpaceId, SpaceKind, Task, Vma,
};
use pc_trace::{SeizeOptions, Tracees};
use pc_track::{Hashes, Room};

use crate::beside::Beside;
use crate::check::{Target, child_of, has_child, preflight, tids};
use crate::error::{CaptureError, Context, Result, Unsupported};
use crate::figures::{Figures, RoundFigures, micros};
use crate::frozen::Tracked;
use crate::machine;
use crate::memory::{self, Span};
use crate::openfile::{self, Captured, Descriptor, Fds};
use crate::pages::{self, CopyPlan, Patched, Patching};
use crate::procfs::Status;
use crate::restart::Waits;
use crate::rounds::Pace;
use crate::settings::{Caller, Settings};
use crate::shm::is_gone;
use crate::task::{self, FDS, SPACE};
use crate::tcp::Connected;

/// How long a moment without a child is waited for, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_millis(1);
/// The same where there is much time: the process is held at each look.
const SELDOM: Duration = Duration::from_millis(20);
/// Pauses, in milliseconds, after which a process is looked at and stopped again that was caught as a thread was just going
/// on with a call.
const UNTIL_ASLEEP: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// How often the mappings of a running process are read again when they have changed under the look.
const TRIES: u32 = 20;

/// One capture.
pub(crate) struct Session<'a> {
    pub target: Target,
    pub settings: Settings,
    pub sink: Paced<'a>,
    pub caller: &'a mut dyn Caller,
    pub cancel: &'a AtomicBool,
    pub tracking: Tracked,
    /// The mappings that the destination knows.
    pub vmas: Vec<Vma>,
    /// The pages that it holds.
    pub sent: Ranges,
    told: Option<Task>,
    /// What was sent beside the task.
    told_beside: Option<Beside>,
    /// Open files that were announced in rounds, by number.
    told_files: BTreeMap<OpenFileId, OpenFile>,
    /// Shared memory that is no more, to be announced.
    pub gone_objects: Vec<SpaceId>,
    /// What its threads wait for.
    pub waits: Waits,
    /// Of the round that is being sent.
    pub counts: Counts,
    /// What patching came to in that round.
    pub patched: Patched,
    pub figures: Figures,
}

impl<'a> Session<'a> {
    /// Looks the process over ([`CaptureError::Unsupported`] names what cannot be moved) and sends what is known of the
    /// machine while it runs.
    pub fn begin(
        settings: &Settings,
        sink: &'a mut (dyn Sink + Send),
        caller: &'a mut dyn Caller,
        cancel: &'a AtomicBool,
    ) -> Result<Self> {
        let target = patiently(settings, cancel)?;
        let pid = target.pid;
        let mut sink = Paced { pid, inner: sink, rules: Rules::default(), pace: Pace::new(Instant::now()) };
        let clocks = machine::clocks(pid)?;
        let memory_needed = target.status.anonymous + target.files.objects.bytes();
        sink.record(&Record::Machine(Machine { clocks, memory_needed, ..target.machine.clone() }))?;
        sink.flush()?; // its clock readings are worth the more, the sooner they arrive
        Ok(Self {
            target,
            settings: *settings,
            sink,
            caller,
            cancel,
            tracking: Tracked::default(),
            vmas: Vec::new(),
            sent: Ranges::default(),
            told: None,
            told_beside: None,
            told_files: BTreeMap::new(),
            gone_objects: Vec::new(),
            waits: Waits::default(),
            counts: Counts::default(),
            patched: Patched::default(),
            figures: Figures::default(),
        })
    }

    /// Stops all threads.
    pub fn freeze(&mut self) -> Result<Tracees> {
        self.waits.look(self.target.pid);
        self.freeze_at_once()
    }

    /// Stops all threads, which [`Waits::look`] has just seen.
    fn freeze_at_once(&mut self) -> Result<Tracees> {
        self.check_cancel()?;
        self.caller.holds(true).of(self.target.pid, "before it is held")?;
        let tracees = Tracees::seize(self.target.pid, &SeizeOptions::default())?;
        self.waits.note(&tracees)?;
        Ok(tracees)
    }

    /// Lets all threads go on.
    pub fn thaw(&mut self, tracees: Tracees) -> Result<()> {
        self.waits.leave(self.target.pid);
        tracees.detach()?;
        self.caller.holds(false).of(self.target.pid, "after it was held")
    }

    /// Stops all threads at a moment at which the process has no child and no connection is being made, and with a time to
    /// retry no lock and no removed file: one that ends soon, or stands, is waited for. The packets of its connections are
    /// held back, if they are taken along. A thread of which only a look at it tells what it waits for ([`Waits::unseen`]) is
    /// given a few moments to be asleep.
    pub fn freeze_alone(&mut self) -> Result<Tracees> {
        let pid = self.target.pid;
        let began = Instant::now();
        let mut until_asleep = UNTIL_ASLEEP.into_iter().map(Duration::from_millis);
        loop {
            self.waits.look(pid);
            self.hold_connections()?;
            let tracees = self.freeze_at_once()?;
            let in_the_way = match child_of(pid)? {
                Some(child) => Some(has_child(pid, child)),
                None => match self.hold_connections()? {
                    None => self.passing()?,
                    unready => unready,
                },
            };
            let pause = match in_the_way {
                Some(_) if began.elapsed() < PATIENCE => BETWEEN,
                Some(_) => SELDOM,
                None => match until_asleep.next().filter(|_| self.waits.unseen()) {
                    Some(pause) => pause,
                    None => return Ok(tracees),
                },
            };
            self.thaw(tracees)?;
            if let Some(in_the_way) = in_the_way
                && began.elapsed() > PATIENCE.max(self.settings.retry)
            {
                return Err(CaptureError::Unsupported(vec![in_the_way]));
            }
            std::thread::sleep(pause);
        }
    }

    /// What the process has for a moment only, as far as waiting for that was asked for: to look for it takes time of the stop.
    fn passing(&self) -> Result<Option<Unsupported>> {
        let pid = self.target.pid;
        if self.settings.retry.is_zero() {
            return Ok(None);
        }
        let all = openfile::descriptors(pid, true)?;
        Ok(all.iter().filter_map(|descriptor| descriptor.refusal(pid)).find(Unsupported::passes))
    }

    fn hold_connections(&mut self) -> Result<Option<Unsupported>> {
        let Target { pid, pidfd, connections, .. } = &mut self.target;
        connections.hold(*pid, pidfd.as_fd())
    }

    pub fn check_cancel(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            Err(CaptureError::Cancelled(self.target.pid))
        } else {
            Ok(())
        }
    }

    pub fn put(&mut self, record: Record) -> Result<()> {
        self.sink.record(&record)
    }

    /// The mappings of now.
    pub fn look_at_mappings(&mut self, standing: bool) -> Result<Vec<Vma>> {
        let Target { pid, known, files, status, .. } = &mut self.target;
        let mut tries = 0;
        loop {
            let areas = match standing {
                true => memory::read_standing(*pid, known, status.anonymous)?,
                false => memory::read_running(*pid, known)?,
            };
            match memory::vmas(*pid, &areas, known, files) {
                // Shared memory that was unmapped before it could be opened: there are others now.
                Err(err) if !standing && tries < TRIES && is_gone(&err) => known.clear(),
                found => return found,
            }
            tries += 1;
        }
    }

    /// The same with all that smaps shows: of mappings that may have been replaced by others with the same borders.
    pub fn look_anew_at_mappings(&mut self) -> Result<Vec<Vma>> {
        self.target.known.clear();
        self.look_at_mappings(true)
    }

    /// The files that the running process has open now, so that the destination can open them before the stop. Fails where it
    /// has come by a descriptor that cannot be moved.
    pub fn descriptors(&mut self) -> Result<Vec<OpenFile>> {
        let all = openfile::descriptors(self.target.pid, false)?;
        let mut files = descriptors(&mut self.target, &self.settings, false, all)?.files;
        files.retain_mut(|file| match &mut file.kind {
            OpenFileKind::Regular(regular) => {
                regular.offset = 0; // sent at the stop
                true
            }
            OpenFileKind::External(_) => true, // the destination says whether it knows what becomes of it
            _ => false,
        });
        Ok(files)
    }

    /// Says which files are open now, as far as that has not been said.
    pub fn open_files(&mut self, files: Vec<OpenFile>) -> Result<()> {
        for file in files {
            if self.told_files.get(&file.id) != Some(&file) {
                self.put(Record::OpenFile(file.clone()))?;
                self.told_files.insert(file.id, file);
            }
        }
        Ok(())
    }

    /// The process with its threads, where that has changed, its memory, and the files that were named.
    pub fn births(&mut self, beside: Beside) -> Result<()> {
        let pid = self.target.pid;
        if self.told.is_none() {
            self.put(Record::Space(Space { id: SPACE, kind: SpaceKind::Mm }))?;
        }
        let status = Status::read(pid).of(pid, "reading its status")?;
        let mut own = Vec::new();
        for tid in tids(pid)? {
            match Status::read(tid) {
                Ok(status) if status.own_pid() > 0 => own.push(status.own_pid() as u32),
                Ok(_) => {}                // it is ending, and has no number any more
                Err(_) if tid != pid => {} // it has ended meanwhile
                Err(err) => return Err(err).of(tid, "reading its status"),
            }
        }
        let task = task::task(pid, &status, &self.target.stat, own);
        if self.told.as_ref() != Some(&task) {
            self.told = Some(task.clone());
            self.put(Record::Task(task))?;
        }
        beside.put(pid, self.told_beside.as_ref(), &mut self.sink)?;
        self.told_beside = Some(beside);
        self.object_births()?;
        for file in self.target.files.take_fresh() {
            self.put(Record::File(file))?;
        }
        Ok(())
    }

    /// What has become of the mappings.
    pub fn mappings(&mut self, change: MapChange, vmas: Vec<Vma>) -> Result<()> {
        self.vmas = vmas;
        if crate::rounds::is_empty(&change) { Ok(()) } else { self.put(Record::MapChange(change)) }
    }

    /// Copies pages; `running` and `patching` as in [`CopyPlan`].
    pub fn copy(&mut self, spans: &[Span], running: bool, patching: Patching) -> Result<()> {
        let plan = CopyPlan { pid: self.target.pid, space: SPACE, running, patching, cancel: self.cancel };
        let mut none = Hashes::new(0, &Room::default());
        let hashes = self.tracking.0.as_mut().map_or(&mut none, |tracking| &mut tracking.hashes);
        let began = Instant::now();
        let copied = pages::copy(plan, spans, hashes, &mut self.sink)?;
        self.figures.memdump_time += micros(began);
        self.account(&copied);
        Ok(())
    }

    /// A round begins.
    pub fn begin_counting(&mut self) {
        self.counts = Counts::default();
        self.patched = Patched::default();
    }

    /// Of the round that was sent since.
    pub fn round_figures(&self, round: u32, began: Instant) -> RoundFigures {
        let (counts, patch_bytes) = (self.counts, self.patched.bytes);
        RoundFigures { round, counts, patch_bytes, elapsed_us: micros(began), ..RoundFigures::default() }
    }

    pub fn account(&mut self, copied: &pages::Copied) {
        self.counts.pages += copied.counts.pages;
        self.counts.patched_pages += copied.counts.patched_pages;
        self.counts.zero_pages += copied.counts.zero_pages;
        self.patched.add(copied.patched);
        self.figures.pages_skipped += copied.unchanged;
        self.figures.memwrite_time += copied.write_us;
    }
}

/// What is behind the descriptors; with `stopped` what is in pipes and queues is read, too.
pub(crate) fn descriptors(
    target: &mut Target,
    settings: &Settings,
    stopped: bool,
    all: Vec<Descriptor>,
) -> Result<Captured> {
    let Target { pid, pidfd, files, seen, .. } = target;
    let connected = Connected::of(settings);
    let mut captured = Fds::of(*pid, pidfd.as_fd(), files, seen, connected, stopped, all)?.capture(FDS)?;
    if !stopped && !settings.retry.is_zero() {
        // Waited for at the stop.
        captured.unsupported.retain(|one| !one.passes());
    }
    if captured.unsupported.is_empty() {
        Ok(captured)
    } else {
        Err(CaptureError::Unsupported(captured.unsupported))
    }
}

/// Looks the process over, again and again while all that is in the way passes by itself and there is time.
fn patiently(settings: &Settings, cancel: &AtomicBool) -> Result<Target> {
    let began = Instant::now();
    loop {
        match preflight(settings) {
            Err(CaptureError::Unsupported(all))
                if all.iter().all(Unsupported::passes) && began.elapsed() < settings.retry =>
            {
                if cancel.load(Ordering::Relaxed) {
                    return Err(CaptureError::Cancelled(settings.pid));
                }
                std::thread::sleep(SELDOM.min(settings.retry.saturating_sub(began.elapsed())));
            }
            found => return found,
        }
    }
}

/// The sink, with a watch on how fast it takes pages.
pub(crate) struct Paced<'a> {
    pid: i32,
    inner: &'a mut (dyn Sink + Send),
    /// What no destination could rebuild is not sent.
    pub rules: Rules,
    pub pace: Pace,
}

impl Paced<'_> {
    /// Puts a record; refuses one that the destination would have to refuse.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        judge(self.pid, &mut self.rules, record)?;
        Ok(self.inner.record(record)?)
    }
}

/// Refuses what no destination could rebuild, by name.
pub(crate) fn judge(pid: i32, rules: &mut Rules, record: &Record) -> Result<()> {
    let refused = refused(pid, rules, record);
    if refused.is_empty() { Ok(()) } else { Err(CaptureError::Unsupported(refused)) }
}

/// What the rules say of the next record.
pub(crate) fn refused(pid: i32, rules: &mut Rules, record: &Record) -> Vec<Unsupported> {
    let found = rules.judge(record);
    found.iter().map(|refusal| Unsupported::new(pid, None, refusal.to_string())).collect()
}

type Put = std::result::Result<(), pc_image::ImageError>;

impl Sink for Paced<'_> {
    /// Of pages, which no rule is about.
    fn record(&mut self, record: &Record) -> Put {
        self.inner.record(record)
    }

    fn pages(&mut self, space: SpaceId, runs: &[PageRun], data: &[&[u8]]) -> Put {
        self.inner.pages(space, runs, data)?;
        self.pace.taken(data.iter().map(|piece| piece.len() as u64).sum(), Instant::now());
        Ok(())
    }

    fn patches(&mut self, space: SpaceId, patches: &[Patch], data: &[u8]) -> Put {
        self.inner.patches(space, patches, data)?;
        self.pace.taken(data.len() as u64, Instant::now());
        Ok(())
    }

    fn flush(&mut self) -> Put {
        self.inner.flush()
    }
}
