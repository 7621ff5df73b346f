//! Which pages of the process are to be sent: mapping by mapping, by the method that fits it.
//!
//! What the kernel reports of writes has blind spots: a page into which a device reads (O_DIRECT) after it was sent and
//! write-protected changes unseen. Once a descriptor opened so was seen, every page sent is hashed, and at the stop the pages
//! that count as unwritten are compared with their hashes.

use std::time::Instant;

use pc_image::{Backing, PAGE_SIZE, Ranges, Vma, prot};
use pc_sys::pagemap::Pagemap;
use pc_trace::Tracees;
use pc_track::{Found, Hashes, Room, Run, TrackError, Tracker, What};

use crate::error::{CaptureError, Context, Result};
use crate::memory::{self, How, Present, Span, carries_pages};
use crate::rounds::method;
use crate::settings::{Caller, Track};

/// What a scan has found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// What is to be sent, or compared; guard pages.
    pub found: Present,
    /// All pages that carry content, sent or not, ascending.
    pub content: Vec<(u64, u64)>,
    /// Where mappings are new, or others than before at the same place.
    pub fresh: Ranges,
}

impl Scan {
    /// Of a process whose memory is sent for the first time, and which stands still.
    pub fn whole(pid: i32, vmas: &[Vma]) -> Result<Self> {
        let pagemap = Pagemap::open(pid).of(pid, "opening its page map")?;
        let found = memory::present(pid, &pagemap, vmas)?;
        let content = found.spans.iter().map(|span| (span.start, span.end)).collect();
        Ok(Self { found, content, fresh: Ranges::default() })
    }

    /// The content that is neither sent nor compared.
    pub fn rest(&self) -> Vec<Span> {
        let mut spans = Ranges::default();
        self.content.iter().for_each(|(start, end)| spans.insert(*start, *end));
        self.found.spans.iter().for_each(|span| spans.remove(span.start, span.end));
        // Read as a debugger does, which needs no look at the protection.
        spans.ranges().map(|(start, end)| Span { start, end, readable: false, how: How::Send }).collect()
    }

    /// Pages with content that are neither sent nor compared.
    pub fn skipped(&self) -> u64 {
        let content: u64 = self.content.iter().map(|(start, end)| end - start).sum();
        let spans: u64 = self.found.spans.iter().map(|span| span.end - span.start).sum();
        content.saturating_sub(spans) / PAGE_SIZE
    }
}

/// What the pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// A round: written pages count as unwritten from here on.
    Round,
    /// The stop: nothing is tracked any further.
    Stop,
}

/// Tracking of one process.
#[derive(Debug)]
pub(crate) struct Tracking {
    pid: i32,
    pagemap: Pagemap,
    tracker: Option<Box<dyn Tracker>>,
    pub hashes: Hashes,
    /// What the tracker does not take.
    hashed: Ranges,
    /// Mappings tracked now, to be untracked.
    tracked: Ranges,
    /// Of these, what was not tracked before, until the next scan tells.
    fresh: Ranges,
    /// O_DIRECT was seen: from this round on, or too late for hashes to be of use.
    direct: Direct,
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direct {
    No,
    /// Seen before anything was sent, so that all that was sent was hashed.
    Hashed,
    /// Seen later: at the stop everything has to be sent once more.
    Late,
}

impl Tracking {
    /// Chooses the method and has the process, which must stand still for it, do what it takes; `room` is that of all its
    /// memory.
    pub fn begin(tracees: &mut Tracees, track: Track, room: &Room, caller: &mut dyn Caller) -> Result<Self> {
        let pid = tracees.pid();
        let pagemap = Pagemap::open(pid).of(pid, "opening its page map")?;
        let tracker = method::choose(tracees, track, caller)?;
        Ok(Self {
            pid,
            pagemap,
            tracker,
            hashes: Hashes::new(seed(), room),
            hashed: Ranges::default(),
            tracked: Ranges::default(),
            fresh: Ranges::default(),
            direct: Direct::No,
            runs: Vec::new(),
        })
    }

    /// The method's name, as `--track` takes it.
    pub fn name(&self) -> &'static str {
        self.tracker.as_ref().map_or("hash", |tracker| tracker.name())
    }

