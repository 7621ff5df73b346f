//! One move of a server, with clients that watch and work.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use serde::Serialize;

use crate::How;
use crate::cleanup::Folder;
use crate::client::{self, Sample, Until};
use crate::host::Net;
use crate::load::{self, Done, Model};
use crate::matrix::{Case, Load};
use crate::server;
use crate::transfer::{self, Move};

/// What was measured of a whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub moved: Move,
    /// From the last answer of the source to the watching client until the first of the destination.
    pub downtime_us: u64,
    /// The longest time without an answer while the source still served.
    pub stall_us: u64,
    /// Operations a second of the working client; of the watching one, where that is the only one.
    pub rate_before: Option<f64>,
    /// From the move's begin until the server stood still.
    pub rate_during: Option<f64>,
    pub rate_after: Option<f64>,
    /// When the move began, on the samples' clock.
    pub began_us: u64,
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

/// Runs a case once. All that was acknowledged to the working client is compared with what the copy holds.
pub fn once(case: &Case, how: &How) -> anyhow::Result<Outcome> {
    let folder = Folder::new()?;
    let net = Net::new(case.link)?;
    let (pid, keys) = net.clients.within(|| server::start(&net.source, &folder.0, case.memory))?;
    let mut model = Model::new(keys);
    let zero = Instant::now();
    let until = Until::default();
    let margin = Duration::from_secs_f64(how.margin);
    let (samples, done, moved, began, ended) = thread::scope(|scope| {
        let watching = scope.spawn(|| net.clients.within(|| client::watch(Net::service(), zero, &until)));
        let work = || model.work(case.load, Net::service(), zero, &until);
        let working = scope.spawn(|| net.clients.within(work));
        thread::sleep(margin);
        let began = zero.elapsed();
        let moved = transfer::run(&net, &folder.0, pid, case.mode, how);
        let ended = zero.elapsed();
        match moved {
            Ok(_) => thread::sleep(margin),
            Err(_) => until.failed.store(true, Ordering::Relaxed),
        }
        until.stop.store(true, Ordering::Relaxed);
        (watching.join(), working.join(), moved, began, ended)
    });
    let moved = moved?;
    let panicked = |_| anyhow!("a client panicked");
    let samples = samples.map_err(panicked)?.context("watching client")?;
    let done = done.map_err(panicked)?.context("working client")?;
    ensure!(samples.last().is_some_and(|last| last.from == 1), "the copy never answered");
    let [_, copy] = Net::service();
    net.clients.within(|| model.compare(copy)).context("after the move")?;
    let done = (case.load != Load::Idle).then_some(done);
    Ok(outcome(moved, samples, done, began.as_micros() as u64, ended.as_micros() as u64))
}

fn outcome(moved: Move, samples: Vec<Sample>, done: Option<Done>, began: u64, ended: u64) -> Outcome {
    let last_there = samples.iter().rfind(|sample| sample.from == 0).map_or(began, |sample| sample.at_us);
    let rate = |from, to| match &done {
        Some(done) => load::rate(done, from, to),
        None => client::rate(&samples, from, to),
    };
    Outcome {
        downtime_us: client::switch(&samples),
        stall_us: client::longest_stall(&samples, began),
        rate_before: rate(0, began),
        rate_during: rate(began, last_there),
        rate_after: rate(ended, u64::MAX),
        began_us: began,
        moved,
        samples,
    }
}
