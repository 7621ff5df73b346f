//! Messages <-> frames.
//!
//! | type | message | payload (little-endian) |
//! | --- | --- | --- |
//! | 0x0101 | Hello | lowest u16, highest u16, realtime u64, monotonic i64, boottime i64, producer |
//! | 0x0102 | Accepted | stream id, 16 bytes |
//! | 0x0103 | Refused | reason |
//! | 0x0104 | RoundApplied | round u32, bytes u64 |
//! | 0x0105 | Alive | |
//! | 0x0106 | Ready | |
//! | 0x0107 | Failed | reason |
//! | 0x0108 | Running | pid u32 |
//! | 0x0109 | Cancelled | reason |
//! | 0x010a | Lost | reason |
//!
//! A text is the rest of the payload in UTF-8, [`MAX_TEXT`] bytes at most. The numbers are assigned once and never reused, and
//! none of them is the number of a record of the image, so the two streams cannot be taken for each other.

use pc_frame::{END, Event, Flags, Frame, FrameError, Header, Limits, Preamble, crc32c};

use crate::message::{Clocks, MAX_TEXT, Message};

/// The version of every message while the hand-over is not firm.
const VERSION: u16 = 0;
/// The longest payload: a Hello with the longest text.
const LIMITS: Limits = Limits { payload: 28 + MAX_TEXT as u64 };

/// What can be wrong with the control channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CtlError {
    /// The frame layer: a corrupt or cut stream, a limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message's payload cannot be read.
    #[error("a malformed {0} message")]
    Malformed(&'static str),
    /// A message that this version does not know and may not pass over.
    #[error("an unknown message, type {kind:#06x} version {version}")]
    Unknown {
        /// The frame's type.
        kind: u16,
        /// The frame's version.
        version: u16,
    },
    /// The channel begins anew after its end.
    #[error("a second segment in the control channel")]
    Segment,
}

/// Turns messages into bytes.
#[derive(Debug)]
pub struct Encoder {
    /// The preamble, until it has gone out with the first message.
    before: Vec<u8>,
    next_number: u64,
}

impl Encoder {
    /// An encoder at the start of the channel; `id` is any number that names it in a log.
    pub fn new(id: [u8; 16]) -> Self {
        Encoder { before: Preamble::x86_64(id).encode().to_vec(), next_number: 0 }
    }

    /// The bytes of a message (the first time with the preamble before them), to be written at once.
    pub fn message(&mut self, message: &Message) -> Vec<u8> {
        let (kind, payload) = encode(message);
        self.frame(kind, &payload)
    }

    /// The bytes that end the channel in order.
    pub fn end(&mut self) -> Vec<u8> {
        self.frame(END, &[])
    }

    fn frame(&mut self, kind: u16, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            kind,
            version: VERSION,
            flags: Flags::default(),
            len: payload.len() as u64,
            number: self.next_number,
            payload_crc: crc32c(payload),
        };
        self.next_number += 1;
        let mut bytes = std::mem::take(&mut self.before);
        bytes.extend(header.encode());
        bytes.extend(payload);
        bytes
    }
}

/// Turns bytes into messages. Feed it whatever a read has brought.
#[derive(Debug)]
pub struct Decoder {
    frames: pc_frame::Decoder,
    begun: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { frames: pc_frame::Decoder::new(LIMITS), begun: false }
    }
}

impl Decoder {
    /// Takes bytes up to the next message, by which the slice is cut; `None` when all were taken.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Message>, CtlError> {
        while let Some(event) = self.frames.feed(input)? {
            match event {
                Event::Preamble(_) if std::mem::replace(&mut self.begun, true) => {
                    return Err(CtlError::Segment);
                }
                Event::Preamble(_) => {}
                Event::Frame(frame) => {
                    if let Some(message) = message_of(&frame)? {
                        return Ok(Some(message));
                    }
                }
            }
        }
        Ok(None)
    }

    /// To be called at the end of input: fails unless the channel was ended in order.
    pub fn finish(&self) -> Result<(), CtlError> {
        Ok(self.frames.finish()?)
    }
}

