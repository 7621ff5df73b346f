//! What the stop grows with: one dimension at a time.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::How;
use crate::cleanup::Folder;
use crate::client::{Client, Exchange};
use crate::guest::Shape;
use crate::host::Net;
use crate::matrix::{Link, Mode};
use crate::transfer::{self, Move};

/// A guest and how it is moved.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    pub shape: Shape,
    pub mode: Mode,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.shape, self.mode)
    }
}

/// Memory, threads, mappings and descriptors in steps.
pub fn steps(quick: bool) -> Vec<Shape> {
    let small = Shape::SMALL;
    let mut shapes = vec![small];
    let memory: &[u64] = if quick { &[100 << 20] } else { &[100 << 20, 1 << 30, 4 << 30] };
    shapes.extend(memory.iter().map(|&memory| Shape { memory, ..small }));
    shapes.extend([10, 100].map(|threads| Shape { threads, ..small }));
    shapes.extend([100, 1000, 10_000].map(|mappings| Shape { mappings, ..small }));
    shapes.extend([100, 1000].map(|files| Shape { files, ..small }));
    shapes
}

/// A group for each guest, with the ways to move it.
pub fn groups(shapes: &[Shape], modes: &[Mode]) -> Vec<Vec<Case>> {
    shapes.iter().map(|&shape| modes.iter().map(|&mode| Case { shape, mode }).collect()).collect()
}

/// Moves a guest once.
pub fn once(case: &Case, how: &How) -> anyhow::Result<Move> {
    let folder = Folder::new()?;
    let net = Net::new(Link::Open)?;
    let own = std::env::current_exe()?;
    let script = "setsid \"$0\" --guest \"$1\" </dev/null >/dev/null 2>&1 & echo $!";
    let mut command = net.source.command("sh");
    command.args(["-c", script]).arg(own).arg(case.shape.to_string());
    let started = command.stdin(Stdio::null()).output().context("cannot start the guest")?;
    let pid = String::from_utf8_lossy(&started.stdout).trim().parse().context("the guest's number")?;
    let [there, here] = Net::service();
    net.clients.within(|| answers(there)).context("the guest does not start")?;
    let moved = transfer::run(&net, &folder.0, pid, case.mode, how)?;
    net.clients.within(|| answers(here)).context("the copy does not answer")?;
    Ok(moved)
}

/// Waits until somebody answers there.
fn answers(address: std::net::SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let asked = Client::connect([address, address])
            .and_then(|mut client| client.exchange(b"PING\r\n", 1, Duration::from_secs(1), |_| {}));
        match asked {
            Ok(Exchange::Done | Exchange::Moved) => return Ok(()),
            Err(error) if began.elapsed() > Duration::from_secs(20) => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
