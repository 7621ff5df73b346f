//! What a stream says, gathered while it is read. Page contents are not kept.

use std::collections::BTreeMap;

use pc_frame::Preamble;
use pc_image::*;

use crate::text::plain;

/// A round as it went by.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // as in RoundBegin and RoundEnd
pub struct Round {
    /// Which segment it is of, from 0.
    pub segment: u64,
    pub number: u32,
    pub last: bool,
    pub clocks: Clocks,
    pub counts: Counts,
    /// Bytes of its Patches.
    pub patch_bytes: u64,
    /// Records in it, page data not counted.
    pub records: u64,
    /// Whether its end was reached.
    pub ended: bool,
}

/// A mapping with what was sent for it.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// The mapping.
    pub vma: Vma,
    /// Pages sent with their bytes, in all rounds.
    pub sent: u64,
    /// Pages sent as zeroes.
    pub zero: u64,
}

/// All that is known of a stream.
#[derive(Debug, Default)]
#[allow(missing_docs)] // records by their numbers, the latest word counting
pub struct Model {
    /// Segments that have begun.
    pub segments: u64,
    pub machine: Option<Machine>,
    pub rounds: Vec<Round>,
    pub tasks: BTreeMap<TaskId, Task>,
    pub namespaces: BTreeMap<TaskId, TaskNamespaces>,
    pub cgroups: BTreeMap<TaskId, Cgroup>,
    pub procs: BTreeMap<TaskId, TaskProc>,
    pub spaces: BTreeMap<SpaceId, Space>,
    /// Shared memory objects.
    pub objects: BTreeMap<SpaceId, ShmState>,
    pub files: BTreeMap<FileId, File>,
    pub maps: BTreeMap<SpaceId, BTreeMap<u64, Mapping>>,
    pub mm: BTreeMap<SpaceId, MmState>,
    pub mm_settings: BTreeMap<SpaceId, MmSettings>,
    pub sigs: BTreeMap<SigTableId, SigTable>,
    pub states: BTreeMap<TaskId, TaskState>,
    pub threads: BTreeMap<(TaskId, u32), Thread>,
    /// Of the last round.
    pub controls: BTreeMap<TaskId, TaskSettings>,
    /// Of the last round.
    pub thread_controls: BTreeMap<(TaskId, u32), ThreadSettings>,
    /// Of the last round.
    pub dates: BTreeMap<TaskId, TimerDates>,
    pub fd_tables: BTreeMap<FdTableId, FdTable>,
    pub open_files: BTreeMap<OpenFileId, OpenFile>,
    pub sockets: BTreeMap<OpenFileId, SocketState>,
    /// How many datagrams wait in sockets.
    pub queues: BTreeMap<OpenFileId, usize>,
    pub commit: Option<Commit>,
    pub cancel: Option<Cancel>,
    pub stream_id: Option<[u8; 16]>,
    /// How much was read.
    pub bytes: u64,
    /// What is wrong with the stream.
    pub wrong: Option<ImageError>,
}

impl Model {
    /// A segment begins. What it says adds to what earlier ones said; the stream is complete only if this one is.
    pub fn segment(&mut self, preamble: &Preamble) {
        self.segments += 1;
        self.stream_id = Some(preamble.stream_id);
        self.commit = None;
        self.cancel = None;
    }

    /// Whether the stream is right to its end, and committed.
    pub fn complete(&self) -> bool {
        self.commit.is_some() && self.wrong.is_none()
    }

    /// Takes an item in; gives back a page buffer for reuse.
    pub fn item(&mut self, item: Item) -> Option<Vec<u8>> {
        match item {
            Item::Record(record) => {
                self.record(*record);
                None
            }
            Item::Pages(pages) => {
                for run in &pages.runs {
                    let range = (run.addr, run.addr + run.pages * PAGE_SIZE);
                    self.count(pages.space, range, |mapping, n| {
                        mapping.sent = mapping.sent.saturating_add(n)
                    });
                }
                if let Some(round) = self.rounds.last_mut() {
                    round.counts.pages += pages.runs.iter().map(|run| run.pages).sum::<u64>();
                }
                Some(pages.payload)
            }
            Item::Patches(patches) => {
                if let Some(round) = self.rounds.last_mut() {
                    round.counts.patched_pages =
                        round.counts.patched_pages.saturating_add(patches.page_count());
                    round.patch_bytes = round.patch_bytes.saturating_add(patches.payload.len() as u64);
                }
                Some(patches.payload)
            }
        }
    }

