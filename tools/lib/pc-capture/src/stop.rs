//! The stop: all that exists only now, in as little time as it can be done.
//!
//! While one thread copies the last pages, this one asks the process: ptrace belongs to it, reading memory does not.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use pc_image::{
    FdTable, MmSettings, MmState, OpenFile, Record, RoundBegin, SigTable, Sink, TaskState, Thread, Vma,
};
use pc_trace::{Remote, Tid, Tracees};
use pc_track::{Hashes, Room};

use crate::beside::Beside;
use crate::check::Target;
use crate::controls::{self, Probe};
use crate::error::{CaptureError, Context, Result};
use crate::figures::{RoundFigures, StopFigures, micros};
use crate::frozen::Frozen;
use crate::inside::{self, Told};
use crate::memory::Span;
use crate::openfile::{self, Captured, Descriptor, is_direct_io};
use crate::pages::{self, Copied, CopyPlan, Patching};
use crate::procfs::Stat;
use crate::restart::Waits;
use crate::rounds::{Changes, Pass, Scan};
use crate::session::{Session, descriptors};
use crate::settings::Settings;
use crate::task::{self, SIGS, SPACE, TASK};
use crate::thread::{Outside, SchedControls};
use crate::{machine, mm_settings, sharing, signal, thread, timer};

/// All that is not memory.
struct State {
    mm: MmState,
    mm_settings: Option<MmSettings>,
    sigs: SigTable,
    files: Vec<OpenFile>,
    beside: Vec<Record>,
    table: FdTable,
    task: TaskState,
    threads: Vec<Thread>,
    /// What few programs set.
    rare: Vec<Record>,
    /// A notice of keys that the copy will lack.
    keys_lost: Option<String>,
}

/// What /proc and others show of a process that stands, which any thread of ours can read.
struct Readable {
    descriptors: Vec<Descriptor>,
    /// In the order of the tids.
    threads: Vec<Outside>,
    beside: Beside,
}

impl Readable {
    fn read(pid: i32, tids: &[Tid], descriptors: &[i32]) -> Result<Self> {
        let threads = Outside::look(pid, tids)?;
        sharing::standing(pid, tids.iter().copied().zip(threads.iter().map(Outside::status)))?;
        let beside = Beside::look(pid)?;
        Ok(Self { descriptors: openfile::descriptors_again(pid, descriptors)?, threads, beside })
    }
}

