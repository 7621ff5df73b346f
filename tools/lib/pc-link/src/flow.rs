//! The two directions of a transfer as data: what was read and not consumed, what arrived and was not written.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::LinkError;
use crate::wire::{CHUNK, WINDOW, cost};

/// Buffers that were used before: the last one given back is the warmest.
#[derive(Debug, Default)]
pub(crate) struct Pool(Vec<Vec<u8>>);

impl Pool {
    /// A buffer of [`CHUNK`] bytes.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; CHUNK])
    }

    pub(crate) fn give(&mut self, bytes: Vec<u8>) {
        if bytes.len() == CHUNK && self.0.len() < 16 {
            self.0.push(bytes);
        }
    }
}

/// Bytes at the beginning of a buffer.
#[derive(Debug)]
pub(crate) struct Buf {
    pub bytes: Vec<u8>,
    pub len: usize,
}

impl Buf {
    /// Little content does not hold a large buffer: it is copied, and the buffer can be used again.
    pub(crate) fn fit(bytes: Vec<u8>, len: usize) -> (Buf, Option<Vec<u8>>) {
        if len >= CHUNK / 2 {
            return (Buf { bytes, len }, None);
        }
        (Buf { bytes: bytes[..len].to_vec(), len }, Some(bytes))
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A numbered piece of the stream.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub number: u64,
    /// Bytes of the stream.
    pub raw_len: usize,
    pub packed: bool,
    pub buf: Buf,
}

/// What a connection was given to send.
#[derive(Debug)]
struct Sent {
    chunk: Option<Arc<Chunk>>,
    conn: usize,
    at: Instant,
}

/// From here to the other side.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Whether chunks are kept until they have arrived.
    keep: bool,
    /// Ready to go.
    queue: BTreeMap<u64, Arc<Chunk>>,
    /// Waiting for a packer; a connection that has nothing else takes them as they are.
    pub raw: VecDeque<Chunk>,
    sent: BTreeMap<u64, Sent>,
    /// Lengths of the chunks that were not consumed yet, the oldest first.
    lens: VecDeque<usize>,
    in_flight: usize,
    /// Number of the next chunk that will be read.
    pub next: u64,
    consumed: u64,
    have: u64,
    /// Everything was read.
    pub ended: bool,
    /// The other side wants no more.
    pub stopped: bool,
    /// Bytes of the stream.
    pub bytes: u64,
}

impl Outgoing {
    pub(crate) fn new(keep: bool) -> Self {
        Outgoing { keep, ..Default::default() }
    }

