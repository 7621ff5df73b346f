//! The copy pass: reads spans of a process's memory and puts them into a sink.
//!
//! One thread reads and looks for zero pages, another puts (checksums, writes), with buffers going round between them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use pc_image::{Counts, ImageError, PAGE_SIZE, PageRun, Record, Sink, SpaceId, ZeroPages};
use pc_sys::mem::{IOV_MAX, ProcMem, RemoteRange, read_remote_ranges};
use pc_track::Hashes;

use crate::error::{CaptureError, Context, Result};
use crate::memory::{How, Span};

/// Bytes read at once, and the most in a frame.
const CHUNK: usize = 1 << 20;
/// Buffers that go round.
const BUFFERS: usize = 4;
/// Less than this is not worth a second thread.
const SMALL: u64 = 2 << 20;
/// Ranges in a record of zero pages.
const MOST_ZERO_RANGES: usize = 4096;
const PAGE: usize = PAGE_SIZE as usize;
static ZERO: [u8; PAGE] = [0; PAGE];

/// Where the pages come from and where they go.
#[derive(Debug, Clone, Copy)]
pub struct CopyPlan<'a> {
    /// The process.
    pub pid: i32,
    /// Its memory's number in the stream.
    pub space: SpaceId,
    /// It runs: pages that are gone when they are read are left out, as a later round will tell.
    pub running: bool,
    /// Set when the copy is to be given up.
    pub cancel: &'a AtomicBool,
}

/// What a copy pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Pages and zero pages sent.
    pub counts: Counts,
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

/// The same from a file, in which addresses are offsets. Behind its end it reads as zero.
pub(crate) fn copy_file(
    plan: CopyPlan<'_>,
    file: &File,
    spans: &[Span],
    hashes: &mut Hashes,
    sink: &mut (dyn Sink + Send),
) -> Result<Copied> {
    copy_from(plan, Origin::File(file), spans, hashes, sink)
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

/// Pages on their way.
#[derive(Debug, Default)]
struct Chunk {
    buf: Vec<u8>,
    /// Runs that travel with their bytes, and where in `buf` these lie.
    runs: Vec<PageRun>,
    pieces: Vec<(usize, usize)>,
    /// Ranges that are all zero.
    zero: Vec<(u64, u64)>,
}

impl Chunk {
    fn put(
        &self,
        space: SpaceId,
        sink: &mut dyn Sink,
        copied: &mut Copied,
    ) -> std::result::Result<(), ImageError> {
        let began = std::time::Instant::now();
        if !self.runs.is_empty() {
            let data: Vec<&[u8]> = self.pieces.iter().map(|(from, to)| &self.buf[*from..*to]).collect();
            sink.pages(space, &self.runs, &data)?;
        }
        if !self.zero.is_empty() {
            sink.record(&Record::ZeroPages(ZeroPages { space, ranges: self.zero.clone() }))?;
        }
        copied.counts.pages += self.runs.iter().map(|run| run.pages).sum::<u64>();
        copied.write_us += began.elapsed().as_micros() as u64;
        Ok(())
    }

    fn clear(&mut self) {
        self.buf.resize(CHUNK, 0);
        self.runs.clear();
        self.pieces.clear();
        self.zero.clear();
    }

    /// Adds a page's bytes (at `at` in the buffer) to the last run if it goes on from there.
    fn add_page(&mut self, addr: u64, at: usize) {
        if let (Some(run), Some(piece)) = (self.runs.last_mut(), self.pieces.last_mut())
            && run.addr + run.pages * PAGE_SIZE == addr
            && piece.1 == at
        {
            run.pages += 1;
            piece.1 += PAGE;
            return;
        }
        self.runs.push(PageRun { addr, pages: 1 });
        self.pieces.push((at, at + PAGE));
    }
}

/// Cuts spans into batches that fit a chunk.
#[derive(Debug)]
struct Cutter<'a> {
    spans: &'a [Span],
    at: usize,
    done: u64,
}

impl<'a> Cutter<'a> {
    fn new(spans: &'a [Span]) -> Self {
        Self { spans, at: 0, done: 0 }
    }

    /// The next spans of the same readability, of at most [`CHUNK`] bytes.
    fn next(&mut self, out: &mut Vec<Span>) {
        out.clear();
        let mut room = CHUNK as u64;
        while let Some(span) = self.spans.get(self.at) {
            if room == 0 || out.len() == IOV_MAX || out.first().is_some_and(|f| f.readable != span.readable) {
                return;
            }
            let start = span.start + self.done;
            let len = room.min(span.end - start);
            out.push(Span { start, end: start + len, ..*span });
            room -= len;
            self.done += len;
            if start + len == span.end {
                self.at += 1;
                self.done = 0;
            }
        }
    }
}

/// Where pages are read.
#[derive(Debug)]
enum Origin<'a> {
    Process(ProcMem),
    File(&'a File),
}

