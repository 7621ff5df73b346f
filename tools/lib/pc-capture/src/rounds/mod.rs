//! Rounds: the memory of the running process is sent, then what was written meanwhile, until a stop would be short.

mod changes;
mod method;
mod pace;
mod rule;
mod tracking;

pub(crate) use changes::{diff, is_empty};
pub(crate) use pace::Pace;
pub(crate) use tracking::{Pass, Scan, Tracking, seed};

use std::time::{Duration, Instant};

use pc_image::{Counts, MapChange, PAGE_SIZE, Record, RoundBegin, RoundEnd, Sink, Vma, Zap};
use pc_trace::Tracees;

use crate::beside::Beside;
use crate::check::tids;
use crate::costs::timed;
use crate::error::{CaptureError, Result};
use crate::figures::{RoundFigures, micros};
use crate::machine;
use crate::memory::read_known;
use crate::openfile::{descriptors, uses_direct_io};
use crate::pages::Patching;
use crate::session::Session;
use crate::settings::Rounds;
use crate::task::SPACE;
use rule::{Foretold, Rule, Verdict, Why};

/// What a stop takes besides what grows with what there is.
const STOP_BASE: Duration = Duration::from_millis(2);
/// Bytes that are read and hashed in a second, at the least.
const HASH_RATE: u64 = 4 << 30;
/// A pause between looks at what still has to leave.
const LOOK: Duration = Duration::from_millis(1);

/// What has become of the memory.
#[derive(Debug)]
pub(crate) struct Changes {
    pub mappings: MapChange,
    /// Pages that the destination holds and the process no longer has.
    pub zaps: Vec<(u64, u64)>,
    pub scan: Scan,
}

/// What was written since a round, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Left {
    /// Of whole pages.
    pub written: u64,
    /// What will have to be sent: of pages whose blocks are known, patches.
    pub to_send: u64,
}

