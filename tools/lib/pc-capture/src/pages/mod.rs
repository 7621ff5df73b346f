//! The copy pass: reads spans of a process's memory and puts them into a sink.
//!
//! One thread reads and looks for zero pages, another puts (checksums, writes), with buffers going round between them.

mod chunk;
mod cutter;
mod origin;
mod reader;

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use pc_image::{Counts, ImageError, PAGE_SIZE, Sink, SpaceId};
use pc_sys::mem::ProcMem;
use pc_track::Hashes;

use crate::error::{CaptureError, Context, Result};
use crate::memory::Span;
use chunk::Chunk;
use cutter::Cutter;
use origin::Origin;
use reader::Reader;

/// Buffers that go round.
const BUFFERS: usize = 4;
/// Less than this is not worth a second thread.
const SMALL: u64 = 2 << 20;
const PAGE: usize = PAGE_SIZE as usize;

/// Whether of pages that were sent before only the blocks that have changed are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patching {
    /// No: all for the first time.
    Never,
    /// Yes, and what is sent is learned for the next time.
    Learn,
    /// Yes, and there is no next time.
    Last,
}

/// Where the pages come from and where they go.
#[derive(Debug, Clone, Copy)]
pub struct CopyPlan<'a> {
    /// The process.
    pub pid: i32,
    /// Its memory's number in the stream.
    pub space: SpaceId,
    /// It runs: pages that are gone when they are read are left out, as a later round will tell.
    pub running: bool,
    /// Whether patches are sent.
    pub patching: Patching,
    /// Set when the copy is to be given up.
    pub cancel: &'a AtomicBool,
}

/// What came of the pages whose blocks were known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patched {
    /// How many there were.
    pub known: u64,
    /// Of these, those sent whole.
    pub whole: u64,
    /// Bytes of patches, with their addresses and lengths.
    pub bytes: u64,
}

impl Patched {
    /// Adds another pass.
    pub fn add(&mut self, more: Self) {
        self.known += more.known;
        self.whole += more.whole;
        self.bytes += more.bytes;
    }

    /// What part of a known page that was written was sent; all of it, where there was none.
    pub fn share(&self) -> f64 {
        let sent = (self.whole * PAGE_SIZE + self.bytes) as f64;
        if self.known == 0 { 1.0 } else { sent / (self.known * PAGE_SIZE) as f64 }
    }
}

/// What a copy pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Pages, patched pages and zero pages sent.
    pub counts: Counts,
    /// What patching came to.
    pub patched: Patched,
    /// Pages that were compared and had not changed.
    pub unchanged: u64,
    /// Microseconds spent putting.
    pub write_us: u64,
}

/// Copies `spans` (ascending) into `sink`; `hashes` are those of what was sent before.
pub fn copy(
    plan: CopyPlan<'_>,
    spans: &[Span],
    hashes: &mut Hashes,
    sink: &mut (dyn Sink + Send),
) -> Result<Copied> {
    let mem = ProcMem::open(plan.pid).of(plan.pid, "opening its memory")?;
    copy_from(plan, Origin::Process(mem), spans, hashes, sink)
}

/// The same from a file, in which addresses are offsets. After `len` it reads as zero, whatever is there by now: a
/// destination that knows this length keeps no more.
pub(crate) fn copy_file(
    plan: CopyPlan<'_>,
    (file, len): (&File, u64),
    spans: &[Span],
    hashes: &mut Hashes,
    sink: &mut (dyn Sink + Send),
) -> Result<Copied> {
    copy_from(plan, Origin::File(file, len), spans, hashes, sink)
}

fn copy_from(
    plan: CopyPlan<'_>,
    origin: Origin<'_>,
    spans: &[Span],
    hashes: &mut Hashes,
    sink: &mut (dyn Sink + Send),
) -> Result<Copied> {
    let total: u64 = spans.iter().map(|s| s.end - s.start).sum();
    let mut reader = Reader::new(plan, origin, hashes);
    if total <= SMALL {
        return copy_here(&mut reader, spans, sink);
    }
    std::thread::scope(|scope| {
        let (full, work) = sync_channel::<Chunk>(BUFFERS);
        let (give_back, empty) = sync_channel::<Chunk>(BUFFERS);
        for _ in 0..BUFFERS {
            // Cannot fail: the channel has room for all and its other end is here.
            let _ = give_back.send(Chunk::default());
        }
        let writer = scope.spawn(move || put_all(plan.space, &work, &give_back, sink));
        let read = read_all(&mut reader, spans, &full, &empty);
        drop((full, empty));
        let put = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // If both failed, the writer's error came first: the reader's is that nobody takes its chunks.
        let mut copied = put.map_err(CaptureError::Write)?;
        read?;
        reader.add_to(&mut copied);
        Ok(copied)
    })
}

fn copy_here(reader: &mut Reader<'_>, spans: &[Span], sink: &mut (dyn Sink + Send)) -> Result<Copied> {
    let mut copied = Copied::default();
    let mut chunk = Chunk::default();
    let mut cut = Cutter::new(spans);
    loop {
        let more = reader.fill(&mut cut, &mut chunk)?;
        chunk.put(reader.plan.space, sink, &mut copied)?;
        if !more {
            reader.add_to(&mut copied);
            return Ok(copied);
        }
    }
}

fn read_all(
    reader: &mut Reader<'_>,
    spans: &[Span],
    full: &SyncSender<Chunk>,
    empty: &Receiver<Chunk>,
) -> Result<()> {
    let mut cut = Cutter::new(spans);
    loop {
        // Closed channels mean that the writer has failed, and says why itself.
        let Ok(mut chunk) = empty.recv() else { return Ok(()) };
        let more = reader.fill(&mut cut, &mut chunk)?;
        if full.send(chunk).is_err() || !more {
            return Ok(());
        }
    }
}

fn put_all(
    space: SpaceId,
    work: &Receiver<Chunk>,
    give_back: &SyncSender<Chunk>,
    sink: &mut (dyn Sink + Send),
) -> std::result::Result<Copied, ImageError> {
    let mut copied = Copied::default();
    for chunk in work {
        chunk.put(space, sink, &mut copied)?;
        // The reader may have ended already.
        let _ = give_back.try_send(chunk);
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_known_pages_is_how_much_of_them_was_sent() {
        assert_eq!(Patched::default().share(), 1.0);
        let mut patched = Patched { known: 4, whole: 1, bytes: 1024 };
        assert_eq!(patched.share(), 5.0 / 16.0);
        patched.add(Patched { known: 4, whole: 0, bytes: 3072 });
        assert_eq!(patched.share(), 0.25);
    }
}
