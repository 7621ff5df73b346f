//! The grammar of a stream: which record may stand where. Pure; fed with every record in order.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::writer::range_pages;
use crate::{
    Backing, Counts, FdTableId, FileId, MapChange, Membership, MmSettings, OpenFileId, OpenFileKind,
    PAGE_SIZE, Pages, Patches, Queue, Ranges, Record, RoundBegin, ShmState, SigTableId, SocketState, SpaceId,
    SpaceKind, Task, TaskId,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// A segment has begun: Machine (or a Cancel) is due.
    #[default]
    Start,
    /// A round, a Commit (after the last round) or a Cancel is due.
    Between,
    Round,
    /// End is due.
    Closed,
}

/// Parts of a round whose order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Phase {
    #[default]
    Births,
    Maps,
    Zaps,
    Pages,
}

/// Levels of a process tree: far more than any kernel will have been asked for.
const DEEPEST: usize = 4096;
const UNCOUNTABLE: &str = "more pages than can be counted";

/// Numbers in use and numbers that were, which never come back.
#[derive(Debug)]
struct Ids<T> {
    live: HashSet<T>,
    dead: HashSet<T>,
}

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Self { live: HashSet::new(), dead: HashSet::new() }
    }
}

impl<T: Eq + Hash + Copy> Ids<T> {
    fn born(&mut self, id: T, what: &str) -> Result<(), String> {
        if self.dead.contains(&id) || !self.live.insert(id) {
            return Err(format!("the number of a {what} is used again"));
        }
        Ok(())
    }

    fn gone(&mut self, id: T, what: &str) -> Result<(), String> {
        self.need(id, what)?;
        self.live.remove(&id);
        self.dead.insert(id);
        Ok(())
    }

    fn need(&self, id: T, what: &str) -> Result<(), String> {
        if self.live.contains(&id) { Ok(()) } else { Err(format!("a {what} that nobody announced")) }
    }
}

/// Judges the order of records. Answers say what is wrong, for people.
#[derive(Debug, Default)]
pub struct Validator {
    at: At,
    phase: Phase,
    round: u32,
    rounds_in_segment: u32,
    last_round: bool,
    committed: bool,
    counts: Counts,
    totals: Counts,
    tasks: HashMap<TaskId, Task>,
    dead_tasks: HashSet<TaskId>,
    spaces: Ids<SpaceId>,
    address_spaces: HashSet<SpaceId>,
    /// Shared memory objects, and their lengths in bytes as far as they were announced.
    objects: HashMap<SpaceId, Option<u64>>,
    files: Ids<FileId>,
    open_files: HashSet<OpenFileId>,
    /// Those of them that are sockets.
    sockets: HashSet<OpenFileId>,
    /// How many datagrams were said of each.
    queued: HashMap<OpenFileId, u32>,
    fd_tables: HashMap<FdTableId, Vec<OpenFileId>>,
    sig_tables: HashSet<SigTableId>,
    mm_states: HashSet<SpaceId>,
    task_states: HashSet<TaskId>,
    threads: HashSet<(TaskId, u32)>,
    /// Pages of this round by space.
    seen: HashMap<SpaceId, Ranges>,
    /// Pages that were sent with their bytes, in whatever round, and still hold them: those that can be patched.
    held: HashMap<SpaceId, Ranges>,
}

impl Validator {
    /// A preamble was read.
    pub fn begin_segment(&mut self) {
        self.at = At::Start;
        self.round = 0;
        self.rounds_in_segment = 0;
        self.last_round = false;
        self.committed = false;
        self.totals = Counts::default();
    }

    /// An End was read.
    pub fn end_segment(&mut self) -> Result<(), String> {
        if self.at == At::Closed { Ok(()) } else { Err("an End without a Commit".to_owned()) }
    }

    /// Whether the segment's Commit was read.
    pub fn committed(&self) -> bool {
        self.committed
    }