    /// Whether the process has to stand for a scan that clears.
    pub fn needs_pause(&self) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| tracker.needs_pause())
    }

    /// Whether written pages are found by hashing alone.
    pub fn is_hashing(&self) -> bool {
        self.tracker.is_none()
    }

    /// Whether writes that tracking cannot see are provided for.
    pub fn knows_direct_io(&self) -> bool {
        self.tracker.is_none() || self.direct != Direct::No
    }

    /// The destination holds the pages of a range no longer.
    pub fn forget(&mut self, range: (u64, u64)) {
        self.hashes.forget(range);
    }

    /// The process has a descriptor with O_DIRECT; `round` was scanned and is to be sent.
    pub fn direct_io(&mut self, round: u32, scan: &mut Scan, caller: &mut dyn Caller) {
        if self.tracker.is_none() || self.direct != Direct::No {
            return;
        }
        if round == 0 {
            let sent = scan.found.spans.iter_mut().filter(|span| span.how == How::Send);
            sent.for_each(|span| span.how = How::Note);
        }
        self.direct = if round == 0 { Direct::Hashed } else { Direct::Late };
        caller.notice(match self.direct {
            Direct::Late => "it has begun to use O_DIRECT, which tracking cannot see: all of its memory is sent at the stop",
            _ => "it uses O_DIRECT, which tracking cannot see: its pages are hashed, and compared at the stop",
        });
    }

    /// Whether one of these mappings is not tracked yet.
    pub fn misses_any(&mut self, vmas: &[Vma]) -> Result<bool> {
        let Some(tracker) = &mut self.tracker else { return Ok(false) };
        for vma in vmas.iter().filter(|vma| carries_pages(vma)) {
            if !self.hashed.overlaps(vma.start, vma.end)
                && !tracker.tracks(vma.start).map_err(|err| failed(self.pid, err))?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tracks the mappings of a process that stands still, as far as they are not yet. If it ran, one that changes
    /// meanwhile could be tracked in part, and would be two from then on, which mremap(2) does not take as one.
    pub fn track_all(&mut self, caller: &mut dyn Caller) -> Result<()> {
        let Some(tracker) = &mut self.tracker else { return Ok(()) };
        let mut missing: Vec<Vec<(u64, u64)>> = Vec::new();
        let mut together = false;
        for (start, end) in memory::private_ranges(self.pid)? {
            let known = match start {
                None => true, // something that cannot be tracked lies between
                Some(start) => {
                    self.hashed.overlaps(start, end)
                        || tracker.tracks(start).map_err(|err| failed(self.pid, err))?
                }
            };
            match (known, start, together) {
                (false, Some(start), true) => {
                    missing.last_mut().into_iter().for_each(|m| m.push((start, end)))
                }
                (false, Some(start), false) => missing.push(vec![(start, end)]),
                _ => {}
            }
            together = !known;
        }
        for ranges in missing {
            self.track_together(&ranges, caller)?;
        }
        Ok(())
    }

    /// Mappings with nothing else between them: one call for all, or, where one of them is not taken, one for each.
    fn track_together(&mut self, ranges: &[(u64, u64)], caller: &mut dyn Caller) -> Result<()> {
        let (Some(tracker), Some(first), Some(last)) = (&mut self.tracker, ranges.first(), ranges.last())
        else {
            return Ok(());
        };
        let whole = tracker.track((first.0, last.1)).map_err(|err| failed(self.pid, err))?;
        for &(start, end) in ranges {
            if whole || tracker.track((start, end)).map_err(|err| failed(self.pid, err))? {
                self.tracked.insert(start, end);
                self.fresh.insert(start, end);
            } else {
                let name = tracker.name();
                caller.notice(&format!(
                    "its mapping at {start:#x} cannot be tracked by {name}: its pages are hashed"
                ));
                self.hashed.insert(start, end);
            }
        }
        Ok(())
    }

    /// Looks at all mappings.
    pub fn scan(&mut self, vmas: &[Vma], pass: Pass) -> Result<Scan> {
        let mut scan = Scan { fresh: std::mem::take(&mut self.fresh), ..Scan::default() };
        match pass {
            Pass::Round => self.scan_each(vmas, &mut scan)?,
            Pass::Stop => self.scan_together(vmas, &mut scan)?,
        }
        Ok(scan)
    }

    /// One mapping after the other, as what is written is cleared in the same step only where all is tracked.
    fn scan_each(&mut self, vmas: &[Vma], scan: &mut Scan) -> Result<()> {
        for vma in vmas.iter().filter(|vma| carries_pages(vma)) {
            scan.found.scanned += (vma.end - vma.start) / PAGE_SIZE;
            if self.is_hashed(vma) {
                self.by_hash(vma, scan)?;
                continue;
            }
            let Some(tracker) = &mut self.tracker else { continue };
            let mut runs = std::mem::take(&mut self.runs);
            runs.clear();
            let found = tracker.scan((vma.start, vma.end), what(vma), true, &mut runs);
            if found.map_err(|err| failed(self.pid, err))? == Found::Tracked {
                self.note_runs(vma, &runs, Pass::Round, scan);
            } else {
                // It, or a part of it, was replaced this very moment. The next round tells of the pages of what is new;
                // but what is left of it is tracked and may not be written again, so all is sent.
                scan.fresh.insert(vma.start, vma.end);
                self.hashes.forget((vma.start, vma.end));
                self.send_all(vma, scan)?;
            }
            self.runs = runs;
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.clear_all().map_err(|err| failed(self.pid, err))?;
        }
        Ok(())
    }

    /// In few calls, as the process stands meanwhile.
    fn scan_together(&mut self, vmas: &[Vma], scan: &mut Scan) -> Result<()> {
        let mut runs = std::mem::take(&mut self.runs);
        for (surveyed, group) in self.groups(vmas) {
            let carrying = group.iter().filter(|vma| carries_pages(vma));
            scan.found.scanned += carrying.clone().map(|vma| (vma.end - vma.start) / PAGE_SIZE).sum::<u64>();
            if !surveyed {
                carrying.clone().try_for_each(|vma| self.by_hash(vma, scan))?;
                continue;
            }
            runs.clear();
            self.survey(group, &mut runs)?;
            for vma in group {
                let inside = clipped(&runs, (vma.start, vma.end));
                if self.all_tracked(vma, &inside)? {
                    self.note_runs(vma, &inside, Pass::Stop, scan);
                } else {
                    scan.fresh.insert(vma.start, vma.end);
                    self.hashes.forget((vma.start, vma.end));
                    self.by_hash(vma, scan)?;
                }
            }
        }
        self.runs = runs;
        Ok(())
    }

    fn is_hashed(&self, vma: &Vma) -> bool {
        self.tracker.is_none() || self.hashed.overlaps(vma.start, vma.end)
    }

    /// Mappings that follow one another and of whose pages the tracker can tell (true), or cannot.
    fn groups<'a>(&self, vmas: &'a [Vma]) -> Vec<(bool, &'a [Vma])> {
        let surveyed = |vma: &Vma| carries_pages(vma) && !self.is_hashed(vma);
        let groups = vmas.chunk_by(|a, b| surveyed(a) == surveyed(b));
        groups.map(|group| (surveyed(&group[0]), group)).collect()
    }

    fn survey(&mut self, group: &[Vma], runs: &mut Vec<Run>) -> Result<()> {
        let Some(tracker) = &mut self.tracker else { return Ok(()) };
        let mappings: Vec<_> = group.iter().map(|vma| ((vma.start, vma.end), what(vma))).collect();
        tracker.survey(&mappings, runs).map_err(|err| failed(self.pid, err))
    }

    /// Whether a mapping with these runs is tracked; of one without any content that has to be asked.
    fn all_tracked(&mut self, vma: &Vma, runs: &[Run]) -> Result<bool> {
        match &mut self.tracker {
            Some(tracker) if runs.is_empty() => {
                tracker.tracks(vma.start).map_err(|err| failed(self.pid, err))
            }
            _ => Ok(runs.iter().all(|run| run.tracked)),
        }
    }

    fn note_runs(&mut self, vma: &Vma, runs: &[Run], pass: Pass, scan: &mut Scan) {
        let readable = vma.prot & prot::READ != 0;
        for run in runs {
            if run.guard {
                scan.found.guards.push((run.start, run.end));
                continue;
            }
            push_range(&mut scan.content, (run.start, run.end));
            let how = match (run.written, self.direct, pass) {
                (true, Direct::Hashed, _) => How::Note,
                (true, ..) | (_, Direct::Late, Pass::Stop) => How::Send,
                (_, Direct::Hashed, Pass::Stop) => How::Compare,
                _ => continue,
            };
            scan.found.spans.push(Span { start: run.start, end: run.end, readable, how });
        }
    }

    fn by_hash(&mut self, vma: &Vma, scan: &mut Scan) -> Result<()> {
        self.all_pages(vma, How::Compare, scan)
    }

    fn send_all(&mut self, vma: &Vma, scan: &mut Scan) -> Result<()> {
        let how = if self.direct == Direct::Hashed { How::Note } else { How::Send };
        self.all_pages(vma, how, scan)
    }

    fn all_pages(&mut self, vma: &Vma, how: How, scan: &mut Scan) -> Result<()> {
        let mut found = memory::present(self.pid, &self.pagemap, std::slice::from_ref(vma))?;
        found.spans.iter_mut().for_each(|span| span.how = how);
        found.spans.iter().for_each(|span| push_range(&mut scan.content, (span.start, span.end)));
        scan.found.spans.append(&mut found.spans);
        scan.found.guards.append(&mut found.guards);
        Ok(())
    }

    /// Bytes of pages written since the last round, as far as that can be told without reading them, and how many of them
    /// are of pages whose blocks are known.
    pub fn written(&mut self, vmas: &[Vma]) -> Result<(u64, u64)> {
        let (mut all, mut known, mut runs) = (0, 0, std::mem::take(&mut self.runs));
        for (_, group) in self.groups(vmas).into_iter().filter(|(surveyed, _)| *surveyed) {
            runs.clear();
            self.survey(group, &mut runs)?;
            for run in runs.iter().filter(|run| run.tracked && run.written && !run.guard) {
                all += run.end - run.start;
                known += self.hashes.known_pages((run.start, run.end)) * PAGE_SIZE;
            }
        }
        self.runs = runs;
        Ok((all, known))
    }

    /// How many pages a stop would have to read only to compare them.
    pub fn compared(&self, sent: &Ranges) -> u64 {
        let all = self.tracker.is_none() || self.direct != Direct::No;
        let counts = |(start, end): &(u64, u64)| all || self.hashed.overlaps(*start, *end);
        sent.ranges().filter(counts).map(|(start, end)| (end - start) / PAGE_SIZE).sum()
    }

    /// Ends tracking, piece by piece, while the process runs.
    pub fn end(&mut self) {
        let Some(tracker) = &mut self.tracker else { return };
        for range in self.tracked.ranges() {
            if tracker.untrack(range).is_err() {
                return; // it is gone; closing does the rest
            }
        }
    }
}

