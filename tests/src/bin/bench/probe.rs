//! What this machine reaches when it fills another process's memory.
//!
//! The process makes its pages present itself (MADV_POPULATE_WRITE), then they are written from outside with
//! process_vm_writev(2) in pieces of 1 MiB: the fastest way there is. How fast the tools fill memory is
//! compared with it.

use std::io::{BufRead as _, BufReader, IoSlice, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use memmap2::{Advice, MmapMut};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use serde::Serialize;

/// Bytes made present at a time.
const STEP: usize = 32 << 20;
/// Bytes written by a call.
const PIECE: usize = 1 << 20;
/// Bytes of what is written: more than caches hold, as what a stream brings is.
const SOURCE: usize = 64 << 20;

/// Bytes a second, the median of several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Probe {
    /// Pages of 4 KiB, one process filled by one thread.
    pub small_one: f64,
    /// Pages of 4 KiB, two processes at a time, each filled by a thread.
    pub small_two: f64,
    /// Huge pages, one process filled by one thread.
    pub huge_one: f64,
}

impl Probe {
    /// The best with pages of 4 KiB.
    pub fn small(&self) -> f64 {
        self.small_one.max(self.small_two)
    }
}

/// Measures with `bytes` for each way, `repeat` times.
pub fn measure(bytes: u64, repeat: usize) -> anyhow::Result<Probe> {
    let bytes = (bytes as usize).next_multiple_of(STEP);
    let source: Vec<u8> = (0..SOURCE).map(|n| (n as u64).wrapping_mul(0x9e37_79b9) as u8).collect();
    let rate = |threads: usize, huge: bool| -> anyhow::Result<f64> {
        let runs: anyhow::Result<Vec<f64>> =
            (0..repeat).map(|_| once(bytes, threads, huge, &source)).collect();
        let mut runs = runs?;
        runs.sort_by(f64::total_cmp);
        Ok(runs[runs.len() / 2])
    };
    Ok(Probe { small_one: rate(1, false)?, small_two: rate(2, false)?, huge_one: rate(1, true)? })
}

fn once(bytes: usize, threads: usize, huge: bool, source: &[u8]) -> anyhow::Result<f64> {
    let share = (bytes / threads).next_multiple_of(STEP);
    let targets: anyhow::Result<Vec<Target>> = (0..threads).map(|_| Target::start(share, huge)).collect();
    let mut targets = targets?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let fillers: Vec<_> =
            targets.iter_mut().map(|target| scope.spawn(|| target.fill(share, source))).collect();
        fillers.into_iter().try_for_each(|filler| filler.join().expect("no panic in there"))
    })?;
    Ok((share * threads) as f64 / began.elapsed().as_secs_f64())
}

/// A process to be filled; it ends when its input does.
struct Target {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    address: usize,
}

impl Target {
    fn start(bytes: usize, huge: bool) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--probed", &bytes.to_string()]).args(huge.then_some("--probed-huge"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut target = Target { child, orders, answers, address: 0 };
        target.address = target.answer()?;
        Ok(target)
    }

    fn answer(&mut self) -> anyhow::Result<usize> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().context("the probed process does not answer")
    }

    fn fill(&mut self, bytes: usize, source: &[u8]) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32);
        for step in (0..bytes).step_by(STEP) {
            writeln!(self.orders.as_mut().context("no stdin")?, "{step}")?;
            self.answer()?;
            for at in (step..step + STEP).step_by(PIECE) {
                let local = &source[at % SOURCE..][..PIECE];
                let remote = RemoteIoVec { base: self.address + at, len: PIECE };
                let written = process_vm_writev(pid, &[IoSlice::new(local)], &[remote])?;
                ensure!(written == PIECE, "a short write");
            }
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// The process that is filled: tells where, and makes pages present when told to.
pub fn be_filled(bytes: u64, huge: bool) -> anyhow::Result<()> {
    let memory = MmapMut::map_anon(bytes as usize).context("memory")?;
    memory.advise(if huge { Advice::HugePage } else { Advice::NoHugePage }).context("madvise")?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", memory.as_ptr() as usize)?;
    for line in std::io::stdin().lines() {
        let at: usize = line?.parse().context("an offset")?;
        memory.advise_range(Advice::PopulateWrite, at, STEP).context("MADV_POPULATE_WRITE")?;
        writeln!(out, "{at}")?;
    }
    Ok(())
}