impl Session<'_> {
    /// Stops the process and sends what is left, as round `number`.
    pub(crate) fn stop(mut self, number: u32) -> Result<Frozen> {
        let pid = self.target.pid;
        self.caller.stopping().of(pid, "before it is stopped")?;
        let mut tracees = self.freeze_alone()?;
        let waits = std::mem::take(&mut self.waits);
        let began = tracees.since();
        self.caller.frozen();
        self.figures.freezing_time = micros(began);
        self.figures.stop.freeze = self.figures.freezing_time;
        let stat = Stat::read(pid).of(pid, "reading its status")?;
        let program = |stat: &Stat| (stat.start_code, stat.end_code, stat.start_stack);
        if program(&stat) != program(&self.target.stat) {
            return Err(CaptureError::another_program(pid));
        }
        self.target.stat = stat;
        let round = RoundBegin { number, last: true, clocks: machine::clocks(pid)? };
        // Mappings and pages are looked at before any remote call, which has a mapping of its own.
        let (tids, descriptors) = (tracees.tids(), self.target.seen.numbers());
        let (looked, readable) = std::thread::scope(|scope| {
            let reading = scope.spawn(move || Readable::read(pid, &tids, &descriptors));
            (self.look(), reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let ((vmas, Changes { mappings, zaps, scan }), mut readable) = (looked?, readable?);
        self.look_at_objects(&readable.descriptors)?;
        self.figures.stop.scan = micros(began) - self.figures.stop.freeze;
        let (early, late) = apart(&scan.found.spans, workplace(&vmas, self.target.stat.start_stack));
        self.begin_counting();
        self.put(Record::RoundBegin(round))?;
        self.births(std::mem::take(&mut readable.beside))?;
        self.mappings(mappings, vmas)?;
        self.zaps(zaps)?;
        let state = self.ask_and_copy(&mut tracees, &early, &waits, &scan, readable)?;
        state.keys_lost.iter().for_each(|lost| self.caller.notice(lost));
        self.copy(&late, false, Patching::Last)?;
        self.copy_unseen(&state, &scan)?;
        self.copy_objects(false, Patching::Last)?;
        self.figures.written_from = Some(Instant::now());
        let (task, threads) = self.put_state(state)?;
        let figures = RoundFigures { last: true, ..self.round_figures(number, began) };
        self.figures.rounds.push(figures);
        let Self { target, figures, tracking, sink, .. } = self;
        let Target { pidfd, connections, .. } = target;
        let (state, rules, since) = (task, sink.rules, began);
        Ok(Frozen { tracees, tracking, connections, pidfd, state, threads, since, figures, rules })
    }

    /// Looks at mappings and pages.
    fn look(&mut self) -> Result<(Vec<Vma>, Changes)> {
        self.target.files.objects.begin_look();
        let mut vmas = self.look_at_mappings(true)?;
        let mut changes = self.changes(&vmas, Pass::Stop)?;
        if !self.vmas.is_empty() && !changes.scan.fresh.is_empty() {
            vmas = self.look_anew_at_mappings()?;
            changes.mappings = self.what_changed(&vmas, &changes.scan);
        }
        Ok((vmas, changes))
    }

    /// A descriptor with O_DIRECT that nobody had seen before: what tracking does not know of may have been written.
    fn copy_unseen(&mut self, state: &State, scan: &Scan) -> Result<()> {
        let Some(tracking) = &self.tracking.0 else { return Ok(()) };
        if tracking.knows_direct_io() || !state.files.iter().any(is_direct_io) {
            return Ok(());
        }
        self.caller.notice(
            "it has just begun to use O_DIRECT, which tracking cannot see: all of its memory is sent",
        );
        self.copy(&scan.rest(), false, Patching::Last)
    }

    /// Asks the process for its state while another thread copies pages.
    fn ask_and_copy(
        &mut self,
        tracees: &mut Tracees,
        spans: &[Span],
        waits: &Waits,
        scan: &Scan,
        readable: Readable,
    ) -> Result<State> {
        let guards = scan.found.guards.clone();
        let Self { target, settings, sink, tracking, figures, cancel, vmas, .. } = self;
        let cancel: &AtomicBool = cancel;
        let plan =
            CopyPlan { pid: target.pid, space: SPACE, running: false, patching: Patching::Last, cancel };
        let mut none = Hashes::new(0, &Room::default());
        let hashes = tracking.0.as_mut().map_or(&mut none, |tracking| &mut tracking.hashes);
        let stop = &mut figures.stop;
        let (state, copied, time) = std::thread::scope(|scope| {
            let copying = scope.spawn(move || -> (Result<Copied>, u64) {
                let began = Instant::now();
                let copied = if spans.is_empty() {
                    Ok(Copied::default())
                } else {
                    pages::copy(plan, spans, hashes, sink).and_then(|copied| {
                        sink.flush()?;
                        Ok(copied)
                    })
                };
                (copied, micros(began))
            });
            let state = ask(target, settings, tracees, (waits, vmas), guards, readable, stop);
            let (copied, time) = copying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (state, copied, time)
        });
        self.figures.stop.copy += time;
        self.figures.memdump_time += time;
        self.account(&copied?);
        state
    }

    fn put_state(&mut self, state: State) -> Result<(TaskState, Vec<Thread>)> {
        for file in self.target.files.take_fresh() {
            self.put(Record::File(file))?;
        }
        self.put(Record::MmState(state.mm))?;
        state.mm_settings.map_or(Ok(()), |settings| self.put(Record::MmSettings(settings)))?;
        self.put(Record::SigTable(state.sigs))?;
        for file in state.files {
            self.put(Record::OpenFile(file))?;
        }
        for record in state.beside {
            self.put(record)?;
        }
        self.put(Record::FdTable(state.table))?;
        // Before the last that a destination waits for.
        state.rare.into_iter().try_for_each(|record| self.put(record))?;
        self.put(Record::TaskState(state.task.clone()))?;
        for thread in &state.threads {
            self.put(Record::Thread(thread.clone()))?;
        }
        Ok((state.task, state.threads))
    }
}

fn ask(
    target: &mut Target,
    settings: &Settings,
    tracees: &mut Tracees,
    (waits, vmas): (&Waits, &[Vma]),
    guards: Vec<(u64, u64)>,
    readable: Readable,
    stop: &mut StopFigures,
) -> Result<State> {
    let began = Instant::now();
    let timers = timer::timers(target.pid)?;
    let probe = target.probe.as_ref();
    let sealed = target.sealed(vmas);
    let told = inside::ask(tracees, &timers, probe.map_or(0, |probe| probe.pid), vmas, &sealed)?;
    judge(tracees, &told, &readable.threads, probe)?;
    let sched: Vec<_> = readable.threads.iter().map(Outside::sched_controls).collect();
    let both = told.threads.iter().zip(readable.threads);
    let threads: Result<Vec<Thread>> =
        both.map(|(told, outside)| thread::thread(tracees, TASK, told, outside, waits)).collect();
    let threads = threads?;
    let task = task::state(tracees, &told, &timers, &mut target.files)?;
    let rare = rare(&told, &task, &threads, &sched, target.pid);
    let mm = task::mm(target.pid, &target.stat, &told, guards, &mut target.files)?;
    let own: Vec<_> =
        told.threads.iter().zip(&threads).map(|(told, own)| (told.tid, own.tid, &told.mm)).collect();
    let mm_settings = mm_settings::settings(target.pid, &told.mm, &own, told.thp_disable)?;
    stop.registers = micros(began);
    let began = Instant::now();
    let mut captured = descriptors(target, settings, true, readable.descriptors)?;
    stop.descriptors = micros(began);
    target.connections.keep(std::mem::take(&mut captured.taken));
    let sigs = signal::table(SIGS, &told.actions);
    let Captured { files, beside, table, .. } = captured;
    let keys_lost = told.keys_lost;
    Ok(State { mm, mm_settings, sigs, files, beside, table, task, threads, rare, keys_lost })
}

/// Refuses what was found out only now.
fn judge(tracees: &Tracees, told: &Told, outside: &[Outside], probe: Option<&Probe>) -> Result<()> {
    let pid = tracees.pid();
    let mut bad = Vec::new();
    let probed = |outside: &Outside| probe.is_some_and(|probe| probe.tells_of(outside.status()));
    let threads = told.threads.iter().zip(outside).map(|(told, it)| (told.tid, &told.controls, probed(it)));
    bad.extend(controls::refused(pid, &told.controls, &threads.collect::<Vec<_>>()));
    bad.extend(controls::at_any_time(pid, &tracees.tids(), probe)?);
    controls::none(bad)
}

/// The records of what few programs set.
fn rare(told: &Told, task: &TaskState, threads: &[Thread], sched: &[SchedControls], pid: i32) -> Vec<Record> {
    let mut rare = Vec::new();
    rare.extend(controls::task_settings(pid, &told.controls).map(Record::TaskSettings));
    for ((told, thread), sched) in told.threads.iter().zip(threads).zip(sched) {
        let settings = controls::thread_settings(thread.tid, &told.controls, *sched, task.personality);
        rare.extend(settings.map(Record::ThreadSettings));
    }
    rare.extend(timer::dates(&task.timers, told).map(Record::TimerDates));
    rare
}

/// Where remote calls work on the main stack: those pages are copied when that is over.
fn workplace(vmas: &[Vma], start_stack: u64) -> (u64, u64) {
    let stack = vmas.iter().find(|vma| vma.start <= start_stack && start_stack <= vma.end);
    stack.map_or((0, 0), |vma| (vma.start, vma.start + Remote::STACK_BYTES))
}

/// Spans outside of a range, and those in it.
fn apart(spans: &[Span], (start, end): (u64, u64)) -> (Vec<Span>, Vec<Span>) {
    let (mut outside, mut inside) = (Vec::with_capacity(spans.len()), Vec::new());
    for span in spans {
        let cut = |from: u64, to: u64| Span { start: from.max(span.start), end: to.min(span.end), ..*span };
        outside.extend([cut(0, start), cut(end, u64::MAX)].into_iter().filter(|s| s.start < s.end));
        inside.extend(Some(cut(start, end)).filter(|s| s.start < s.end));
    }
    (outside, inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::How;

    #[test]
    fn the_place_where_remote_calls_work_is_cut_out_of_the_spans() {
        let span = |start, end| Span { start, end, readable: true, how: How::Send };
        let (outside, inside) = apart(&[span(0, 4), span(6, 20), span(30, 31)], (8, 10));
        assert_eq!(outside, [span(0, 4), span(6, 8), span(10, 20), span(30, 31)]);
        assert_eq!(inside, [span(8, 10)]);
        assert_eq!(apart(&[span(1, 2)], (0, 0)).1, []);
    }
}
