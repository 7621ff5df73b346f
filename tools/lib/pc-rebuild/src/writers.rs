//! Threads that copy page data into the husk while the next pages are read. They use process_vm_writev(2) and
//! /proc/PID/mem alone, for ptrace belongs to one thread.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pc_sys::mem::{self, IOV_MAX, ProcMem, RemoteRange};
use pc_sys::uffd::Filler;

use crate::error::{Context, RebuildError};
use crate::kept::Part;

/// How many threads write.
const THREADS: usize = 2;
/// How many jobs may wait.
const QUEUE: usize = 4;

/// Consecutive runs, or patches, of one record that are written in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where the bytes go.
    pub ranges: Vec<RemoteRange>,
    /// Where in the part's data they begin.
    pub offset: usize,
    /// How they get there.
    pub how: How,
}

/// How pages get into the husk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Written as the process itself could.
    Write,
    /// The process itself may not write there.
    Force,
    /// Most of them were never touched, and the memory is fillable.
    Fill,
}

/// What a writer thread works with.
struct Tools {
    pid: i32,
    memory: ProcMem,
    filler: Option<Arc<Filler>>,
}

struct Job {
    part: Part,
    segments: Vec<Segment>,
}

/// What comes back: the buffer, if it may serve again, or why it was not written.
type Done = io::Result<Option<Vec<u8>>>;

/// The writer threads of one husk.
#[derive(Debug)]
pub struct Writers {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Done>,
    waiting: usize,
    free: Vec<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("segments", &self.segments).finish_non_exhaustive()
    }
}

impl Writers {
    /// Starts them for process `pid`.
    pub fn start(pid: i32, filler: Option<&Arc<Filler>>) -> Result<Self, RebuildError> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (report, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let (queue, report) = (queue.clone(), report.clone());
            let memory = ProcMem::open(pid).what("opening the memory of the process")?;
            let tools = Tools { pid, memory, filler: filler.cloned() };
            let thread = std::thread::Builder::new().name("pc-writer".into());
            let started = thread.spawn(move || work(&tools, &queue, &report));
            threads.push(started.what("starting a thread")?);
        }
        Ok(Self { jobs: Some(jobs), done, waiting: 0, free: Vec::new(), threads })
    }

    /// Has pages written, some time from now.
    pub fn write(&mut self, part: Part, segments: Vec<Segment>) -> Result<(), RebuildError> {
        let gone = || RebuildError::Contradiction("a writer thread has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(Job { part, segments }).map_err(|_| gone())?;
        self.waiting += 1;
        while let Ok(done) = self.done.try_recv() {
            self.finished(done)?;
        }
        Ok(())
    }

    /// Waits until all is written.
    pub fn settle(&mut self) -> Result<(), RebuildError> {
        while self.waiting > 0 {
            let done = self.done.recv();
            self.finished(
                done.map_err(|_| RebuildError::Contradiction("a writer thread has ended".into()))?,
            )?;
        }
        Ok(())
    }

    fn finished(&mut self, done: Done) -> Result<(), RebuildError> {
        self.waiting -= 1;
        self.free.extend(done.what("writing to the memory of the process")?);
        Ok(())
    }

    /// Buffers that are done with.
    pub fn take_free(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.free)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic has been printed, and is found by the missing answer.
            let _ = thread.join();
        }
    }
}

fn work(tools: &Tools, queue: &Mutex<Receiver<Job>>, report: &Sender<Done>) {
    loop {
        let next = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = next else { return };
        let written = job.segments.iter().try_for_each(|s| tools.write_segment(s, job.part.data()));
        if report.send(written.map(|()| job.part.into_buffer())).is_err() {
            return;
        }
    }
}

impl Tools {
    /// Writes one segment of a record's data. Every short count is an error.
    fn write_segment(&self, segment: &Segment, data: &[u8]) -> io::Result<()> {
        if segment.how == How::Write {
            return self.write_together(segment, data);
        }
        let mut at = segment.offset;
        for range in &segment.ranges {
            let bytes = &data[at..at + range.len];
            match (segment.how, &self.filler) {
                (How::Fill, Some(filler)) => self.fill(filler, range.addr, bytes)?,
                _ => self.memory.write(range.addr, bytes)?,
            }
            at += range.len;
        }
        Ok(())
    }

    fn write_together(&self, segment: &Segment, data: &[u8]) -> io::Result<()> {
        let mut at = segment.offset;
        for chunk in segment.ranges.chunks(IOV_MAX) {
            let len: usize = chunk.iter().map(|r| r.len).sum();
            if mem::write_remote_ranges(self.pid, chunk, &data[at..at + len])? != len {
                return Err(io::Error::from_raw_os_error(libc::EFAULT));
            }
            at += len;
        }
        Ok(())
    }

    /// Fills pages that were never touched; one that is there already is written to.
    fn fill(&self, filler: &Filler, addr: u64, bytes: &[u8]) -> io::Result<()> {
        const PAGE: usize = pc_image::PAGE_SIZE as usize;
        let mut done = 0;
        while done < bytes.len() {
            done += filler.fill(addr + done as u64, &bytes[done..])?;
            if let Some(page) = bytes.get(done..done + PAGE) {
                self.memory.write(addr + done as u64, page)?;
                done += PAGE;
            }
        }
        Ok(())
    }
}
