//! The state machine: fed by items as they arrive.
//!
//! Machine, task, space and files are judged as they come. The first mapping change makes the husk; mappings, zaps and
//! pages are applied to it as they come, all else is kept, the latest word counting. While rounds are only kept
//! (`start_round`, `no_pipeline`), the same happens at the first round that is not, or at the end. When the stream was
//! committed and has ended, the rest is built and the process is let go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pc_image::rules::{Refusal, Rules};
use pc_image::{Item, MapChange, NamespaceKind, PAGE_SIZE, Pages, Patches, Record, Source, SpaceId, Thread};

use crate::early::Early;
use crate::error::{Context, RebuildError};
use crate::group::{self, Group};
use crate::image::Image;
use crate::kept::{Kept, Part};
use crate::memory::{self, Memory};
use crate::newborn::{self, Newborn};
use crate::openfile::AtRelease;
use crate::place::Place;
use crate::running::{Restored, Times};
use crate::settings::{Notices, Settings, Stage, Stages};
use crate::tcp::Connections;
use crate::thread::Tids;
use crate::{
    cgroup, clocks, controls, creds, external, fdtable, file, machine, mm_settings, namespace, openfile,
    procfile, shortage, signal, task, thread,
};

/// Restores the process that `source` describes. Must be called on a thread that lives as long as the process is not to
/// die with it (a parent-death signal is sent by the thread that made the child).
pub fn restore(
    settings: &Settings,
    source: &mut dyn Source,
    notices: Notices<'_>,
    stages: Stages<'_>,
) -> Result<Restored, RebuildError> {
    let watch = shortage::Watch::begin();
    run(settings, source, notices, stages).map_err(|error| watch.explain(error))
}

fn run(
    settings: &Settings,
    source: &mut dyn Source,
    notices: Notices<'_>,
    stages: Stages<'_>,
) -> Result<Restored, RebuildError> {
    let mut engine = Engine::new(settings);
    engine.groups = group::limited();
    if let Some(namespace) = namespace::entry(&settings.join, NamespaceKind::Mnt) {
        engine.image.place = Place::joined(namespace).what("looking into the mount namespace of --join")?;
    }
    engine.connections = namespace::in_network(&settings.join, || Connections::prepare(settings))?;
    let start = Instant::now();
    while let Some(item) = next(settings, source)? {
        let began = Instant::now();
        engine.take(item, stages)?;
        engine.times.apply += began.elapsed();
        if settings.handover && engine.is_complete() {
            engine.received(start);
            engine.build_all(notices)?;
            stages(Stage::Built)?;
        }
        if (settings.run_at_commit || settings.handover) && engine.image.committed {
            break;
        }
        if let Some(husk) = &mut engine.husk {
            husk.1.writers.take_free().into_iter().for_each(|buffer| source.recycle(buffer));
        }
    }
    if !engine.image.committed {
        return Err(RebuildError::NotCommitted);
    }
    if engine.built.is_none() {
        engine.received(start);
        engine.build_all(notices)?;
    }
    settings.check_cancel()?;
    stages(Stage::Committed)?;
    engine.release()
}

/// What a restore would make of a stream, as far as that can be told without a kernel: nothing is judged by this
/// machine, and nothing is built. Gives the number of pages that would be written. For fuzzing.
#[doc(hidden)]
pub fn plan(source: &mut dyn Source) -> Result<u64, RebuildError> {
    let settings = Settings { no_pipeline: true, ..Settings::default() };
    let mut engine = Engine::new(&settings);
    while let Some(item) = source.next()? {
        match item {
            Item::Record(record) if matches!(*record, Record::Machine(_) | Record::File(_)) => {
                engine.image.take(*record)?;
            }
            item => engine.take(item, &mut |_| Ok(()))?,
        }
    }
    let kept = engine.kept;
    kept.zero_ranges()
        .iter()
        .try_for_each(|&(start, end)| memory::pieces(&engine.image, start, end).map(drop))?;
    let mut pages = 0;
    for part in kept.into_parts() {
        memory::split(&engine.image, &part.runs, part.len, |_| false)?;
        pages += part.runs.iter().map(|run| run.pages).sum::<u64>();
    }
    Ok(pages)
}

