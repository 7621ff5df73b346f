//! The client that works: reads or writes, and a model of what was acknowledged to it.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::client::{Client, Until};
use crate::matrix::Load;
use crate::resp;
use crate::server;

/// Commands in flight.
const BATCH: usize = 16;
/// Bytes of values a second, read or written, at most: a quarter of 1 Gbit/s.
const RATE: f64 = 1e9 / 8.0 / 4.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// What each key must hold.
pub struct Model {
    /// The version last acknowledged.
    acknowledged: Vec<u32>,
    /// The version last sent; a lost reply leaves open which of the two it is.
    sent: Vec<u32>,
}

/// Operations done by a moment.
pub type Done = Vec<(u64, u64)>;

impl Model {
    pub fn new(keys: u64) -> Self {
        Model { acknowledged: vec![0; keys as usize], sent: vec![0; keys as usize] }
    }

    /// Works until it is enough; gives the times (microseconds since `zero`) and how many operations had
    /// been done by then.
    pub fn work(
        &mut self,
        load: Load,
        addresses: [SocketAddr; 2],
        zero: Instant,
        until: &Until,
    ) -> anyhow::Result<Done> {
        let mut done = vec![(zero.elapsed().as_micros() as u64, 0)];
        if load == Load::Idle {
            return Ok(done);
        }
        let mut client = Client::connect(addresses)?.until(until);
        let (mut random, mut total, mut next) = (0x1234_5678_9abc_def1, 0, Instant::now());
        let pause = Duration::from_secs_f64((BATCH * server::VALUE) as f64 / RATE);
        while until.goes_on() {
            let keys: Vec<_> = (0..BATCH).map(|_| pick(&mut random, self.sent.len())).collect();
            total +=
                if load == Load::Read { read(&mut client, &keys)? } else { self.write(&mut client, &keys)? };
            done.push((zero.elapsed().as_micros() as u64, total));
            // What was missed while nobody answered is not made up for.
            next = Instant::now().max(next + pause);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(done)
    }

    fn write(&mut self, client: &mut Client<'_>, keys: &[usize]) -> anyhow::Result<u64> {
        let mut batch = Vec::new();
        let mut versions = Vec::new();
        for &key in keys {
            self.sent[key] += 1;
            versions.push(self.sent[key]);
            server::set(key as u64, self.sent[key], &mut batch);
        }
        let mut answered = 0;
        client.exchange(&batch, keys.len(), PATIENCE, |reply| {
            if reply == b"+OK\r\n" {
                self.acknowledged[keys[answered]] = versions[answered];
            }
            answered += 1;
        })?;
        Ok(answered as u64)
    }

    /// Reads every key at `address` and compares.
    pub fn compare(&self, address: SocketAddr) -> anyhow::Result<()> {
        let mut client = Client::connect([address, address])?;
        let keys: Vec<_> = (0..self.sent.len()).collect();
        for keys in keys.chunks(64) {
            let mut batch = Vec::new();
            keys.iter().for_each(|&key| server::get(key as u64, &mut batch));
            let mut replies = Vec::new();
            client.exchange(&batch, keys.len(), PATIENCE, |reply| replies.push(reply.to_vec()))?;
            ensure!(replies.len() == keys.len(), "the copy went away while it was compared");
            for (&key, reply) in keys.iter().zip(&replies) {
                self.compare_one(key, resp::content(reply))?;
            }
        }
        Ok(())
    }

    fn compare_one(&self, key: usize, value: &[u8]) -> anyhow::Result<()> {
        let found = server::version(key as u64, value)
            .with_context(|| format!("key {key} holds something that was never written"))?;
        let (acknowledged, sent) = (self.acknowledged[key], self.sent[key]);
        let right = (acknowledged..=sent).contains(&found);
        ensure!(right, "key {key} holds version {found}, not {acknowledged} to {sent}");
        Ok(())
    }
}

fn read(client: &mut Client<'_>, keys: &[usize]) -> anyhow::Result<u64> {
    let mut batch = Vec::new();
    keys.iter().for_each(|&key| server::get(key as u64, &mut batch));
    let mut answered = 0;
    client.exchange(&batch, keys.len(), PATIENCE, |_| answered += 1)?;
    Ok(answered)
}

/// xorshift: fast, and the same in each run.
fn pick(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below as u64) as usize
}

/// Operations a second between two moments.
pub fn rate(done: &Done, from_us: u64, to_us: u64) -> Option<f64> {
    let by = |moment| done.iter().take_while(|(at, _)| *at <= moment).last();
    let (first, last) = (by(from_us).or(done.first())?, by(to_us)?);
    (last.0 > first.0).then(|| (last.1 - first.1) as f64 * 1e6 / (last.0 - first.0) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_span() {
        let done = vec![(0, 0), (1_000_000, 500), (2_000_000, 700)];
        assert_eq!(rate(&done, 0, 1_000_000), Some(500.0));
        assert_eq!(rate(&done, 1_000_000, 2_500_000), Some(200.0));
        assert_eq!(rate(&done, 5, 6), None);
    }
}