impl Session<'_> {
    /// The first pause: the process stands still just long enough to have its writes tracked.
    pub(crate) fn begin_tracking(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut tracees = self.freeze()?;
        let room = self.target.files.objects.room.clone();
        let tracking = Tracking::begin(&mut tracees, self.settings.track, &room, self.caller)
            .and_then(|mut tracking| tracking.track_all(self.caller).map(|()| tracking));
        let gone = self.thaw(tracees);
        self.figures.first_pause = micros(began);
        let tracking = tracking?;
        self.figures.tracked_by = tracking.name();
        self.tracking.0 = Some(tracking);
        gone
    }

    /// Round after round. Gives the number of the round that is to be the last.
    pub(crate) fn rounds(&mut self, settings: Rounds) -> Result<u32> {
        let mut rule = Rule::new(settings);
        for number in 0..settings.most {
            let mut figures = self.round(number)?;
            self.let_it_leave(number)?;
            // What smaps shows of mappings that were replaced or advised meanwhile is not to be asked at the stop.
            self.target.known = read_known(self.target.pid)?;
            let left = self.left()?;
            let foretold = self.foretell(left.to_send)?;
            let stop = foretold.whole();
            figures.left = Some(left.written);
            figures.dirty_rate = Some((left.written as f64 * 1e6 / figures.elapsed_us.max(1) as f64) as u64);
            figures.estimated_stop_us = Some(stop.as_micros() as u64);
            self.caller.round(&figures);
            self.figures.rounds.push(figures);
            match rule.judge(left.to_send, foretold) {
                Verdict::GoOn => {}
                Verdict::GiveUp(_) => {
                    let limit = settings.downtime_limit;
                    return Err(CaptureError::TooBusy { pid: self.target.pid, stop, limit });
                }
                Verdict::Stop(why) => {
                    self.say_why(why, stop, settings);
                    return Ok(number + 1);
                }
            }
        }
        Ok(settings.most)
    }

    fn say_why(&mut self, why: Why, stop: Duration, settings: Rounds) {
        if stop <= settings.downtime_limit {
            return;
        }
        let because = match why {
            Why::Stalled => "it writes memory about as fast as it is sent",
            Why::Rest => "its descriptors, threads and mappings alone take that long",
            _ => "no more rounds are allowed",
        };
        let text = format!(
            "{because}: it is stopped for about {} ms, though {} ms were the limit",
            stop.as_millis(),
            settings.downtime_limit.as_millis()
        );
        self.caller.notice(&text);
    }

    /// One round of the running process.
    fn round(&mut self, number: u32) -> Result<RoundFigures> {
        self.check_cancel()?;
        let pid = self.target.pid;
        let began = Instant::now();
        self.sink.pace.begin_round(began);
        self.begin_counting();
        self.target.files.objects.begin_look();
        let (open, time) = timed(|| self.descriptors());
        self.target.costs.descriptors = time;
        let open = open?;
        let clocks = machine::clocks(pid)?;
        let pause = self.pause_if_needed()?;
        let vmas = self.tracked_mappings()?;
        // Before and after: what is in flight while pages are cleared was opened before or is open still.
        let direct = uses_direct_io(pid)?;
        let mut changes = self.changes(&vmas, Pass::Round)?;
        if (direct || uses_direct_io(pid)?)
            && let Some(tracking) = &mut self.tracking.0
        {
            tracking.direct_io(number, &mut changes.scan, self.caller);
        }
        if let Some(tracees) = pause {
            self.thaw(tracees)?;
        }
        self.look_at_objects(&descriptors(pid, false)?)?;
        self.put(Record::RoundBegin(RoundBegin { number, last: false, clocks }))?;
        self.sink.flush()?;
        self.births(Beside::look(pid)?)?;
        self.open_files(open)?;
        self.mappings(changes.mappings, vmas)?;
        self.zaps(changes.zaps)?;
        let spans = changes.scan.found.spans;
        spans.iter().for_each(|span| self.sent.insert(span.start, span.end));
        let patching = if number == 0 { Patching::Never } else { Patching::Learn };
        self.copy(&spans, true, patching)?;
        self.copy_objects(true, patching)?;
        self.put(Record::RoundEnd(RoundEnd { number, counts: self.counts }))?;
        self.sink.flush()?;
        self.sink.pace.end_round(Instant::now());
        Ok(self.round_figures(number, began))
    }

    /// The mappings of now, all of which were tracked a moment ago: for new ones, the process stands still once more.
    fn tracked_mappings(&mut self) -> Result<Vec<Vma>> {
        let (vmas, time) = timed(|| self.look_at_mappings(false));
        self.target.costs.mappings = time;
        let vmas = vmas?;
        let Some(tracking) = &mut self.tracking.0 else { return Ok(vmas) };
        if !tracking.misses_any(&vmas)? {
            return Ok(vmas);
        }
        let tracees = self.freeze()?;
        if let Some(tracking) = &mut self.tracking.0 {
            tracking.track_all(self.caller)?;
        }
        self.thaw(tracees)?;
        self.look_at_mappings(false)
    }

    fn pause_if_needed(&mut self) -> Result<Option<Tracees>> {
        match &self.tracking.0 {
            Some(tracking) if tracking.needs_pause() => self.freeze().map(Some),
            _ => Ok(None),
        }
    }

    /// What has become of mappings and pages since the last round; everything where there was none.
    pub(crate) fn changes(&mut self, vmas: &[Vma], pass: Pass) -> Result<Changes> {
        let scan = match &mut self.tracking.0 {
            Some(tracking) => tracking.scan(vmas, pass)?,
            None => Scan::whole(self.target.pid, vmas)?,
        };
        let mappings = self.what_changed(vmas, &scan);
        mappings.unmap.iter().for_each(|(start, end)| self.sent.remove(*start, *end));
        let zaps = self.sent.take_missing(scan.content.iter().copied());
        if let Some(tracking) = &mut self.tracking.0 {
            mappings.unmap.iter().chain(&zaps).for_each(|range| tracking.forget(*range));
        }
        self.figures.pages_scanned += scan.found.scanned;
        self.figures.pages_skipped += scan.skipped();
        Ok(Changes { mappings, zaps, scan })
    }

    pub(crate) fn what_changed(&self, vmas: &[Vma], scan: &Scan) -> MapChange {
        diff(SPACE, &self.vmas, vmas, &scan.fresh)
    }

    pub(crate) fn zaps(&mut self, ranges: Vec<(u64, u64)>) -> Result<()> {
        self.object_zaps()?;
        if ranges.is_empty() {
            return Ok(());
        }
        self.counts.zapped_pages += ranges.iter().map(|(start, end)| (end - start) / PAGE_SIZE).sum::<u64>();
        self.put(Record::Zap(Zap { space: SPACE, ranges }))
    }

    /// Waits until round `number` has been applied, or has left as far as can be told: a stop behind full buffers would
    /// be longer.
    fn let_it_leave(&mut self, number: u32) -> Result<()> {
        loop {
            self.check_cancel()?;
            match self.caller.applied(number) {
                Some(true) => {
                    self.sink.pace.applied(Instant::now());
                    return Ok(());
                }
                Some(false) => continue,
                None => {}
            }
            let wait = self.sink.pace.wait(Instant::now());
            let queued = self.caller.queued();
            if wait.is_zero() && queued == 0 {
                return Ok(());
            }
            // A reader that takes nothing is waited for here rather than with the process stopped.
            std::thread::sleep(wait.clamp(LOOK, 20 * LOOK));
        }
    }

    fn left(&mut self) -> Result<Left> {
        let Some(tracking) = &mut self.tracking.0 else { return Ok(Left::default()) };
        if tracking.is_hashing() {
            // As much as in the last round.
            let Counts { pages, patched_pages, .. } = self.counts;
            let to_send = pages * PAGE_SIZE + self.patched.bytes;
            return Ok(Left { written: (pages + patched_pages) * PAGE_SIZE, to_send });
        }
        let (written, known) = tracking.written(&self.vmas)?;
        let patches = (known as f64 * self.patched.share()) as u64;
        let shared = self.target.files.objects.left();
        Ok(Left { written: written + shared.written, to_send: written - known + patches + shared.to_send })
    }

    /// How long a stop would be now, with so many bytes to send.
    fn foretell(&self, to_send: u64) -> Result<Foretold> {
        let sending = self.sink.pace.time_for(to_send).unwrap_or_default();
        let private = self.tracking.0.as_ref().map_or(0, |tracking| tracking.compared(&self.sent));
        let compared = private * PAGE_SIZE + self.target.files.objects.compared();
        let hashing = Duration::from_micros(compared * 1_000 / (HASH_RATE / 1_000));
        let state = self.target.costs.stop(tids(self.target.pid)?.len());
        Ok(Foretold { sending, rest: STOP_BASE + hashing + state })
    }
}