/// The next item; a read cut short by a signal that asks us to stop is no error of the stream.
fn next(settings: &Settings, source: &mut dyn Source) -> Result<Option<Item>, RebuildError> {
    settings.check_cancel()?;
    let item = source.next();
    settings.check_cancel()?;
    Ok(item?)
}

struct Engine<'a> {
    settings: &'a Settings,
    image: Image,
    husk: Option<(Newborn, Memory)>,
    kept: Kept,
    early: Early,
    keeping: bool,
    last_round: bool,
    /// When the round of now began, and what had been spent on applying until then.
    last_began: Option<Instant>,
    applied_before: Duration,
    judged: bool,
    rules: Rules,
    pages: u64,
    patched: u64,
    /// What limits our memory.
    groups: Vec<Group>,
    times: Times,
    connections: Connections,
    /// All that is to be built before the process may run, and when that began.
    built: Option<(Newborn, AtRelease, Instant)>,
}

impl<'a> Engine<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            image: Image::default(),
            husk: None,
            kept: Kept::default(),
            early: Early::default(),
            last_round: false,
            last_began: None,
            applied_before: Duration::ZERO,
            judged: false,
            rules: Rules::default(),
            built: None,
            keeping: settings.no_pipeline || settings.start_round > 0,
            pages: 0,
            patched: 0,
            groups: Vec::new(),
            times: Times::default(),
            connections: Connections::default(),
        }
    }

    fn take(&mut self, item: Item, stages: Stages<'_>) -> Result<(), RebuildError> {
        if self.built.is_some() {
            return self.take_late(item);
        }
        if let Item::Record(record) = &item
            && let Record::RoundBegin(round) = record.as_ref()
        {
            self.last_round = round.last;
            self.last_began = Some(Instant::now());
            self.applied_before = self.times.apply;
        }
        self.judge(&item)?;
        let Some(item) = self.image.objects.take(item)? else { return Ok(()) };
        let record = match item {
            Item::Pages(pages) => return self.take_pages(pages),
            Item::Patches(patches) => return self.take_patches(patches),
            Item::Record(record) => *record,
        };
        if let Record::OpenFile(open) = &record {
            external::judge(open, self.settings)?;
        }
        match &record {
            Record::Machine(machine) => machine::judge(machine)?,
            Record::File(file) => file::judge(&self.image.place, file)?,
            Record::TaskNamespaces(namespaces) => namespace::judge(namespaces, self.settings)?,
            Record::Cgroup(cgroup) => drop(cgroup::folders(Some(cgroup), self.settings)?),
            Record::RoundBegin(round)
                if self.keeping
                    && !self.settings.no_pipeline
                    && round.number >= self.settings.start_round =>
            {
                self.stop_keeping()?;
            }
            Record::RoundEnd(end) => {
                if let Some((_, memory)) = &mut self.husk {
                    memory.round_done()?;
                }
                self.follow_threads()?;
                self.judged(stages)?;
                stages(Stage::Round(end.number))?;
            }
            Record::MapChange(change) => {
                self.change(change)?;
                if self.husk.is_some() {
                    self.judged(stages)?;
                }
            }
            Record::OpenFile(open) if !self.keeping && !self.last_round => self.early.open(&self.image, open),
            Record::Zap(zap) => {
                self.check_space(zap.space)?;
                self.kept.forget(&zap.ranges);
                if let Some((newborn, memory)) = &mut self.husk {
                    memory.zap(newborn, &zap.ranges)?;
                }
            }
            Record::ZeroPages(zero) => {
                self.check_space(zero.space)?;
                self.check_ranges(&zero.ranges)?;
                match &mut self.husk {
                    Some((newborn, memory)) => memory.zero(newborn, &self.image, &zero.ranges)?,
                    None => self.kept.zero(&zero.ranges),
                }
            }
            _ => {}
        }
        self.image.take(record)
    }

    /// All was read, from a time on.
    fn received(&mut self, start: Instant) {
        self.times.receive = start.elapsed();
        self.times.last_receive = self.last_began.map_or(Duration::ZERO, |began| began.elapsed());
    }

    /// Refuses what no machine could rebuild.
    fn judge(&mut self, item: &Item) -> Result<(), RebuildError> {
        let Item::Record(record) = item else { return Ok(()) };
        let refused: Vec<String> = self.rules.judge(record).iter().map(Refusal::to_string).collect();
        if refused.is_empty() { Ok(()) } else { Err(RebuildError::Unsupported(refused.join("\n"))) }
    }

    /// What may come after a complete image: signals that arrived meanwhile, and Commit.
    fn take_late(&mut self, item: Item) -> Result<(), RebuildError> {
        self.judge(&item)?;
        let Item::Record(record) = item else { return Err(too_late()) };
        match *record {
            Record::Thread(ref thread) if !self.image.threads.contains_key(&thread.tid) => Err(too_late()),
            Record::TaskState(_)
            | Record::Thread(_)
            | Record::RoundEnd(_)
            | Record::Commit(_)
            | Record::Cancel(_) => self.image.take(*record),
            _ => Err(too_late()),
        }
    }

    /// The skeleton asks for nothing that is not here.
    fn judged(&mut self, stages: Stages<'_>) -> Result<(), RebuildError> {
        if std::mem::replace(&mut self.judged, true) {
            return Ok(());
        }
        if self.husk.is_none() {
            self.check_pids()?;
        }
        stages(Stage::Judged)
    }

    /// Whether all is known that a Commit needs, and not yet built.
    fn is_complete(&self) -> bool {
        self.last_round && self.built.is_none() && self.image.is_complete()
    }

    fn check_space(&self, space: SpaceId) -> Result<(), RebuildError> {
        match self.image.task()?.space {
            Some(own) if own == space => Ok(()),
            _ => {
                Err(RebuildError::Unsupported(format!("pages of space {}, which is not the task's", space.0)))
            }
        }
    }

    fn check_ranges(&self, ranges: &[(u64, u64)]) -> Result<(), RebuildError> {
        ranges.iter().try_for_each(|&(start, end)| memory::pieces(&self.image, start, end).map(drop))
    }

    fn change(&mut self, change: &MapChange) -> Result<(), RebuildError> {
        self.check_space(change.space)?;
        self.image.change(change);
        self.kept.forget(&change.unmap);
        if self.keeping {
            return Ok(());
        }
        if self.husk.is_none() {
            return self.build();
        }
        match &mut self.husk {
            Some((newborn, memory)) => memory.change(newborn, &self.image, change),
            None => Ok(()),
        }
    }

    /// Threads are made while the original runs; those of the stop are made right at the end.
    fn follow_threads(&mut self) -> Result<(), RebuildError> {
        let Some((newborn, _)) = &mut self.husk else { return Ok(()) };
        if self.last_round {
            return Ok(());
        }
        let task = self.image.task()?;
        settle_clocks(newborn, &self.image)?;
        thread::follow(&mut newborn.husk, task.pid, &task.tids).map(drop)
    }

    fn take_pages(&mut self, pages: Pages) -> Result<(), RebuildError> {
        self.check_space(pages.space)?;
        let needed = self.image.machine().map_or(0, |machine| machine.memory_needed);
        group::judge(&self.groups, needed.saturating_sub(self.pages.saturating_mul(PAGE_SIZE)))?;
        self.pages += pages.runs.iter().map(|run| run.pages).sum::<u64>();
        match &mut self.husk {
            Some((newborn, memory)) => memory.pages(newborn, &self.image, Part::whole(pages)),
            None => {
                memory::split(&self.image, &pages.runs, pages.data().len(), |_| false)?;
                self.kept.pages(pages);
                Ok(())
            }
        }
    }

    fn take_patches(&mut self, patches: Patches) -> Result<(), RebuildError> {
        self.check_space(patches.space)?;
        self.patched += patches.page_count();
        match &mut self.husk {
            Some((_, memory)) => memory.patches(&self.image, patches),
            None => {
                memory::split_patches(&self.image, &patches.patches)?;
                self.kept.patch(&patches)
            }
        }
    }

    /// Makes the husk with all mappings that are known.
    fn build(&mut self) -> Result<(), RebuildError> {
        let task = self.image.task()?;
        self.image.machine()?;
        namespace::judge_user(self.image.namespaces.as_ref(), task.tids.len(), self.settings)?;
        let space = task.space.ok_or_else(|| RebuildError::Unsupported("a zombie".into()))?;
        self.check_pids()?;
        let vmas: Vec<_> = self.image.vmas.values().cloned().collect();
        let new_session = task::own_session(task, self.settings) && !self.settings.new_pid_ns
            || self.settings.detach && self.settings.new_pid_ns;
        let mut newborn = newborn::make(self.settings, task.pid, &vmas, new_session)?;
        if self.settings.new_pid_ns {
            self.image.place =
                Place::copied(newborn.husk.pid()).what("looking into the mount namespace of the process")?;
        }
        cgroup::enter(newborn.husk.pid(), &cgroup::folders(self.image.cgroup.as_ref(), self.settings)?)?;
        namespace::enter(&mut newborn, &self.settings.join)?;
        let mut memory = Memory::new(&mut newborn)?;
        let whole = MapChange { space, unmap: Vec::new(), map: vmas, modify: Vec::new() };
        memory.change(&mut newborn, &self.image, &whole)?;
        self.husk = Some((newborn, memory));
        Ok(())
    }

    /// Its numbers have to be free, where they are not those of a namespace of its own.
    fn check_pids(&self) -> Result<(), RebuildError> {
        if self.settings.new_pid_ns {
            return Ok(());
        }
        let task = self.image.task()?;
        let taken = task.tids.iter().find_map(|tid| Some((*tid, newborn::still_taken(*tid)?)));
        taken.map_or(Ok(()), |(pid, holder)| Err(RebuildError::PidTaken { pid, holder }))
    }

    /// From here on everything is applied at once, beginning with what was kept.
    fn stop_keeping(&mut self) -> Result<(), RebuildError> {
        if !self.keeping {
            return Ok(());
        }
        self.keeping = false;
        if self.image.vmas.is_empty() {
            return Ok(());
        }
        self.build()?;
        let kept = std::mem::take(&mut self.kept);
        let Some((newborn, memory)) = &mut self.husk else { return Ok(()) };
        memory.zero(newborn, &self.image, &kept.zero_ranges())?;
        for part in kept.into_parts() {
            memory.pages(newborn, &self.image, part)?;
        }
        memory.round_done()
    }

    /// Builds all that can be built before it is decided that the process runs.
    fn build_all(&mut self, notices: Notices<'_>) -> Result<(), RebuildError> {
        let last_byte = Instant::now();
        self.stop_keeping()?;
        let Some((mut newborn, mut memory)) = self.husk.take() else {
            return Err(RebuildError::Contradiction("a process without mappings".into()));
        };
        memory.settle()?;
        drop(memory);
        self.times.apply += last_byte.elapsed();
        self.settings.check_cancel()?;
        self.image.forget_closed();
        let connections = std::mem::take(&mut self.connections);
        let finisher = Finisher { image: &self.image, settings: self.settings, newborn: &mut newborn };
        let later = finisher.run(&mut self.early, &mut self.times, connections, notices)?;
        self.times.last_apply = self.times.apply.saturating_sub(self.applied_before);
        self.settings.check_cancel()?;
        self.times.hooks = later.ready(self.settings, newborn.husk.pid())?;
        self.built = Some((newborn, later, last_byte));
        Ok(())
    }

    /// Lets the process run. That may fail only before any of it does.
    fn release(mut self) -> Result<Restored, RebuildError> {
        let began = Instant::now();
        let Some((mut newborn, mut later, last_byte)) = self.built.take() else {
            return Err(RebuildError::Contradiction("a process without mappings".into()));
        };
        Finisher { image: &self.image, settings: self.settings, newborn: &mut newborn }.last()?;
        let (pid, threads) = (newborn.husk.pid(), self.image.threads.len());
        namespace::in_network(&self.settings.join, || {
            later.listen(pid)?;
            later.connections.go_on()
        })?;
        let stopped = self.settings.leave_stopped
            || self.image.task_state.as_ref().is_some_and(|state| state.stopped.is_some());
        // It lives as long as anything does in its namespace.
        let init = newborn.init.map(|init| init.release(self.settings.detach)).transpose()?;
        newborn.husk.release(stopped).what("letting the process run")?;
        let rules = later.done();
        self.times.release = began.elapsed();
        self.times.restore = last_byte.elapsed();
        let pages = self.pages + self.image.objects.pages;
        let patched = self.patched + self.image.objects.patched;
        rules.remove();
        Ok(Restored::new(pid, init, threads, (pages, patched), self.times))
    }
}

