//! Frames to a `Write`.

use std::io::{ErrorKind, IoSlice, Write};

use crate::{END, Flags, FrameError, HEADER_LEN, Header, Limits, Preamble};

/// Payloads up to this length are gathered before they are written.
const SMALL: usize = 4096;
/// How much is gathered.
const GATHER: usize = 64 * 1024;

/// Writes frames. Small ones are gathered; large ones go out by `writev` from where they lie, without a copy.
#[derive(Debug)]
pub struct FrameWriter<W> {
    output: W,
    limits: Limits,
    gathered: Vec<u8>,
    next_number: u64,
    written: u64,
}

impl<W: Write> FrameWriter<W> {
    /// A writer; begin with [`FrameWriter::preamble`].
    pub fn new(output: W, limits: Limits) -> Self {
        Self { output, limits, gathered: Vec::with_capacity(GATHER), next_number: 0, written: 0 }
    }

    /// Begins a segment.
    pub fn preamble(&mut self, preamble: &Preamble) -> Result<(), FrameError> {
        self.next_number = 0;
        self.gathered.extend_from_slice(&preamble.encode());
        Ok(())
    }

    /// Writes a frame whose payload is `pieces`, one after the other. Gives the header's bytes.
    pub fn frame(
        &mut self,
        kind: u16,
        version: u16,
        flags: Flags,
        pieces: &[&[u8]],
    ) -> Result<[u8; HEADER_LEN], FrameError> {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        if len as u64 > self.limits.payload {
            return Err(FrameError::Caller("a payload above the limit"));
        }
        let payload_crc = pieces.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        let header = Header { kind, version, flags, len: len as u64, number: self.next_number, payload_crc };
        let bytes = header.encode();
        self.next_number += 1;
        self.gathered.extend_from_slice(&bytes);
        if len <= SMALL {
            pieces.iter().for_each(|piece| self.gathered.extend_from_slice(piece));
            if self.gathered.len() >= GATHER - SMALL {
                self.flush_gathered()?;
            }
        } else {
            self.write_all(pieces)?;
        }
        Ok(bytes)
    }

    /// Ends the segment and hands everything to the operating system.
    pub fn end(&mut self) -> Result<(), FrameError> {
        self.frame(END, 0, Flags::default(), &[])?;
        self.flush()
    }

    /// Hands everything written so far to the operating system.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        self.flush_gathered()?;
        self.output.flush()?;
        Ok(())
    }

    /// Bytes handed over and gathered so far.
    pub fn offset(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    /// The output. Written to directly, the stream is broken.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.output
    }

    /// The output. What was not flushed is lost.
    pub fn into_inner(self) -> W {
        self.output
    }

    fn flush_gathered(&mut self) -> Result<(), FrameError> {
        self.write_all(&[])
    }

    /// Writes what was gathered, then the pieces.
    fn write_all(&mut self, pieces: &[&[u8]]) -> Result<(), FrameError> {
        let gathered = std::mem::take(&mut self.gathered);
        let total = gathered.len() + pieces.iter().map(|p| p.len()).sum::<usize>();
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(gathered.as_slice()).chain(pieces.iter().copied()).map(IoSlice::new).collect();
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0); // drops empty ones
        while !rest.is_empty() {
            match self.output.write_vectored(rest) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::WriteZero).into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => return Err(err.into()),
            }
        }
        self.written += total as u64;
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }
}