    /// A record was read.
    pub fn record(&mut self, record: &Record) -> Result<(), String> {
        match (self.at, record) {
            (At::Start, Record::Machine(_)) => self.at = At::Between,
            // The source may give up before it has anything to say.
            (At::Start, Record::Cancel(_)) => self.at = At::Closed,
            (At::Start, _) => return Err(format!("{} where Machine was due", record.name())),
            (At::Closed, _) => return Err(format!("{} where End was due", record.name())),
            (_, Record::Cancel(_)) => self.at = At::Closed,
            (At::Between, Record::RoundBegin(begin)) => self.begin_round(begin)?,
            (At::Between, Record::Commit(commit)) => {
                if !self.last_round {
                    return Err("a Commit without a last round".to_owned());
                }
                if commit.totals != self.totals || commit.rounds != self.rounds_in_segment {
                    return Err("the totals in Commit are not those of the stream".to_owned());
                }
                self.complete()?;
                self.committed = true;
                self.at = At::Closed;
            }
            (At::Between, _) => return Err(format!("{} outside of a round", record.name())),
            (At::Round, _) => self.in_round(record)?,
        }
        Ok(())
    }

    fn begin_round(&mut self, begin: &RoundBegin) -> Result<(), String> {
        if self.last_round {
            return Err("a round behind the last".to_owned());
        }
        if begin.number != self.round {
            return Err(format!("round {} where {} was due", begin.number, self.round));
        }
        self.last_round = begin.last;
        self.at = At::Round;
        self.phase = Phase::Births;
        self.counts = Counts::default();
        self.seen.clear();
        Ok(())
    }

