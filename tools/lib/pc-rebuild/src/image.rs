//! What the stream has said so far beside pages: the latest word of each record.

use std::collections::{BTreeMap, BTreeSet};

use pc_image::{
    Cgroup, Clocks, Datagram, FdTable, File, FileId, Machine, MapChange, MmSettings, MmState, OpenFile,
    OpenFileId, Record, SigTable, SocketState, SpaceId, SpaceKind, Task, TaskId, TaskNamespaces, TaskProc,
    TaskSettings, TaskState, Thread, ThreadSettings, TimerDates, Vma,
};

use crate::error::{RebuildError, missing};
use crate::inet::Beside;
use crate::place::Place;
use crate::shm::Objects;

/// Everything known, by number.
#[derive(Debug, Default)]
pub struct Image {
    pub machine: Option<Machine>,
    pub tasks: BTreeMap<TaskId, Task>,
    pub spaces: BTreeMap<SpaceId, SpaceKind>,
    /// Shared memory, with what was sent of it.
    pub objects: Objects,
    pub files: BTreeMap<FileId, File>,
    pub vmas: BTreeMap<u64, Vma>,
    pub mm_state: Option<MmState>,
    pub mm_settings: Option<MmSettings>,
    pub sig_table: Option<SigTable>,
    pub task_state: Option<TaskState>,
    pub namespaces: Option<TaskNamespaces>,
    pub cgroup: Option<Cgroup>,
    pub values: Option<TaskProc>,
    /// Where the paths of its files lead.
    pub place: Place,
    pub threads: BTreeMap<u32, Thread>,
    /// Of the last round, as the next two.
    pub task_settings: Option<TaskSettings>,
    pub thread_settings: BTreeMap<u32, ThreadSettings>,
    pub timer_dates: Option<TimerDates>,
    pub fd_table: Option<FdTable>,
    pub open_files: BTreeMap<OpenFileId, OpenFile>,
    pub sockets: BTreeMap<OpenFileId, SocketState>,
    /// Datagrams that wait in sockets.
    pub queues: BTreeMap<OpenFileId, Vec<Datagram>>,
    /// Clock readings with the time at which each arrived, as our own clocks say.
    pub clocks: Vec<(Clocks, crate::clocks::Reading)>,
    pub committed: bool,
}

impl Image {
    /// Takes a record in. Mapping changes are taken by [`Image::change`], pages elsewhere.
    pub fn take(&mut self, record: Record) -> Result<(), RebuildError> {
        match record {
            Record::Machine(m) => {
                self.heard(m.clocks)?;
                self.machine = Some(m);
            }
            Record::RoundBegin(r) => {
                self.heard(r.clocks)?;
                self.task_settings = None;
                self.thread_settings.clear();
                self.timer_dates = None;
            }
            Record::Task(t) => {
                self.tasks.insert(t.id, t);
            }
            Record::TaskGone(id) => {
                self.tasks.remove(&id);
            }
            Record::Space(s) => {
                if let SpaceKind::Shm { size, name } = &s.kind {
                    self.objects.born(s.id, *size, name)?;
                }
                self.spaces.insert(s.id, s.kind);
            }
            Record::SpaceGone(id) => {
                self.objects.gone(id);
                self.spaces.remove(&id);
            }
            Record::ShmState(state) => self.objects.state(state)?,
            Record::TaskNamespaces(n) => self.namespaces = Some(n),
            Record::Cgroup(c) => self.cgroup = Some(c),
            Record::TaskProc(p) => self.values = Some(p),
            Record::File(f) => {
                self.files.insert(f.id, f);
            }
            Record::MmState(m) => self.mm_state = Some(m),
            Record::MmSettings(m) => self.mm_settings = Some(m),
            Record::SigTable(t) => self.sig_table = Some(t),
            Record::TaskState(t) => self.task_state = Some(t),
            Record::Thread(t) => {
                self.threads.insert(t.tid, t);
            }
            Record::TaskSettings(t) => self.task_settings = Some(t),
            Record::ThreadSettings(t) => {
                self.thread_settings.insert(t.tid, t);
            }
            Record::TimerDates(t) => self.timer_dates = Some(t),
            Record::FdTable(t) => self.fd_table = Some(t),
            Record::OpenFile(o) => {
                // What was said beside it goes with it.
                self.sockets.remove(&o.id);
                self.queues.remove(&o.id);
                self.open_files.insert(o.id, o);
            }
            Record::SocketState(state) => {
                self.sockets.insert(state.file, state);
            }
            Record::Queue(queue) => {
                let waiting = self.queues.entry(queue.file).or_default();
                waiting.truncate(queue.first as usize);
                waiting.extend(queue.datagrams);
            }
            Record::Commit(_) => self.committed = true,
            Record::Cancel(c) => return Err(RebuildError::Cancelled(c.reason)),
            Record::RoundEnd(_) | Record::MapChange(_) | Record::Zap(_) | Record::ZeroPages(_) => {}
        }
        Ok(())
    }

