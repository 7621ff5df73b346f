//! Frames from a `Read`.

use std::io::{ErrorKind, Read};

use crate::{Decoder, Event, FrameError, Limits};

/// Reads frames; payloads are read straight into the buffer that is handed out.
#[derive(Debug)]
pub struct FrameReader<R> {
    input: R,
    decoder: Decoder,
}

impl<R: Read> FrameReader<R> {
    /// A reader at the start of a stream. `input` needs no buffering of its own, but small frames cost a read each
    /// without it.
    pub fn new(input: R, limits: Limits) -> Self {
        Self { input, decoder: Decoder::new(limits) }
    }

    /// The next preamble or frame; `None` at the end of input after an End frame.
    pub fn read(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            let space = self.decoder.space();
            if space.is_empty() {
                return Err(FrameError::Caller("the stream was found bad before"));
            }
            let n = match self.input.read(space) {
                Ok(0) => return self.decoder.finish().map(|()| None),
                Ok(n) => n,
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                // A decompressor below us ran dry. It knows that more was to come, even after an End.
                Err(err) if err.kind() == ErrorKind::UnexpectedEof => return Err(self.decoder.truncated()),
                Err(err) => return Err(err.into()),
            };
            if let Some(event) = self.decoder.advance(n)? {
                return Ok(Some(event));
            }
        }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.decoder.offset()
    }

    /// Takes a payload's buffer back, to be used again.
    pub fn recycle(&mut self, payload: Vec<u8>) {
        self.decoder.recycle(payload);
    }

    /// The input.
    pub fn into_inner(self) -> R {
        self.input
    }
}
