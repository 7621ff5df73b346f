//! What can be said of a process while it runs, as it would be sent: for the rules, before anything is touched.

use std::time::Duration;

use pc_image::rules::Rules;
use pc_image::{
    FdTable, Machine, MapChange, OpenFile, Record, Space, SpaceKind, Task, TaskState, Thread, Vma,
};

use crate::check::tids;
use crate::costs::timed;
use crate::error::{Result, Unsupported, is_alive};
use crate::file::Files;
use crate::openfile::Captured;
use crate::procfs::{Stat, Status};
use crate::session::refused;
use crate::task::{self, SPACE, TASK};
use crate::thread::{self, Outside};

/// The records of a process, as far as they can be known while it runs. What only the process itself can tell is absent:
/// the address space's figures, signal actions, and parts of [`TaskState`] and [`Thread`].
#[derive(Debug)]
pub(crate) struct Foretold {
    pub machine: Machine,
    pub task: Task,
    pub objects: Vec<Space>,
    pub vmas: Vec<Vma>,
    pub files: Vec<OpenFile>,
    pub table: FdTable,
    pub state: TaskState,
    pub threads: Vec<Thread>,
    /// How long it took to look at one of them.
    pub per_thread: Duration,
}

impl Foretold {
    /// Reads what is not at hand yet.
    pub fn read(
        pid: i32,
        (status, stat): (&Status, &Stat),
        machine: Machine,
        vmas: Vec<Vma>,
        captured: Captured,
        files: &mut Files,
    ) -> Result<Self> {
        let mut threads = Vec::new();
        let mut taken = Duration::ZERO;
        for tid in tids(pid)? {
            let (looked, time) = timed(|| Outside::look(pid, &[tid]));
            taken += time;
            match looked {
                Ok(looked) => threads.extend(looked.into_iter().map(|it| thread::outside(TASK, it))),
                Err(_) if tid != pid && !is_alive(tid) => {}
                Err(err) => return Err(err),
            }
        }
        let per_thread = taken / threads.len().max(1) as u32;
        let tids = threads.iter().map(|thread| thread.tid).collect();
        let task = task::task(pid, status, stat, tids);
        let objects = files.objects.spaces().collect();
        let state = task::state_outside(pid, files)?;
        let Captured { table, files, .. } = captured;
        Ok(Self { machine, task, objects, vmas, files, table, state, threads, per_thread })
    }

    /// What the rules say of all of it, in the order in which it would be sent; `named` are the files that it names.
    pub fn judge(&self, pid: i32, named: Vec<pc_image::File>) -> Vec<Unsupported> {
        let mut rules = Rules::default();
        let mut bad = Vec::new();
        let mut take = |record: Record| bad.extend(refused(pid, &mut rules, &record));
        take(Record::Machine(self.machine.clone()));
        take(Record::Space(Space { id: SPACE, kind: SpaceKind::Mm }));
        take(Record::Task(self.task.clone()));
        self.objects.iter().for_each(|object| take(Record::Space(object.clone())));
        named.into_iter().for_each(|file| take(Record::File(file)));
        let map = self.vmas.clone();
        take(Record::MapChange(MapChange { space: SPACE, unmap: Vec::new(), map, modify: Vec::new() }));
        self.files.iter().for_each(|file| take(Record::OpenFile(file.clone())));
        take(Record::FdTable(self.table.clone()));
        take(Record::TaskState(self.state.clone()));
        self.threads.iter().for_each(|thread| take(Record::Thread(thread.clone())));
        bad
    }
}
