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

/// What ends the work of clients.
#[derive(Default)]
pub struct Until {
    /// It is enough.
    pub stop: AtomicBool,
    /// The move failed: no answer may ever come.
    pub failed: AtomicBool,
}

impl Until {
    /// Work is to go on.
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Talks to whichever of two addresses answers.
pub struct Client<'a> {
    addresses: [SocketAddr; 2],
    at: usize,
    lines: [Option<Line>; 2],
    until: Option<&'a Until>,
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

impl<'a> Client<'a> {
    /// Connects to the first address.
    pub fn connect(addresses: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let line = Line::open(addresses[0]).with_context(|| format!("cannot connect to {}", addresses[0]))?;
        Ok(Client { addresses, at: 0, lines: [Some(line), None], until: None })
    }

    /// The same, but gives up when the move failed.
    pub fn until(self, until: &'a Until) -> Self {
        Client { until: Some(until), ..self }
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
            if self.until.is_some_and(|until| until.failed.load(Ordering::Relaxed)) {
                bail!("the move failed");
            }
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

/// Asks every millisecond until it is enough; times are relative to `zero`.
pub fn watch(addresses: [SocketAddr; 2], zero: Instant, until: &Until) -> anyhow::Result<Vec<Sample>> {
    let mut client = Client::connect(addresses)?.until(until);
    let mut samples = Vec::new();
    while until.goes_on() {
        let asked = Instant::now();
        client.exchange(b"PING\r\n", 1, Duration::from_secs(120), |_| {})?;
        let at_us = zero.elapsed().as_micros() as u64;
        samples.push(Sample { at_us, latency_us: asked.elapsed().as_micros() as u64, from: client.at() });
        std::thread::sleep(Duration::from_millis(1).saturating_sub(asked.elapsed()));
    }
    Ok(samples)
}

/// The time without an answer in which the service moved: from the last answer of the source to the first of the
/// destination.
pub fn switch(samples: &[Sample]) -> u64 {
    let moved = samples.windows(2).find(|pair| (pair[0].from, pair[1].from) == (0, 1));
    moved.map_or(0, |pair| pair[1].at_us - pair[0].at_us)
}

/// The longest time without an answer of the source that ended at or after `from_us`.
pub fn longest_stall(samples: &[Sample], from_us: u64) -> u64 {
    let pairs = samples.windows(2).filter(|pair| pair[1].at_us >= from_us && pair[1].from == 0);
    pairs.map(|pair| pair[1].at_us - pair[0].at_us).max().unwrap_or(0)
}

/// Answers a second between two moments, to a client that asks a thousand times a second at the most.
pub fn rate(samples: &[Sample], from_us: u64, to_us: u64) -> Option<f64> {
    let to_us = to_us.min(samples.last()?.at_us);
    let count = samples.iter().filter(|sample| (from_us..to_us).contains(&sample.at_us)).count();
    (to_us > from_us).then(|| count as f64 * 1e6 / (to_us - from_us) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_rate_are_those_of_the_span() {
        let sample = |at_us| Sample { at_us, latency_us: 10, from: usize::from(at_us > 10_000) };
        let samples: Vec<_> = [0, 1000, 9000, 10_000, 12_000].map(sample).into();
        assert_eq!(longest_stall(&samples, 0), 8000);
        assert_eq!(longest_stall(&samples, 9500), 1000);
        assert_eq!(switch(&samples), 2000);
        assert_eq!(rate(&samples, 9000, 11_000), Some(1000.0));
        assert_eq!(rate(&samples, 12_000, u64::MAX), None);
    }
}