fn what(vma: &Vma) -> What {
    match vma.backing {
        Backing::File { .. } | Backing::Shm { .. } => What::PrivateFile,
        _ => What::Anonymous,
    }
}

/// The parts of runs (ascending) that lie in a range.
fn clipped(runs: &[Run], (start, end): (u64, u64)) -> Vec<Run> {
    let from = runs.partition_point(|run| run.end <= start);
    let inside = runs[from..].iter().take_while(|run| run.start < end);
    inside.map(|run| Run { start: run.start.max(start), end: run.end.min(end), ..*run }).collect()
}

/// Appends a range, merged with the last where they touch.
fn push_range(ranges: &mut Vec<(u64, u64)>, (start, end): (u64, u64)) {
    match ranges.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => ranges.push((start, end)),
    }
}

pub(crate) fn failed(pid: i32, err: TrackError) -> CaptureError {
    match err {
        TrackError::Trace(err) => err.into(),
        TrackError::Kernel { what, source } => {
            let gone = source.raw_os_error() == Some(libc::ESRCH);
            match Err::<(), _>(source).of(pid, what) {
                // Its address space is another than that which was looked at.
                Err(CaptureError::Kernel { pid, .. }) if gone => CaptureError::another_program(pid),
                Err(err) => err,
                Ok(()) => CaptureError::Died(pid),
            }
        }
        err => CaptureError::Kernel {
            pid,
            what: err.to_string(),
            source: std::io::ErrorKind::Unsupported.into(),
        },
    }
}

/// For hashes that nobody can foretell.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u128(Instant::now().elapsed().as_nanos());
    hasher.finish()
}
