//! A client that knows two addresses, and the watching one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::resp;

const CONNECT: Duration = Duration::from_millis(20);

/// A connection and what has arrived on it.
struct Line {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Line {
    fn open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Line { stream, received: Vec::new() })
    }

    /// Writes without waiting for room for ever: a server that stands still takes no more.
    fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.set_write_timeout(Some(Duration::from_millis(5))).ok()?;
        self.stream.write_all(bytes).ok()
    }

    /// Takes what is there. `None`: the connection is gone.
    fn read(&mut self) -> Option<()> {
        let mut chunk = [0; 65_536];
        self.stream.set_nonblocking(true).ok()?;
        let read = self.stream.read(&mut chunk);
        self.stream.set_nonblocking(false).ok()?;
        match read {
            Ok(0) => None,
            Ok(n) => {
                self.received.extend(&chunk[..n]);
                Some(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(()),
            Err(_) => None,
        }
    }

    fn take_reply(&mut self) -> Option<Vec<u8>> {
        let len = resp::reply_len(&self.received)?;
        Some(self.received.drain(..len).collect())
    }
}

/// Talks to whichever of two addresses answers.
pub struct Client {
    addresses: [SocketAddr; 2],
    at: usize,
    lines: [Option<Line>; 2],
}

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Exchange {
    /// All replies came.
    Done,
    /// The connection was lost, or the server answers at the other address now; replies that had
    /// not come will not come.
    Moved,
}

impl Client {
    /// Connects to the first address.
    pub fn connect(addresses: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let line = Line::open(addresses[0]).with_context(|| format!("cannot connect to {}", addresses[0]))?;
        Ok(Client { addresses, at: 0, lines: [Some(line), None] })
    }

    /// Which address answered last.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Sends commands and hands over as many replies. Where none comes for a millisecond, the
    /// other address is tried too, again and again until `limit`.
    pub fn exchange(
        &mut self,
        bytes: &[u8],
        replies: usize,
        limit: Duration,
        mut each: impl FnMut(&[u8]),
    ) -> anyhow::Result<Exchange> {
        let began = Instant::now();
        let mut left = replies;
        self.on_current(|line| line.write(bytes));
        while began.elapsed() < limit {
            let idle = self.wait()?;
            self.on_current(Line::read);
            while let Some(reply) = self.lines[self.at].as_mut().and_then(Line::take_reply) {
                each(&reply);
                left -= 1;
                if left == 0 {
                    return Ok(Exchange::Done);
                }
            }
            if idle && self.other_answers() {
                return Ok(Exchange::Moved);
            }
        }
        bail!("no answer from {:?} for {} s", self.addresses, limit.as_secs())
    }

    /// Waits a millisecond for bytes; says whether none came.
    fn wait(&mut self) -> anyhow::Result<bool> {
        let open = self.lines.iter().flatten();
        let mut fds: Vec<_> = open.map(|line| PollFd::new(line.stream.as_fd(), PollFlags::POLLIN)).collect();
        if fds.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(true);
        }
        let ready = poll(&mut fds, PollTimeout::from(1_u8))?;
        Ok(ready == 0 || self.lines[self.at].is_none() || self.lines[1 - self.at].is_some())
    }

    fn on_current(&mut self, work: impl FnOnce(&mut Line) -> Option<()>) {
        let line = &mut self.lines[self.at];
        if line.as_mut().is_some_and(|line| work(line).is_none()) {
            *line = None;
        }
    }

    /// Asks at the other address, and again at this one if its connection is gone. If one answers,
    /// it is the current one from now on.
    fn other_answers(&mut self) -> bool {
        let lost = self.lines[self.at].is_none();
        let same = self.addresses[0] == self.addresses[1];
        for at in [1 - self.at, self.at] {
            if !lost && (same || at == self.at) {
                continue;
            }
            if self.lines[at].is_none() {
                self.lines[at] = Line::open(self.addresses[at]).and_then(|mut line| {
                    line.write(b"PING\r\n")?;
                    Some(line)
                });
            }
            let Some(line) = &mut self.lines[at] else { continue };
            if line.read().is_none() {
                self.lines[at] = None;
            } else if line.take_reply().is_some() {
                self.lines[1 - at] = None;
                self.at = at;
                return true;
            }
        }
        false
    }
}

/// One answered request of the watching client.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// When the answer came, in microseconds since the run began.
    pub at_us: u64,
    /// How long it took.
    pub latency_us: u64,
    /// Which address answered: 0 the source, 1 the destination.
    pub from: usize,
}

/// Asks every millisecond until `stop`; times are relative to `zero`.
pub fn watch(addresses: [SocketAddr; 2], zero: Instant, stop: &AtomicBool) -> anyhow::Result<Vec<Sample>> {
    let mut client = Client::connect(addresses)?;
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        client.exchange(b"PING\r\n", 1, Duration::from_secs(120), |_| {})?;
        let at_us = zero.elapsed().as_micros() as u64;
        samples.push(Sample { at_us, latency_us: asked.elapsed().as_micros() as u64, from: client.at() });
        std::thread::sleep(Duration::from_millis(1).saturating_sub(asked.elapsed()));
    }
    Ok(samples)
}

/// The longest time without an answer that ended at or after `from_us`.
pub fn longest_silence(samples: &[Sample], from_us: u64) -> u64 {
    let pairs = samples.windows(2).filter(|pair| pair[1].at_us >= from_us);
    pairs.map(|pair| pair[1].at_us - pair[0].at_us).max().unwrap_or(0)
}