    fn in_round(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Task(task) => self.task(task)?,
            Record::TaskGone(id) => {
                self.tasks.remove(id).ok_or("the end of a task that nobody announced")?;
                self.dead_tasks.insert(*id);
            }
            Record::Space(space) => {
                self.spaces.born(space.id, "space")?;
                match space.kind {
                    SpaceKind::Mm => drop(self.address_spaces.insert(space.id)),
                    SpaceKind::Shm { .. } => drop(self.objects.insert(space.id, None)),
                }
            }
            Record::SpaceGone(id) => {
                self.spaces.gone(*id, "space")?;
                self.address_spaces.remove(id);
                self.objects.remove(id);
                self.held.remove(id);
            }
            Record::ShmState(state) => self.object_state(state)?,
            Record::TaskNamespaces(namespaces) => {
                self.need_task(namespaces.task)?;
                if !namespaces.others.is_sorted_by(|a, b| a.kind < b.kind) {
                    return Err("namespaces that are not ascending".to_owned());
                }
            }
            Record::Cgroup(cgroup) => self.need_task(cgroup.task)?,
            Record::TaskProc(proc) => self.need_task(proc.task)?,
            Record::File(file) => self.files.born(file.id, "file")?,
            Record::MapChange(change) => self.map_change(change)?,
            Record::Zap(zap) => {
                self.spaces.need(zap.space, "space")?;
                self.enter(Phase::Zaps)?;
                check_ranges(&zap.ranges)?;
                self.drop_pages(zap.space, &zap.ranges);
                self.count(Counts { zapped_pages: range_pages(&zap.ranges), ..Counts::default() })?;
            }
            Record::ZeroPages(zero) => {
                check_ranges(&zero.ranges)?;
                self.mark(zero.space, &zero.ranges)?;
                self.drop_pages(zero.space, &zero.ranges);
                self.count(Counts { zero_pages: range_pages(&zero.ranges), ..Counts::default() })?;
            }
            Record::MmState(state) => {
                self.spaces.need(state.space, "space")?;
                self.files.need(state.exe, "file")?;
                self.mm_states.insert(state.space);
            }
            Record::MmSettings(settings) => self.mm_settings(settings)?,
            Record::SigTable(table) => {
                if table.actions.len() != 64 {
                    return Err(format!("{} signal actions, 64 are due", table.actions.len()));
                }
                self.sig_tables.insert(table.id);
            }
            Record::TaskState(state) => {
                self.need_task(state.task)?;
                self.files.need(state.cwd, "file")?;
                state.root.map_or(Ok(()), |root| self.files.need(root, "file"))?;
                self.task_states.insert(state.task);
            }
            Record::Thread(thread) => {
                self.need_task(thread.task)?;
                self.threads.insert((thread.task, thread.tid));
            }
            Record::TaskSettings(settings) => self.need_task(settings.task)?,
            Record::ThreadSettings(settings) => self.need_task(settings.task)?,
            Record::TimerDates(dates) => {
                self.need_task(dates.task)?;
                if !dates.dates.is_sorted_by(|a, b| a.0 < b.0) {
                    return Err("dates of timers that are not ascending".to_owned());
                }
            }
            Record::FdTable(table) => {
                if !table.fds.is_sorted_by(|a, b| a.fd < b.fd) {
                    return Err("descriptors that are not ascending".to_owned());
                }
                self.fd_tables.insert(table.id, table.fds.iter().map(|fd| fd.file).collect());
            }
            Record::OpenFile(file) => {
                match &file.kind {
                    OpenFileKind::Regular(regular) => self.files.need(regular.file, "file")?,
                    OpenFileKind::Shm(shm) => self.need_object(shm.space)?,
                    OpenFileKind::Proc(proc) => self.need_task(proc.task)?,
                    _ => {}
                }
                self.open_files.insert(file.id);
                match file.kind {
                    OpenFileKind::Inet(_) | OpenFileKind::Unix(_) => self.sockets.insert(file.id),
                    _ => self.sockets.remove(&file.id),
                };
                self.queued.remove(&file.id);
            }
            Record::SocketState(state) => {
                self.need_socket(state.file)?;
                check_memberships(state)?;
            }
            Record::Queue(queue) => self.queue(queue)?,
            Record::RoundEnd(end) => {
                if end.number != self.round || end.counts != self.counts {
                    return Err("the counts at the end of a round are not those of the round".to_owned());
                }
                self.at = At::Between;
                self.round += 1;
                self.rounds_in_segment += 1;
                self.totals = self.totals.checked_add(self.counts).ok_or(UNCOUNTABLE)?;
            }
            Record::Machine(_) | Record::RoundBegin(_) | Record::Commit(_) | Record::Cancel(_) => {
                return Err(format!("{} inside a round", record.name()));
            }
        }
        Ok(())
    }

    fn task(&mut self, task: &Task) -> Result<(), String> {
        if self.dead_tasks.contains(&task.id) {
            return Err("the number of a task is used again".to_owned());
        }
        if let Some(parent) = task.parent {
            self.need_task(parent)?;
            self.no_cycle(task.id, parent)?;
        }
        // Said again, it replaces what was said: threads come and go.
        self.tasks.insert(task.id, task.clone());
        Ok(())
    }

    /// No task comes to be its own ancestor.
    fn no_cycle(&self, id: TaskId, parent: TaskId) -> Result<(), String> {
        let known = self.tasks.get(&id);
        if known.is_none() && id != parent || known.is_some_and(|task| task.parent == Some(parent)) {
            return Ok(());
        }
        let parent_of = |id: &TaskId| self.tasks.get(id).and_then(|task| task.parent);
        let mut line = std::iter::successors(Some(parent), parent_of);
        let own = line.by_ref().take(DEEPEST).any(|ancestor| ancestor == id);
        if own || line.next().is_some() {
            return Err("a task that is its own ancestor".to_owned());
        }
        Ok(())
    }

    fn need_task(&self, id: TaskId) -> Result<(), String> {
        if self.tasks.contains_key(&id) { Ok(()) } else { Err("a task that nobody announced".to_owned()) }
    }

    fn need_socket(&self, id: OpenFileId) -> Result<(), String> {
        if self.sockets.contains(&id) {
            Ok(())
        } else {
            Err("more about a socket that nobody announced".to_owned())
        }
    }

    /// Datagrams begin anew, or go on where they were.
    fn queue(&mut self, queue: &Queue) -> Result<(), String> {
        self.need_socket(queue.file)?;
        let before = self.queued.get(&queue.file).copied().unwrap_or(0);
        if queue.first != 0 && queue.first != before {
            return Err(format!("datagram {} where {before} was due", queue.first));
        }
        let more = u32::try_from(queue.datagrams.len()).ok();
        let now = more.and_then(|more| queue.first.checked_add(more)).ok_or("too many datagrams")?;
        self.queued.insert(queue.file, now);
        Ok(())
    }

    fn need_object(&self, id: SpaceId) -> Result<(), String> {
        if self.objects.contains_key(&id) {
            Ok(())
        } else {
            Err("a shared memory object that nobody announced".to_owned())
        }
    }

    /// Its length holds for the whole round.
    fn object_state(&mut self, state: &ShmState) -> Result<(), String> {
        self.enter(Phase::Births)?;
        self.need_object(state.space)?;
        self.objects.insert(state.space, Some(state.size));
        self.drop_pages(state.space, &[(room(state.size), u64::MAX)]);
        Ok(())
    }

    fn map_change(&mut self, change: &MapChange) -> Result<(), String> {
        self.enter(Phase::Maps)?;
        if !self.address_spaces.contains(&change.space) {
            return Err("mappings of what is no address space".to_owned());
        }
        check_ranges(&change.unmap)?;
        self.drop_pages(change.space, &change.unmap);
        for vmas in [&change.map, &change.modify] {
            let ranges: Vec<_> = vmas.iter().map(|vma| (vma.start, vma.end)).collect();
            check_ranges(&ranges)?;
            for vma in vmas {
                match &vma.backing {
                    Backing::File { file, .. } => self.files.need(*file, "file")?,
                    Backing::Shm { space, .. } => self.need_object(*space)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn mm_settings(&self, settings: &MmSettings) -> Result<(), String> {
        if !self.address_spaces.contains(&settings.space) {
            return Err("settings of what is no address space".to_owned());
        }
        check_ranges(&settings.sealed)?;
        let policies: Vec<_> = settings.policies.iter().map(|it| (it.start, it.end)).collect();
        check_ranges(&policies)?;
        if !settings.ldt.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("entries of an LDT that are not ascending".to_owned());
        }
        if !settings.thread_policies.is_sorted_by(|a, b| a.tid < b.tid) {
            return Err("memory policies of threads that are not ascending".to_owned());
        }
        Ok(())
    }

    /// Page data were read.
    pub fn pages(&mut self, pages: &Pages) -> Result<(), String> {
        if self.at != At::Round {
            return Err("Pages outside of a round".to_owned());
        }
        let ranges: Vec<_> =
            pages.runs.iter().map(|run| (run.addr, run.addr + run.pages * PAGE_SIZE)).collect();
        self.mark(pages.space, &ranges)?;
        let held = self.held.entry(pages.space).or_default();
        ranges.iter().for_each(|(start, end)| held.insert(*start, *end));
        self.count(Counts { pages: range_pages(&ranges), ..Counts::default() })
    }

    /// Changed bytes of pages were read.
    pub fn patches(&mut self, patches: &Patches) -> Result<(), String> {
        if self.at != At::Round {
            return Err("Patches outside of a round".to_owned());
        }
        let ranges = patches.pages();
        self.mark(patches.space, &ranges)?;
        let held = self.held.entry(patches.space).or_default();
        if let Some((start, end)) = ranges.iter().find(|(start, end)| !held.contains(*start, *end)) {
            return Err(format!("patches of pages of {start:#x}-{end:#x} that were not sent or are gone"));
        }
        self.count(Counts { patched_pages: range_pages(&ranges), ..Counts::default() })
    }

    fn count(&mut self, more: Counts) -> Result<(), String> {
        self.counts = self.counts.checked_add(more).ok_or(UNCOUNTABLE)?;
        Ok(())
    }

    fn drop_pages(&mut self, space: SpaceId, ranges: &[(u64, u64)]) {
        if let Some(held) = self.held.get_mut(&space) {
            ranges.iter().for_each(|(start, end)| held.remove(*start, *end));
        }
    }

    /// Marks pages as sent in this round; each may be only once.
    fn mark(&mut self, space: SpaceId, ranges: &[(u64, u64)]) -> Result<(), String> {
        self.spaces.need(space, "space")?;
        self.enter(Phase::Pages)?;
        let room = match self.objects.get(&space) {
            None => u64::MAX,
            Some(None) => return Err("pages of a shared memory object of unknown length".to_owned()),
            Some(Some(size)) => room(*size),
        };
        let seen = self.seen.entry(space).or_default();
        for &(start, end) in ranges {
            if end > room {
                return Err(format!("pages up to {end:#x} of a shared memory object of {room:#x} bytes"));
            }
            if seen.overlaps(start, end) {
                return Err(format!("pages of {start:#x}-{end:#x} twice in one round"));
            }
            seen.insert(start, end);
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) -> Result<(), String> {
        if phase < self.phase {
            return Err(format!("{phase:?} behind {:?} in one round", self.phase));
        }
        self.phase = phase;
        Ok(())
    }

    /// Whether all that the restorer needs has been said.
    fn complete(&self) -> Result<(), String> {
        let missing = |what: &str, id: TaskId| Err(format!("a Commit, but task {} has no {what}", id.0));
        for (id, task) in &self.tasks {
            let Some(space) = task.space else { continue }; // a zombie
            if !self.address_spaces.contains(&space) {
                return missing("address space that still is", *id);
            }
            if !self.mm_states.contains(&space) {
                return missing("MmState", *id);
            }
            if !self.task_states.contains(id) {
                return missing("TaskState", *id);
            }
            if !task.sigs.is_some_and(|sigs| self.sig_tables.contains(&sigs)) {
                return missing("SigTable", *id);
            }
            let Some(fds) = task.fds.and_then(|fds| self.fd_tables.get(&fds)) else {
                return missing("FdTable", *id);
            };
            if fds.iter().any(|file| !self.open_files.contains(file)) {
                return missing("OpenFile for each descriptor", *id);
            }
            if task.tids.is_empty() || task.tids.iter().any(|tid| !self.threads.contains(&(*id, *tid))) {
                return missing("Thread for each tid", *id);
            }
        }
        if self.objects.values().any(Option::is_none) {
            return Err("a Commit, but a shared memory object has no ShmState".to_owned());
        }
        if self.tasks.is_empty() { Err("a Commit without a task".to_owned()) } else { Ok(()) }
    }
}

/// Addresses of one family in each.
fn check_memberships(state: &SocketState) -> Result<(), String> {
    let good = |member: &Membership| {
        matches!(member.group.len(), 4 | 16)
            && member.sources.iter().all(|source| source.len() == member.group.len())
    };
    if state.memberships.iter().all(good) {
        Ok(())
    } else {
        Err("a multicast group that is no address".to_owned())
    }
}

/// Whole pages, ascending, not overlapping, not empty.
fn check_ranges(ranges: &[(u64, u64)]) -> Result<(), String> {
    let mut behind = 0;
    for &(start, end) in ranges {
        if start < behind
            || end <= start
            || !start.is_multiple_of(PAGE_SIZE)
            || !end.is_multiple_of(PAGE_SIZE)
        {
            return Err(format!("a range {start:#x}-{end:#x} that is not whole pages in ascending order"));
        }
        behind = end;
    }
    Ok(())
}

/// Where the last page of a shared memory object ends.
fn room(size: u64) -> u64 {
    size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX)
}
