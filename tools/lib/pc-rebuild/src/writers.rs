//! Threads that copy page data into the husk while the next pages are read. They use process_vm_writev(2) and
//! /proc/PID/mem alone, for ptrace belongs to one thread.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pc_image::Pages;
use pc_sys::mem::{self, IOV_MAX, ProcMem, RemoteRange};

use crate::error::{Context, RebuildError};

/// How many threads write.
const THREADS: usize = 2;
/// How many jobs may wait.
const QUEUE: usize = 4;

/// Consecutive runs of one page record that are written in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where the bytes go.
    pub ranges: Vec<RemoteRange>,
    /// Where in the page data they begin.
    pub offset: usize,
    /// The process itself may not write there.
    pub forced: bool,
}

struct Job {
    pages: Pages,
    segments: Vec<Segment>,
}

/// What comes back: the buffer, or why it was not written.
type Done = io::Result<Vec<u8>>;

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
    pub fn start(pid: i32) -> Result<Self, RebuildError> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (report, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let (queue, report) = (queue.clone(), report.clone());
            let memory = ProcMem::open(pid).what("opening the memory of the process")?;
            let thread = std::thread::Builder::new().name("pc-writer".into());
            threads
                .push(thread.spawn(move || work(pid, &memory, &queue, &report)).what("starting a thread")?);
        }
        Ok(Self { jobs: Some(jobs), done, waiting: 0, free: Vec::new(), threads })
    }

    /// Has pages written, some time from now.
    pub fn write(&mut self, pages: Pages, segments: Vec<Segment>) -> Result<(), RebuildError> {
        let gone = || RebuildError::Contradiction("a writer thread has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(Job { pages, segments }).map_err(|_| gone())?;
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
        self.free.push(done.what("writing to the memory of the process")?);
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

fn work(pid: i32, memory: &ProcMem, queue: &Mutex<Receiver<Job>>, report: &Sender<Done>) {
    loop {
        let next = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = next else { return };
        let written = job.segments.iter().try_for_each(|s| write_segment(pid, memory, s, job.pages.data()));
        if report.send(written.map(|()| job.pages.payload)).is_err() {
            return;
        }
    }
}

/// Writes one segment of a record's data. Every short count is an error.
pub fn write_segment(pid: i32, memory: &ProcMem, segment: &Segment, data: &[u8]) -> io::Result<()> {
    let mut at = segment.offset;
    if segment.forced {
        for range in &segment.ranges {
            memory.write(range.addr, &data[at..at + range.len])?;
            at += range.len;
        }
        return Ok(());
    }
    for chunk in segment.ranges.chunks(IOV_MAX) {
        let len: usize = chunk.iter().map(|r| r.len).sum();
        if mem::write_remote_ranges(pid, chunk, &data[at..at + len])? != len {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        at += len;
    }
    Ok(())
}