    /// Whether all is known that a Commit needs beside pages.
    pub fn is_complete(&self) -> bool {
        let Ok(task) = self.task() else { return false };
        let files = |table: &FdTable| table.fds.iter().all(|fd| self.open_files.contains_key(&fd.file));
        self.mm_state.is_some()
            && self.sig_table.is_some()
            && self.task_state.is_some()
            && self.fd_table.as_ref().is_some_and(files)
            && task.tids.iter().all(|tid| self.threads.contains_key(tid))
    }

    fn heard(&mut self, clocks: Clocks) -> Result<(), RebuildError> {
        self.clocks.push((clocks, crate::clocks::Reading::now()?));
        Ok(())
    }

    /// Follows a mapping change.
    pub fn change(&mut self, change: &MapChange) {
        for &(start, end) in &change.unmap {
            self.cut(start, end);
        }
        for vma in change.map.iter().chain(&change.modify) {
            self.cut(vma.start, vma.end);
            self.vmas.insert(vma.start, vma.clone());
        }
    }

    /// Takes a range away; what sticks out of it stays.
    fn cut(&mut self, start: u64, end: u64) {
        let hit: Vec<u64> =
            self.vmas.range(..end).rev().take_while(|(_, v)| v.end > start).map(|(s, _)| *s).collect();
        for key in hit {
            let Some(vma) = self.vmas.remove(&key) else { continue };
            if vma.start < start {
                self.vmas.insert(vma.start, Vma { end: start, ..vma.clone() });
            }
            if vma.end > end {
                self.vmas.insert(end, behind(vma, end));
            }
        }
    }

    /// Forgets open files that no descriptor refers to any more.
    pub fn forget_closed(&mut self) {
        if let Some(table) = &self.fd_table {
            let open: BTreeSet<OpenFileId> = table.fds.iter().map(|fd| fd.file).collect();
            self.open_files.retain(|id, _| open.contains(id));
        }
    }

    /// The mapping that holds an address.
    pub fn vma_at(&self, addr: u64) -> Option<&Vma> {
        self.vmas.range(..=addr).next_back().map(|(_, v)| v).filter(|v| v.end > addr)
    }

    /// The one task of the image.
    pub fn task(&self) -> Result<&Task, RebuildError> {
        let mut tasks = self.tasks.values();
        match (tasks.next(), tasks.next()) {
            (Some(task), None) => Ok(task),
            (None, _) => Err(RebuildError::Contradiction("there is no task".into())),
            (Some(_), Some(second)) => Err(RebuildError::Unsupported(format!(
                "a tree of {} processes (pid {} besides the first) is not supported",
                self.tasks.len(),
                second.pid
            ))),
        }
    }

    /// What was said of a socket beside its record; `none` is that of one of which nothing was.
    pub fn beside<'a>(&'a self, file: OpenFileId, none: &'a SocketState) -> Beside<'a> {
        Beside {
            more: self.sockets.get(&file).unwrap_or(none),
            queue: self.queues.get(&file).map_or(&[], Vec::as_slice),
        }
    }

    /// The machine, which comes first.
    pub fn machine(&self) -> Result<&Machine, RebuildError> {
        self.machine.as_ref().ok_or_else(|| RebuildError::Contradiction("no machine was sent".into()))
    }

    /// A file by its number.
    pub fn file(&self, id: FileId) -> Result<&File, RebuildError> {
        self.files.get(&id).ok_or_else(|| missing("file", id.0))
    }
}

/// The part of a mapping from `at` on.
fn behind(mut vma: Vma, at: u64) -> Vma {
    use pc_image::Backing::{File, Shm};
    let skipped = at - vma.start;
    if let File { offset, .. } | Shm { offset, .. } = &mut vma.backing {
        *offset = offset.saturating_add(skipped); // a stream may claim any offset; mmap(2) refuses it
    }
    vma.start = at;
    vma
}

#[cfg(test)]
mod tests {
    use pc_image::Backing;

    use super::*;

    fn vma(start: u64, end: u64) -> Vma {
        let backing = Backing::File { file: FileId(1), offset: 0x1000 };
        Vma { start, end, prot: 3, flags: 0, pkey: 0, backing, name: None }
    }

    #[test]
    fn a_hole_in_the_middle_leaves_both_ends_with_their_offsets() {
        let mut image = Image::default();
        let map = vec![vma(0x10000, 0x20000)];
        image.change(&MapChange { space: SpaceId(1), unmap: vec![], map, modify: vec![] });
        let unmap = vec![(0x14000, 0x18000)];
        image.change(&MapChange { space: SpaceId(1), unmap, map: vec![], modify: vec![] });
        assert_eq!(image.vma_at(0x13fff).unwrap().end, 0x14000);
        assert!(image.vma_at(0x14000).is_none() && image.vma_at(0x17fff).is_none());
        let tail = image.vma_at(0x18000).unwrap();
        assert_eq!(tail.backing, Backing::File { file: FileId(1), offset: 0x9000 });
        assert!(image.vma_at(0x20000).is_none());
    }
}
