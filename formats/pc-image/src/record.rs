//! The one table of record numbers, and the record type that all tools exchange.

use crate::writer::range_pages;
use crate::*;

/// Everything that a stream can say, but for page data (see [`Pages`] and [`Patches`]).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each variant is documented at its type
#[allow(clippy::large_enum_variant)] // records are handled one at a time, and boxed in `Item`
pub enum Record {
    Machine(Machine),
    RoundBegin(RoundBegin),
    RoundEnd(RoundEnd),
    Task(Task),
    /// The task has ended.
    TaskGone(TaskId),
    Space(Space),
    /// The space is used no more.
    SpaceGone(SpaceId),
    File(File),
    ShmState(ShmState),
    TaskNamespaces(TaskNamespaces),
    Cgroup(Cgroup),
    TaskProc(TaskProc),
    MapChange(MapChange),
    Zap(Zap),
    ZeroPages(ZeroPages),
    MmState(MmState),
    MmSettings(MmSettings),
    SigTable(SigTable),
    TaskState(TaskState),
    Thread(Thread),
    TaskSettings(TaskSettings),
    ThreadSettings(ThreadSettings),
    TimerDates(TimerDates),
    FdTable(FdTable),
    OpenFile(OpenFile),
    SocketState(SocketState),
    Queue(Queue),
    Commit(Commit),
    Cancel(Cancel),
}

/// A run of consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first page (an offset in a shared memory space).
    pub addr: u64,
    /// How many pages.
    pub pages: u64,
}

/// Pages with their bytes, in the order of the runs. Owns its buffer, so that it can be handed to another thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// The space.
    pub space: SpaceId,
    /// Ascending, not overlapping.
    pub runs: Vec<PageRun>,
    /// The frame's whole payload; give it back to the reader with `recycle` when done.
    pub payload: Vec<u8>,
    /// Where in `payload` the page data begin.
    pub data_offset: usize,
}

impl Pages {
    /// The bytes of all runs, one after the other.
    pub fn data(&self) -> &[u8] {
        &self.payload[self.data_offset..]
    }
}

/// Consecutive bytes in one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Address of the first byte (an offset in a shared memory space).
    pub addr: u64,
    /// How many bytes: 1 to a page's, and none after the page's end.
    pub len: u16,
}

impl Patch {
    /// Bytes that it takes in a stream besides its own: address and length.
    pub const HEAD: usize = 10;

    /// The page that it lies in: its first address.
    pub fn page(&self) -> u64 {
        self.addr / PAGE_SIZE * PAGE_SIZE
    }
}

/// Bytes that have changed in pages sent before, in the order of the patches; the other bytes of those pages are as they
/// were. Owns its buffer, as [`Pages`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    /// The space.
    pub space: SpaceId,
    /// Ascending, not overlapping.
    pub patches: Vec<Patch>,
    /// The frame's whole payload; give it back to the reader with `recycle` when done.
    pub payload: Vec<u8>,
    /// Where in `payload` the bytes begin.
    pub data_offset: usize,
}

impl Patches {
    /// The bytes of all patches, one after the other.
    pub fn data(&self) -> &[u8] {
        &self.payload[self.data_offset..]
    }

    /// Each patch with its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (Patch, &[u8])> {
        let mut rest = self.data();
        self.patches.iter().map(move |patch| {
            let (bytes, behind) = rest.split_at(usize::from(patch.len).min(rest.len()));
            rest = behind;
            (*patch, bytes)
        })
    }

    /// The pages that they lie in: ranges `(start, end)`, ascending, merged.
    pub fn pages(&self) -> Vec<(u64, u64)> {
        patched_pages(&self.patches)
    }

    /// How many pages these are.
    pub fn page_count(&self) -> u64 {
        range_pages(&self.pages())
    }
}

/// The pages that patches (ascending) lie in, as ranges.
pub(crate) fn patched_pages(patches: &[Patch]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for page in patches.iter().map(Patch::page) {
        match ranges.last_mut() {
            Some(last) if last.1 > page => {}
            Some(last) if last.1 == page => last.1 += PAGE_SIZE,
            _ => ranges.push((page, page.saturating_add(PAGE_SIZE))),
        }
    }
    ranges
}

/// What a reader delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record.
    Record(Box<Record>),
    /// Pages with their bytes.
    Pages(Pages),
    /// Changed bytes of pages.
    Patches(Patches),
}

impl Item {
    /// The record's name, as the documentation has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Record(record) => record.name(),
            Self::Pages(_) => "Pages",
            Self::Patches(_) => "Patches",
        }
    }
}

/// Where capture puts records. Implemented by the stream writer, and by tests.
pub trait Sink {
    /// Puts a record. May be buffered until [`Sink::flush`].
    fn record(&mut self, record: &Record) -> Result<(), ImageError>;
    /// Puts pages; `data` are the bytes of `runs` in order, in as many pieces as the caller has.
    fn pages(&mut self, space: SpaceId, runs: &[PageRun], data: &[&[u8]]) -> Result<(), ImageError>;
    /// Puts changed bytes of pages; `data` are those of all `patches` in order.
    fn patches(&mut self, space: SpaceId, patches: &[Patch], data: &[u8]) -> Result<(), ImageError>;
    /// Hands everything put so far to the operating system.
    fn flush(&mut self) -> Result<(), ImageError>;
}

/// Where rebuild takes records from.
pub trait Source {
    /// The next item; `None` after the End of the last segment, at the true end of input.
    fn next(&mut self) -> Result<Option<Item>, ImageError>;
    /// Takes a used page buffer back.
    fn recycle(&mut self, payload: Vec<u8>) {
        drop(payload);
    }
}