    /// Whether another chunk may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < WINDOW
    }

    /// Numbers what was read.
    pub(crate) fn number(&mut self, buf: Buf) -> Chunk {
        let chunk = Chunk { number: self.next, raw_len: buf.len, packed: false, buf };
        self.next += 1;
        self.lens.push_back(chunk.raw_len);
        self.in_flight += cost(chunk.raw_len);
        self.bytes += chunk.raw_len as u64;
        chunk
    }

    pub(crate) fn ready(&mut self, chunk: Chunk) {
        if !self.stopped {
            self.queue.insert(chunk.number, Arc::new(chunk));
        }
    }

    /// The next chunk for a connection.
    pub(crate) fn take(&mut self, conn: usize) -> Option<Arc<Chunk>> {
        let chunk = match self.queue.pop_first() {
            Some((_, chunk)) => chunk,
            None => Arc::new(self.raw.pop_front()?),
        };
        let kept = self.keep.then(|| chunk.clone());
        self.sent.insert(chunk.number, Sent { chunk: kept, conn, at: Instant::now() });
        Some(chunk)
    }

    /// What was given to a connection that is lost goes to others.
    pub(crate) fn take_back(&mut self, conn: usize) {
        self.requeue(|sent| sent.conn == conn);
    }

    /// What another connection has not brought over for so long goes over this one, once.
    pub(crate) fn overtake(&mut self, conn: usize, patience: Duration) -> bool {
        self.requeue(|sent| sent.conn != conn && sent.at.elapsed() > patience)
    }

    fn requeue(&mut self, which: impl Fn(&Sent) -> bool) -> bool {
        let have = self.have;
        let mut any = false;
        for (number, sent) in self.sent.range_mut(have..) {
            if which(sent)
                && let Some(chunk) = sent.chunk.take()
            {
                self.queue.insert(*number, chunk);
                any = true;
            }
        }
        any
    }

    /// The other side's tally: `consumed` counts the end too, `have` is without a gap.
    pub(crate) fn acknowledged(
        &mut self,
        consumed: u64,
        have: u64,
        pool: &mut Pool,
    ) -> Result<(), LinkError> {
        let last = self.next + u64::from(self.ended);
        if have > self.next || consumed > last || consumed > have + 1 {
            return Err(LinkError::Protocol("more was acknowledged than sent"));
        }
        while self.consumed < consumed.min(self.next) {
            self.in_flight -= cost(self.lens.pop_front().unwrap_or(0));
            self.consumed += 1;
        }
        self.consumed = self.consumed.max(consumed);
        self.have = self.have.max(have);
        let ahead = self.sent.split_off(&self.have);
        for (_, sent) in std::mem::replace(&mut self.sent, ahead) {
            recycle(sent.chunk, pool);
        }
        while let Some(entry) = self.queue.first_entry().filter(|entry| *entry.key() < self.have) {
            recycle(Some(entry.remove()), pool);
        }
        Ok(())
    }

    /// The other side has had everything, the end too, or wants no more.
    pub(crate) fn done(&self) -> bool {
        self.stopped || (self.ended && self.consumed > self.next)
    }

    /// The other side did not take all there was.
    pub(crate) fn cut_short(&self) -> bool {
        self.stopped && !(self.ended && self.consumed >= self.next)
    }

    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.queue.clear();
        self.raw.clear();
        self.sent.clear();
    }
}

/// Gives the buffer of a chunk back that nobody else holds.
pub(crate) fn recycle(chunk: Option<Arc<Chunk>>, pool: &mut Pool) {
    if let Some(chunk) = chunk.and_then(Arc::into_inner) {
        pool.give(chunk.buf.bytes);
    }
}

/// From the other side to here.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    arrived: BTreeMap<u64, Buf>,
    held: usize,
    /// Number of the next chunk to write.
    next: u64,
    /// Chunks that arrived without a gap.
    pub have: u64,
    /// Chunks written, and one more for the end.
    pub consumed: u64,
    /// How many chunks there are, once that is known.
    end: Option<u64>,
    /// The sink wants no more.
    pub stopped: bool,
    /// The sink was closed at the end.
    pub closed: bool,
    since_ack: usize,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// What comes next for the sink.
pub(crate) enum Next {
    Bytes(Buf),
    End,
    Nothing,
}

impl Incoming {
    /// Takes a chunk that arrived; gives back one that was there before, or that nobody wants.
    pub(crate) fn put(&mut self, number: u64, buf: Buf) -> Result<Option<Buf>, LinkError> {
        if self.end.is_some_and(|end| number >= end) {
            return Err(LinkError::Protocol("bytes behind the end"));
        }
        if self.stopped || number < self.have || self.arrived.contains_key(&number) {
            return Ok(Some(buf));
        }
        if self.held + cost(buf.len) > WINDOW + CHUNK {
            return Err(LinkError::Protocol("more was sent than the window allows"));
        }
        self.held += cost(buf.len);
        self.arrived.insert(number, buf);
        while self.arrived.contains_key(&self.have) {
            self.have += 1;
        }
        Ok(None)
    }

    pub(crate) fn end_at(&mut self, end: u64) -> Result<(), LinkError> {
        let beyond = self.arrived.last_key_value().is_some_and(|(last, _)| *last >= end);
        if beyond || self.next > end || self.end.is_some_and(|before| before != end) {
            return Err(LinkError::Protocol("an end that cannot be"));
        }
        self.end = Some(end);
        Ok(())
    }