/// All messages of a whole channel; the entry for fuzzing and for looking at a recording.
pub fn decode(mut bytes: &[u8]) -> Result<Vec<Message>, CtlError> {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    while let Some(message) = decoder.feed(&mut bytes)? {
        messages.push(message);
    }
    decoder.finish()?;
    Ok(messages)
}

/// `None` for the end, and for what may be passed over.
fn message_of(frame: &Frame) -> Result<Option<Message>, CtlError> {
    let header = frame.header;
    if header.kind == END {
        return Ok(None);
    }
    let known = message_name(header.kind).filter(|_| header.version == VERSION);
    let Some(name) = known else {
        if header.flags.contains(Flags::SKIPPABLE) {
            return Ok(None);
        }
        return Err(CtlError::Unknown { kind: header.kind, version: header.version });
    };
    let mut rest = Rest(&frame.payload);
    let message = body(header.kind, &mut rest).filter(|_| rest.0.is_empty());
    message.map(Some).ok_or(CtlError::Malformed(name))
}

/// The name of the message of this type.
pub fn message_name(kind: u16) -> Option<&'static str> {
    let names = [
        "Hello",
        "Accepted",
        "Refused",
        "RoundApplied",
        "Alive",
        "Ready",
        "Failed",
        "Running",
        "Cancelled",
        "Lost",
    ];
    names.get(usize::from(kind.checked_sub(0x0101)?)).copied()
}

fn body(kind: u16, rest: &mut Rest<'_>) -> Option<Message> {
    Some(match kind {
        0x0101 => Message::Hello {
            lowest: u16::from_le_bytes(rest.take()?),
            highest: u16::from_le_bytes(rest.take()?),
            clocks: Clocks {
                realtime: u64::from_le_bytes(rest.take()?),
                monotonic: i64::from_le_bytes(rest.take()?),
                boottime: i64::from_le_bytes(rest.take()?),
            },
            producer: rest.text()?,
        },
        0x0102 => Message::Accepted { stream_id: rest.take()? },
        0x0103 => Message::Refused { reason: rest.text()? },
        0x0104 => Message::RoundApplied {
            round: u32::from_le_bytes(rest.take()?),
            bytes: u64::from_le_bytes(rest.take()?),
        },
        0x0105 => Message::Alive,
        0x0106 => Message::Ready,
        0x0107 => Message::Failed { reason: rest.text()? },
        0x0108 => Message::Running { pid: u32::from_le_bytes(rest.take()?) },
        0x0109 => Message::Cancelled { reason: rest.text()? },
        0x010a => Message::Lost { reason: rest.text()? },
        _ => return None,
    })
}

fn encode(message: &Message) -> (u16, Vec<u8>) {
    match message {
        Message::Hello { lowest, highest, clocks, producer } => {
            let mut bytes = lowest.to_le_bytes().to_vec();
            bytes.extend(highest.to_le_bytes());
            bytes.extend(clocks.realtime.to_le_bytes());
            bytes.extend(clocks.monotonic.to_le_bytes());
            bytes.extend(clocks.boottime.to_le_bytes());
            bytes.extend(text(producer));
            (0x0101, bytes)
        }
        Message::Accepted { stream_id } => (0x0102, stream_id.to_vec()),
        Message::Refused { reason } => (0x0103, text(reason).to_vec()),
        Message::RoundApplied { round, bytes } => {
            (0x0104, [round.to_le_bytes().as_slice(), &bytes.to_le_bytes()].concat())
        }
        Message::Alive => (0x0105, Vec::new()),
        Message::Ready => (0x0106, Vec::new()),
        Message::Failed { reason } => (0x0107, text(reason).to_vec()),
        Message::Running { pid } => (0x0108, pid.to_le_bytes().to_vec()),
        Message::Cancelled { reason } => (0x0109, text(reason).to_vec()),
        Message::Lost { reason } => (0x010a, text(reason).to_vec()),
    }
}

/// A text, cut to what may be sent.
fn text(text: &str) -> &[u8] {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// What was not read yet of a payload.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn text(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.len() > MAX_TEXT {
            return None;
        }
        String::from_utf8(bytes.to_vec()).ok()
    }
}