/// Makes the clocks of a husk that has one thread go on from where they were, as far as the readings tell.
fn settle_clocks(newborn: &mut Newborn, image: &Image) -> Result<(), RebuildError> {
    if newborn.clocks.is_some() {
        return Ok(());
    }
    let own = clocks::own_offsets();
    let needed = clocks::needed(&image.machine()?.boot_id, &clocks::boot_id(), own, &image.clocks);
    if let Some(offsets) = needed {
        let namespace = clocks::make_namespace(offsets)?;
        task::enter_time(newborn, &namespace)?;
    }
    newborn.clocks = Some(needed.unwrap_or_default());
    Ok(())
}

/// Builds all that is not memory.
struct Finisher<'a> {
    image: &'a Image,
    settings: &'a Settings,
    newborn: &'a mut Newborn,
}

fn too_late() -> RebuildError {
    RebuildError::Contradiction("more of the process comes when all of it was said".into())
}

fn absent(what: &str) -> RebuildError {
    RebuildError::Contradiction(format!("{what} was never sent"))
}

impl Finisher<'_> {
    fn run(
        mut self,
        early: &mut Early,
        times: &mut Times,
        connections: Connections,
        notices: Notices<'_>,
    ) -> Result<AtRelease, RebuildError> {
        let image = self.image;
        let task = image.task()?;
        let state = image.task_state.as_ref().ok_or_else(|| absent("the state of the task"))?;
        let mm = image.mm_state.as_ref().ok_or_else(|| absent("the state of the address space"))?;
        let table = image.fd_table.as_ref().ok_or_else(|| absent("the table of descriptors"))?;
        let sigs = image.sig_table.as_ref().ok_or_else(|| absent("the table of signal actions"))?;
        if !image.threads.contains_key(&task.pid) {
            return Err(absent("the main thread"));
        }
        if let Some(namespaces) = &image.namespaces {
            namespace::notices(namespaces, self.settings, notices);
        }
        cgroup::notice(image.cgroup.as_ref(), self.settings, notices);
        let mut lap = Lap(Instant::now());
        task::session(self.newborn, task, self.settings, notices)?;
        settle_clocks(self.newborn, image)?;
        task::surroundings(self.newborn, image, state)?;
        task::mm(self.newborn, image, mm)?;
        memory::guard(self.newborn, image, &mm.guards)?;
        mm_settings::keys(&mut self.newborn.husk, image)?;
        memory::lock(self.newborn, image)?;
        times.apply += lap.take();
        let (built, later) = namespace::in_network(&self.settings.join, || {
            openfile::build_all(image, early, self.settings, connections, notices)
        })?;
        fdtable::install(self.newborn, &procfile::others(image, table), &built)?;
        drop(built);
        procfile::install(self.newborn, image, table)?;
        openfile::finish(self.newborn, image, table, notices)?;
        times.descriptors = lap.take();
        signal::actions(&mut self.newborn.husk, sigs)?;
        let wanted: Vec<u32> = image.threads.keys().copied().collect();
        let tids = thread::follow(&mut self.newborn.husk, task.pid, &wanted)?;
        thread::equip(&mut self.newborn.husk, &tids, &image.threads, state.personality)?;
        task::lock_future(&mut self.newborn.husk, mm)?;
        mm_settings::settle(&mut self.newborn.husk, image, &tids)?;
        let husk = &mut self.newborn.husk;
        image.task_settings.as_ref().map_or(Ok(()), |settings| controls::task(husk, settings))?;
        controls::threads(husk, &tids, image)?;
        let dates = image.timer_dates.as_ref().map_or(&[][..], |dates| &dates.dates);
        task::timers(husk, state, dates)?;
        image.task_settings.as_ref().map_or(Ok(()), |settings| controls::task_last(husk, settings))?;
        let threads =
            namespace::credentials(image.namespaces.as_ref(), &self.settings.join, image.threads.clone())?;
        let door = namespace::bring_user(self.newborn, &self.settings.join)?;
        task::limits(&mut self.newborn.husk, state, notices)?;
        task::by_proc(self.newborn.husk.pid(), image, state, mm, self.settings, notices)?;
        if let Some(door) = door {
            namespace::enter_user(self.newborn, door, &threads[&task.pid].creds)?;
        }
        self.restrain(&tids, &threads, notices)?;
        task::mm_last(&mut self.newborn.husk, mm, notices)?;
        mm_settings::restrain(&mut self.newborn.husk, image)?;
        times.threads = lap.take();
        Ok(later)
    }

    /// What has to wait for the last word: signals, registers, the way out.
    fn last(&mut self) -> Result<(), RebuildError> {
        let image = self.image;
        let task = image.task()?;
        let wanted: Vec<u32> = image.threads.keys().copied().collect();
        let tids = thread::follow(&mut self.newborn.husk, task.pid, &wanted)?;
        self.pending(&tids, task.pid)?;
        let state = image.task_state.as_ref().ok_or_else(|| absent("the state of the task"))?;
        task::last_limit(&mut self.newborn.husk, state)?;
        thread::registers(&mut self.newborn.husk, &tids, &image.threads)?;
        self.newborn.husk.unmap_scratch(self.newborn.vdso).what("leaving the process")?;
        self.urgent(&tids)?;
        if let Some(time) = self.clocks_behind()? {
            std::thread::sleep(time);
        }
        Ok(())
    }

    /// How long to wait so that no clock goes back.
    fn clocks_behind(&mut self) -> Result<Option<Duration>, RebuildError> {
        let offsets = self.newborn.clocks.unwrap_or_default();
        let now = clocks::Reading::now()?;
        let behind = self.image.clocks.iter().map(|(there, _)| {
            let monotonic = there.monotonic - (now.monotonic + offsets.monotonic);
            monotonic.max(there.boottime - (now.boottime + offsets.boottime))
        });
        let behind = behind.max().unwrap_or(0);
        Ok((behind > 0).then(|| Duration::from_nanos(behind.unsigned_abs())))
    }

    fn pending(&mut self, tids: &Tids, pid: u32) -> Result<(), RebuildError> {
        let (image, husk) = (self.image, &mut self.newborn.husk);
        let shared = image.task_state.as_ref().map_or(&[][..], |state| &state.pending);
        let calls = signal::pending(husk, pid, None, shared)?;
        husk.batch_ok(husk.pid(), &calls).what("queueing pending signals")?;
        husk.reset();
        for thread in image.threads.values().filter(|t| !t.pending.is_empty()) {
            let calls = signal::pending(husk, pid, Some(thread.tid), &thread.pending)?;
            husk.batch_ok(tids[&thread.tid], &calls).what("queueing pending signals")?;
            husk.reset();
        }
        Ok(())
    }

    /// The pending signals that remote calls would swallow.
    fn urgent(&mut self, tids: &Tids) -> Result<(), RebuildError> {
        let pid = self.newborn.husk.pid();
        let shared = self.image.task_state.as_ref().is_some_and(|state| signal::urgent(&state.pending));
        let threads = self.image.threads.values().filter(|t| signal::urgent(&t.pending));
        let threads: Vec<_> = threads.map(|t| tids[&t.tid]).collect();
        if shared || !threads.is_empty() {
            self.newborn.husk.prepare_release()?;
        }
        if shared {
            signal::send_urgent(pid, None)?;
        }
        threads.into_iter().try_for_each(|tid| signal::send_urgent(pid, Some(tid)))
    }

    fn restrain(
        &mut self,
        tids: &Tids,
        threads: &BTreeMap<u32, Thread>,
        notices: Notices<'_>,
    ) -> Result<(), RebuildError> {
        let own = creds::of(self.newborn.husk.pid())?;
        let keep = !self.settings.detach;
        if !keep && threads.values().any(|t| t.pdeath_signal != 0) {
            notices("its parent-death signal is dropped: its parent here is gone at once");
        }
        thread::restrain(&mut self.newborn.husk, tids, threads, &own, keep)
    }
}

/// Time since the last lap.
struct Lap(Instant);

impl Lap {
    fn take(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