impl Origin<'_> {
    /// As many bytes of the ranges as can be read at once; the rest is read page by page.
    fn read_fast(&self, pid: i32, ranges: &[RemoteRange], buf: &mut [u8]) -> std::io::Result<usize> {
        let Self::File(file) = self else {
            return match read_remote_ranges(pid, ranges, buf) {
                Err(err) if err.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                read => read,
            };
        };
        let mut done = 0;
        for range in ranges {
            let got = file.read_at(&mut buf[done..done + range.len], range.addr)?;
            done += got;
            if got < range.len {
                break;
            }
        }
        Ok(done)
    }

    fn read_page(&self, addr: u64, page: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::Process(mem) => mem.read(addr, page),
            Self::File(file) => {
                let mut done = 0;
                while done < page.len() {
                    match file.read_at(&mut page[done..], addr + done as u64)? {
                        0 => break,
                        more => done += more,
                    }
                }
                page[done..].fill(0);
                Ok(())
            }
        }
    }
}

struct Reader<'a> {
    plan: CopyPlan<'a>,
    origin: Origin<'a>,
    hashes: &'a mut Hashes,
    batch: Vec<Span>,
    /// Zero ranges found and not sent yet.
    zero: Vec<(u64, u64)>,
    zero_pages: u64,
    unchanged: u64,
}

impl<'a> Reader<'a> {
    fn new(plan: CopyPlan<'a>, origin: Origin<'a>, hashes: &'a mut Hashes) -> Self {
        Self { plan, origin, hashes, batch: Vec::new(), zero: Vec::new(), zero_pages: 0, unchanged: 0 }
    }

    fn add_to(&self, copied: &mut Copied) {
        copied.counts.zero_pages += self.zero_pages;
        copied.unchanged += self.unchanged;
    }

    /// Fills a chunk; false if it is the last.
    fn fill(&mut self, cut: &mut Cutter<'_>, chunk: &mut Chunk) -> Result<bool> {
        if self.plan.cancel.load(Ordering::Relaxed) {
            return Err(CaptureError::Cancelled(self.plan.pid));
        }
        let mut batch = std::mem::take(&mut self.batch);
        cut.next(&mut batch);
        chunk.clear();
        let read = self.read(&batch, chunk);
        let more = !batch.is_empty();
        self.batch = batch;
        read?;
        if !more || self.zero.len() >= MOST_ZERO_RANGES {
            std::mem::swap(&mut chunk.zero, &mut self.zero);
        }
        Ok(more)
    }

    fn read(&mut self, batch: &[Span], chunk: &mut Chunk) -> Result<()> {
        let ranges: Vec<RemoteRange> =
            batch.iter().map(|s| RemoteRange { addr: s.start, len: (s.end - s.start) as usize }).collect();
        let readable = batch.first().is_some_and(|s| s.readable);
        let pid = self.plan.pid;
        let got = match readable {
            true => self.origin.read_fast(pid, &ranges, &mut chunk.buf).of(pid, "reading its memory")?,
            false => 0,
        };
        let mut at = 0;
        for span in batch {
            for addr in (span.start..span.end).step_by(PAGE) {
                if (at + PAGE <= got || self.read_page(addr, &mut chunk.buf[at..at + PAGE])?)
                    && self.is_wanted(span.how, addr, &chunk.buf[at..at + PAGE])
                {
                    self.sort(addr, at, chunk);
                }
                at += PAGE;
            }
        }
        Ok(())
    }

    /// One page as a debugger reads it; false if it is gone and may be.
    fn read_page(&self, addr: u64, page: &mut [u8]) -> Result<bool> {
        match self.origin.read_page(addr, page) {
            Ok(()) => Ok(true),
            Err(_) if self.plan.running => Ok(false),
            Err(err) => Err(err).of(self.plan.pid, format_args!("reading its memory at {addr:#x}")),
        }
    }

    /// Whether a page is to be sent. Hashes are of the very bytes that are.
    fn is_wanted(&mut self, how: How, addr: u64, page: &[u8]) -> bool {
        let changed = how == How::Send || self.hashes.changed(addr, page);
        let wanted = changed || how == How::Note;
        self.unchanged += u64::from(!wanted);
        wanted
    }

    fn sort(&mut self, addr: u64, at: usize, chunk: &mut Chunk) {
        if chunk.buf[at..at + PAGE] != ZERO {
            return chunk.add_page(addr, at);
        }
        self.zero_pages += 1;
        match self.zero.last_mut() {
            Some(last) if last.1 == addr => last.1 += PAGE_SIZE,
            _ => self.zero.push((addr, addr + PAGE_SIZE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_at_the_chunk_and_where_readability_changes() {
        let span = |start: u64, end: u64, readable| Span { start, end, readable, how: How::Send };
        let mib = 1 << 20;
        let spans = [
            span(0, 3 * mib / 2, true),
            span(2 * mib, 2 * mib + 4096, true),
            span(4 * mib, 4 * mib + 4096, false),
        ];
        let mut cut = Cutter::new(&spans);
        let mut out = Vec::new();
        cut.next(&mut out);
        assert_eq!(out, [span(0, mib, true)]);
        cut.next(&mut out);
        assert_eq!(out, [span(mib, 3 * mib / 2, true), span(2 * mib, 2 * mib + 4096, true)]);
        cut.next(&mut out);
        assert_eq!(out, [span(4 * mib, 4 * mib + 4096, false)]);
        cut.next(&mut out);
        assert!(out.is_empty());
    }
}