    fn record(&mut self, record: Record) {
        if let Some(round) = self.rounds.last_mut() {
            round.records += 1;
        }
        match record {
            Record::Machine(machine) => self.machine = Some(machine),
            Record::RoundBegin(begin) => self.round(&begin),
            Record::RoundEnd(end) => {
                if let Some(round) = self.rounds.last_mut() {
                    round.counts = end.counts;
                    round.ended = true;
                }
            }
            Record::Task(task) => drop(self.tasks.insert(task.id, task)),
            Record::TaskGone(id) => {
                self.tasks.remove(&id);
                self.states.remove(&id);
                self.namespaces.remove(&id);
                self.cgroups.remove(&id);
                self.procs.remove(&id);
                self.threads.retain(|(task, _), _| *task != id);
            }
            Record::Space(space) => drop(self.spaces.insert(space.id, space)),
            Record::SpaceGone(id) => {
                self.spaces.remove(&id);
                self.maps.remove(&id);
                self.mm.remove(&id);
                self.mm_settings.remove(&id);
                self.objects.remove(&id);
            }
            Record::ShmState(state) => drop(self.objects.insert(state.space, state)),
            Record::TaskNamespaces(namespaces) => drop(self.namespaces.insert(namespaces.task, namespaces)),
            Record::Cgroup(cgroup) => drop(self.cgroups.insert(cgroup.task, cgroup)),
            Record::TaskProc(proc) => drop(self.procs.insert(proc.task, proc)),
            Record::File(file) => drop(self.files.insert(file.id, file)),
            Record::MapChange(change) => self.map_change(change),
            Record::Zap(_) => {}
            Record::ZeroPages(zero) => {
                if let Some(round) = self.rounds.last_mut() {
                    let pages = zero.ranges.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum::<u64>();
                    round.counts.zero_pages = round.counts.zero_pages.saturating_add(pages);
                }
                for range in &zero.ranges {
                    self.count(zero.space, *range, |mapping, n| {
                        mapping.zero = mapping.zero.saturating_add(n);
                    });
                }
            }
            Record::MmState(mm) => drop(self.mm.insert(mm.space, mm)),
            Record::MmSettings(set) => drop(self.mm_settings.insert(set.space, set)),
            Record::SigTable(table) => drop(self.sigs.insert(table.id, table)),
            Record::TaskState(state) => drop(self.states.insert(state.task, state)),
            Record::Thread(thread) => drop(self.threads.insert((thread.task, thread.tid), thread)),
            Record::TaskSettings(settings) => drop(self.controls.insert(settings.task, settings)),
            Record::ThreadSettings(settings) => {
                drop(self.thread_controls.insert((settings.task, settings.tid), settings));
            }
            Record::TimerDates(dates) => drop(self.dates.insert(dates.task, dates)),
            Record::FdTable(table) => drop(self.fd_tables.insert(table.id, table)),
            Record::OpenFile(file) => {
                self.sockets.remove(&file.id);
                self.queues.remove(&file.id);
                self.open_files.insert(file.id, file);
            }
            Record::SocketState(state) => drop(self.sockets.insert(state.file, state)),
            Record::Queue(queue) => {
                let waiting = queue.first as usize + queue.datagrams.len();
                self.queues.insert(queue.file, waiting);
            }
            Record::Commit(commit) => self.commit = Some(commit),
            Record::Cancel(cancel) => self.cancel = Some(cancel),
        }
    }

    fn round(&mut self, begin: &RoundBegin) {
        self.controls.clear();
        self.thread_controls.clear();
        self.dates.clear();
        self.rounds.push(Round {
            segment: self.segments.saturating_sub(1),
            number: begin.number,
            last: begin.last,
            clocks: begin.clocks,
            counts: Counts::default(),
            patch_bytes: 0,
            records: 0,
            ended: false,
        });
    }

    fn map_change(&mut self, change: MapChange) {
        let maps = self.maps.entry(change.space).or_default();
        for (start, end) in change.unmap {
            cut(maps, start, end);
        }
        for vma in change.map {
            maps.insert(vma.start, Mapping { vma, sent: 0, zero: 0 });
        }
        for vma in change.modify {
            let inside = cut(maps, vma.start, vma.end);
            let sum = |of: fn(&Mapping) -> u64| inside.iter().map(of).fold(0, u64::saturating_add);
            let (sent, zero) = (sum(|m| m.sent), sum(|m| m.zero));
            maps.insert(vma.start, Mapping { vma, sent, zero });
        }
    }

    /// Adds the pages of a range to the mappings that it lies in.
    fn count(&mut self, space: SpaceId, (start, end): (u64, u64), add: impl Fn(&mut Mapping, u64)) {
        let Some(maps) = self.maps.get_mut(&space) else { return };
        let first = maps.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (_, mapping) in maps.range_mut(first..end) {
            let from = start.max(mapping.vma.start);
            let to = end.min(mapping.vma.end);
            if from < to {
                add(mapping, (to - from) / PAGE_SIZE);
            }
        }
    }

