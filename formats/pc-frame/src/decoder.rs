//! The decoder without input of its own.

use crate::error::{FormatError, FrameError};
use crate::{END, FORMAT_VERSION, HEADER_LEN, Header, PREAMBLE_LEN, Preamble};

/// Limits on what is taken from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a payload.
    pub payload: u64,
}

impl Default for Limits {
    /// 16 MiB a payload: what the writer keeps to.
    fn default() -> Self {
        Self { payload: 16 << 20 }
    }
}

/// A frame whose checksums, number and length were found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Where it began in the stream, in bytes.
    pub offset: u64,
}

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A segment begins.
    Preamble(Preamble),
    /// A frame; one of type [`END`] closes the segment.
    Frame(Frame),
}

/// Buffers from this length on are kept for use again; below, the allocator is as fast.
const LARGE: usize = 64 << 10;
/// Most buffers that are kept.
const SPARES: usize = 8;

#[derive(Debug)]
enum State {
    /// At the start, or after an End: a preamble, or the end of input.
    Boundary,
    Header,
    Payload(Header),
    /// An error was found; nothing more is taken.
    Failed,
}

/// Turns bytes into frames. Ask for [`Decoder::space`], fill some or all of it, say how much with [`Decoder::advance`].
/// The space asked for is that of exactly one preamble, header or payload, so a reader can read straight into it.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    /// A preamble or header as it comes in.
    head: [u8; PREAMBLE_LEN],
    /// A payload as it comes in, of its full length from the start.
    payload: Vec<u8>,
    /// How much of either is there.
    filled: usize,
    /// CRC of what is there of a payload: taken while the bytes are still in the cache.
    crc: u32,
    /// Bytes taken so far.
    offset: u64,
    /// Where the current preamble or frame began.
    start: u64,
    next_number: u64,
    segments: u64,
    spare: Vec<Vec<u8>>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Boundary,
            head: [0; PREAMBLE_LEN],
            payload: Vec::new(),
            filled: 0,
            crc: 0,
            offset: 0,
            start: 0,
            next_number: 0,
            segments: 0,
            spare: Vec::new(),
        }
    }

    /// Where the next bytes belong. Never empty, but after an error.
    pub fn space(&mut self) -> &mut [u8] {
        let whole = match self.state {
            State::Boundary => &mut self.head[..],
            State::Header => &mut self.head[..HEADER_LEN],
            State::Payload(_) => &mut self.payload[..],
            State::Failed => &mut [],
        };
        &mut whole[self.filled..]
    }

    /// Takes note that `n` more bytes of [`Decoder::space`] hold input, and gives what that completed.
    pub fn advance(&mut self, n: usize) -> Result<Option<Event>, FrameError> {
        let space = self.space().len();
        if n > space {
            return Err(FrameError::Caller("more bytes than there was space for"));
        }
        if let State::Payload(_) = self.state {
            self.crc = crc32c::crc32c_append(self.crc, &self.payload[self.filled..self.filled + n]);
        }
        self.filled += n;
        self.offset += n as u64;
        if n < space {
            return Ok(None);
        }
        let result = self.complete();
        if result.is_err() {
            self.state = State::Failed;
            self.payload = Vec::new();
            self.filled = 0;
        }
        result
    }

    /// Feeds a slice, of which it takes what it can use before the next event; the slice is cut accordingly.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Event>, FrameError> {
        if matches!(self.state, State::Failed) {
            return Err(FrameError::Caller("the stream was found bad before"));
        }
        while !input.is_empty() {
            let space = self.space();
            let n = space.len().min(input.len());
            space[..n].copy_from_slice(&input[..n]);
            *input = &input[n..];
            if let Some(event) = self.advance(n)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// To be called at the end of input: fails if that is anywhere but after an End frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.state {
            State::Boundary if self.filled == 0 && self.segments > 0 => Ok(()),
            State::Failed => Err(FrameError::Caller("the stream was found bad before")),
            _ => Err(self.truncated()),
        }
    }

    /// The error for input that ends here.
    pub(crate) fn truncated(&self) -> FrameError {
        FrameError::Truncated { offset: self.offset, frame: self.next_number }
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes a payload's buffer back, to be used again for one of much the same length.
    pub fn recycle(&mut self, payload: Vec<u8>) {
        if payload.len() >= LARGE && self.spare.len() < SPARES {
            self.spare.push(payload);
        }
    }

    /// A buffer of `len` bytes. What a used one holds is not cleared first: every byte of it is read over, or never shown.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let used = if len < LARGE { None } else { self.spare.pop() };
        match used {
            Some(mut buffer) if buffer.capacity() >= len => {
                buffer.resize(len, 0);
                buffer
            }
            // From the kernel, which has cleared it already.
            _ => vec![0; len],
        }
    }

    fn complete(&mut self) -> Result<Option<Event>, FrameError> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Boundary => self.complete_preamble().map(Some),
            State::Header => self.complete_header(),
            State::Payload(header) => self.complete_payload(header).map(Some),
            State::Failed => Err(FrameError::Caller("the stream was found bad before")),
        }
    }

    fn complete_preamble(&mut self) -> Result<Event, FrameError> {
        let preamble = Preamble::decode(&self.head).map_err(|what| self.format(what))?;
        if preamble.version != FORMAT_VERSION {
            return Err(FrameError::Unsupported(format!("stream format version {}", preamble.version)));
        }
        if preamble.incompatible != 0 {
            return Err(FrameError::Unsupported(format!("stream features {:#x}", preamble.incompatible)));
        }
        self.segments += 1;
        self.next_number = 0;
        self.expect(State::Header);
        Ok(Event::Preamble(preamble))
    }

    fn complete_header(&mut self) -> Result<Option<Event>, FrameError> {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|i| self.head[i]);
        let header = Header::decode(&bytes).map_err(|what| self.format(what))?;
        if header.number != self.next_number {
            let what = FormatError::Sequence { expected: self.next_number, found: header.number };
            return Err(self.format(what));
        }
        if header.len > self.limits.payload {
            return Err(FrameError::Limit {
                offset: self.start,
                frame: header.number,
                len: header.len,
                limit: self.limits.payload,
            });
        }
        if header.kind == END && header.len != 0 {
            return Err(self.format(FormatError::End));
        }
        if header.len == 0 {
            return self.complete_payload(header).map(Some);
        }
        self.payload = self.buffer(header.len as usize);
        self.filled = 0;
        self.state = State::Payload(header);
        Ok(None)
    }

    fn complete_payload(&mut self, header: Header) -> Result<Event, FrameError> {
        if std::mem::take(&mut self.crc) != header.payload_crc {
            return Err(self.format(FormatError::PayloadChecksum));
        }
        let frame = Frame { header, payload: std::mem::take(&mut self.payload), offset: self.start };
        self.next_number += 1;
        self.expect(if header.kind == END { State::Boundary } else { State::Header });
        Ok(Event::Frame(frame))
    }

    fn expect(&mut self, state: State) {
        self.state = state;
        self.start = self.offset;
        self.filled = 0;
    }

    fn format(&self, what: FormatError) -> FrameError {
        FrameError::Format { offset: self.start, frame: self.next_number, what }
    }
}