    pub(crate) fn take(&mut self) -> Next {
        if let Some(buf) = self.arrived.remove(&self.next) {
            self.next += 1;
            return Next::Bytes(buf);
        }
        if self.end == Some(self.next) { Next::End } else { Next::Nothing }
    }

    /// A chunk was written; tells whether the other side should hear of it now.
    pub(crate) fn wrote(&mut self, len: usize) -> bool {
        self.held -= cost(len);
        self.consumed += 1;
        self.bytes += len as u64;
        self.since_ack += cost(len);
        let due = self.since_ack >= WINDOW / 8;
        if due {
            self.since_ack = 0;
        }
        due
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.consumed = self.next + 1;
    }

    /// All there was has been written.
    pub(crate) fn complete(&self) -> bool {
        self.end.is_some_and(|end| self.consumed >= end)
    }

    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.arrived.clear();
    }

    pub(crate) fn done(&self) -> bool {
        self.closed || self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buf(len: usize) -> Buf {
        Buf { bytes: vec![0; len], len }
    }

    #[test]
    fn chunks_come_out_in_order_whatever_order_they_arrive_in() {
        let mut incoming = Incoming::default();
        for number in [2, 0, 2, 1, 0] {
            incoming.put(number, buf(number as usize + 1)).unwrap();
        }
        incoming.end_at(3).unwrap();
        for expected in 1..=3 {
            let Next::Bytes(buf) = incoming.take() else { panic!("chunk {expected}") };
            assert_eq!(buf.len, expected);
            assert!(!incoming.wrote(buf.len));
        }
        assert!(matches!(incoming.take(), Next::End));
        incoming.close();
        assert!((incoming.consumed, incoming.have) == (4, 3) && incoming.done());
        assert!(incoming.put(3, buf(1)).is_err() && incoming.end_at(2).is_err());
    }

    #[test]
    fn a_peer_that_ignores_the_window_is_cut_off_before_memory_grows() {
        let mut incoming = Incoming::default();
        // Chunk 0 never comes; even tiny chunks are counted.
        let sent = (1..).take_while(|number| incoming.put(*number, buf(1)).is_ok()).count();
        assert!(sent <= (WINDOW + CHUNK) / 1024);
    }

    #[test]
    fn what_a_lost_connection_had_goes_to_another_until_it_has_arrived() {
        let mut pool = Pool::default();
        let mut outgoing = Outgoing::new(true);
        for _ in 0..4 {
            let chunk = outgoing.number(buf(10));
            outgoing.ready(chunk);
        }
        let take = |outgoing: &mut Outgoing, conn| outgoing.take(conn).map(|chunk| chunk.number);
        assert_eq!([0, 1, 0, 1].map(|conn| take(&mut outgoing, conn)), [Some(0), Some(1), Some(2), Some(3)]);
        outgoing.acknowledged(0, 1, &mut pool).unwrap();
        outgoing.take_back(0);
        assert_eq!((take(&mut outgoing, 1), take(&mut outgoing, 1)), (Some(2), None));
        // Chunk 1 and 3 are stuck in connection 1: 0 overtakes it, once.
        assert!(outgoing.overtake(0, Duration::ZERO));
        assert_eq!([1, 2, 3].map(|_| take(&mut outgoing, 0)), [Some(1), Some(2), Some(3)]);
        outgoing.ended = true;
        outgoing.acknowledged(4, 4, &mut pool).unwrap();
        assert!(!outgoing.done());
        outgoing.acknowledged(5, 4, &mut pool).unwrap();
        assert!(outgoing.done() && outgoing.in_flight == 0 && outgoing.sent.is_empty());
        assert!(outgoing.acknowledged(6, 4, &mut pool).is_err());
        assert!(outgoing.acknowledged(5, 5, &mut pool).is_err());
    }
}