    /// A file's path, for people.
    pub fn path(&self, id: FileId) -> String {
        self.files.get(&id).map_or_else(|| "?".to_owned(), |file| plain(&file.path))
    }

    /// The name of a shared memory object.
    pub fn object(&self, id: SpaceId) -> String {
        match self.spaces.get(&id).map(|space| &space.kind) {
            Some(SpaceKind::Shm { name, .. }) => plain(name),
            _ => "[shm]".to_owned(),
        }
    }

    /// What a mapping shows, as the last column of /proc/PID/maps has it.
    pub fn backing(&self, space: SpaceId, vma: &Vma) -> String {
        let of_mm = |f: fn(&MmState) -> (u64, u64)| {
            self.mm.get(&space).map(f).is_some_and(|(from, to)| vma.start < to && from < vma.end)
        };
        match &vma.backing {
            Backing::Anonymous => match &vma.name {
                Some(name) => format!("[anon:{}]", plain(name)),
                None if of_mm(|mm| (mm.start_brk, mm.brk)) => "[heap]".to_owned(),
                None if of_mm(|mm| (mm.start_stack, mm.start_stack.saturating_add(1))) => {
                    "[stack]".to_owned()
                }
                None => String::new(),
            },
            Backing::File { file, .. } => self.path(*file),
            Backing::Shm { space, .. } => self.object(*space),
            Backing::Hugetlb { shift } => format!("[hugetlb:{} KiB]", (1u64 << shift.clamp(&10, &40)) >> 10),
            Backing::Vdso => "[vdso]".to_owned(),
            Backing::Vvar => "[vvar]".to_owned(),
            Backing::VvarVclock => "[vvar_vclock]".to_owned(),
            Backing::Vsyscall => "[vsyscall]".to_owned(),
        }
    }
}

/// Takes a range out of the mappings, splitting those that reach beyond it; gives what was in it.
fn cut(maps: &mut BTreeMap<u64, Mapping>, start: u64, end: u64) -> Vec<Mapping> {
    let mut inside = Vec::new();
    while let Some((&at, _)) = maps.range(..end).next_back().filter(|(_, m)| m.vma.end > start) {
        let Some(mapping) = maps.remove(&at) else { break };
        let (before, rest) = split(mapping, start);
        let (within, after) = rest.map_or((None, None), |rest| split(rest, end));
        for part in before.into_iter().chain(after) {
            maps.insert(part.vma.start, part);
        }
        inside.extend(within);
    }
    inside
}

/// The parts of a mapping before and from an address. Which part the pages sent belong to is not known any more: they
/// are shared out by size.
fn split(mapping: Mapping, at: u64) -> (Option<Mapping>, Option<Mapping>) {
    let Mapping { vma, sent, zero } = mapping;
    if at <= vma.start {
        return (None, Some(Mapping { vma, sent, zero }));
    }
    if at >= vma.end {
        return (Some(Mapping { vma, sent, zero }), None);
    }
    let (part, whole) = (u128::from(at - vma.start), u128::from(vma.end - vma.start));
    let share = |n: u64| (u128::from(n) * part / whole) as u64;
    let before = Mapping { vma: Vma { end: at, ..vma.clone() }, sent: share(sent), zero: share(zero) };
    let after = Mapping { vma: behind(vma, at), sent: sent - before.sent, zero: zero - before.zero };
    (Some(before), Some(after))
}

/// The part of a mapping from `at` on.
fn behind(mut vma: Vma, at: u64) -> Vma {
    let skipped = at - vma.start;
    if let Backing::File { offset, .. } | Backing::Shm { offset, .. } = &mut vma.backing {
        *offset = offset.saturating_add(skipped); // a stream may claim any offset
    }
    Vma { start: at, ..vma }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_in_a_file_mapping_leaves_both_parts_with_their_offsets() {
        let backing = Backing::File { file: FileId(0), offset: 0x1000 };
        let vma = Vma { start: 0x10000, end: 0x20000, prot: 1, flags: 0, pkey: 0, backing, name: None };
        let mut model = Model::default();
        let space = SpaceId(0);
        model.map_change(MapChange { space, unmap: vec![], map: vec![vma], modify: vec![] });
        model.map_change(MapChange { space, unmap: vec![(0x14000, 0x18000)], map: vec![], modify: vec![] });
        let left: Vec<_> =
            model.maps[&space].values().map(|m| (m.vma.start, m.vma.end, &m.vma.backing)).collect();
        let at = |offset| Backing::File { file: FileId(0), offset };
        assert_eq!(left, [(0x10000, 0x14000, &at(0x1000)), (0x18000, 0x20000, &at(0x9000))]);
    }
}
