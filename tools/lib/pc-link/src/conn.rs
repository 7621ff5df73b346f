//! One connection: frames, in the clear or sealed.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use snow::StatelessTransportState;
use socket2::Socket;

use crate::wire::{CHUNK, HEADER_LEN, Header};
use crate::{LinkError, addr};

const TAG: usize = 16;
/// Most bytes of a Noise message, and of what it carries.
const SEALED_MAX: usize = 65_535;
const SEAL_MAX: usize = SEALED_MAX - TAG;

/// Both halves of a connection that is ready for frames.
pub(crate) struct Conn {
    pub socket: Arc<Socket>,
    pub reader: Reader,
    pub writer: Writer,
}

/// A socket whose handshake is through.
pub(crate) fn ready(
    socket: Socket,
    noise: Option<StatelessTransportState>,
    limit: Duration,
) -> Result<Conn, LinkError> {
    let failed = |error: io::Error| LinkError::Lost(error.to_string());
    addr::prepare(&socket, limit).map_err(failed)?;
    let socket = Arc::new(socket);
    let noise = noise.map(Arc::new);
    let opener = noise.clone().map(|noise| Opener {
        noise,
        nonce: 0,
        buf: vec![0; CHUNK],
        at: 0,
        end: 0,
        plain: Vec::new(),
    });
    Ok(Conn {
        reader: Reader { socket: socket.clone(), opener },
        writer: Writer {
            sealer: noise.map(|noise| Sealer { noise, nonce: 0, out: Vec::new(), len: 0 }),
            socket: socket.clone(),
            bytes: 0,
        },
        socket,
    })
}

pub(crate) fn internal(error: snow::Error) -> LinkError {
    LinkError::Handshake(format!("encryption failed: {error}"))
}

/// Reads frames.
pub(crate) struct Reader {
    socket: Arc<Socket>,
    opener: Option<Opener>,
}

/// What opens sealed messages.
struct Opener {
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    /// Bytes from the socket: those from `at` to `end` are still to be used.
    buf: Vec<u8>,
    at: usize,
    end: usize,
    /// What of an opened message nobody asked for yet.
    plain: Vec<u8>,
}

impl Reader {
    /// The next header; `None` if the peer ended the connection before it.
    pub(crate) fn header(&mut self) -> Result<Option<Header>, LinkError> {
        let mut bytes = [0; HEADER_LEN];
        if !self.fill(&mut bytes, true)? {
            return Ok(None);
        }
        Header::decode(&bytes).map(Some)
    }

    /// The payload of the header just read, into a buffer of its length.
    pub(crate) fn payload(&mut self, header: &Header, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.fill(bytes, false)?;
        if self.opener.is_none() && crc32c::crc32c(bytes) != header.payload_crc {
            return Err(LinkError::Protocol("a payload's checksum is wrong"));
        }
        Ok(())
    }

    /// A frame that must come now, as a whole.
    pub(crate) fn frame(&mut self) -> Result<(Header, Vec<u8>), LinkError> {
        let header = self.header()?.ok_or_else(|| LinkError::Lost("it was closed".into()))?;
        let mut bytes = vec![0; header.len as usize];
        self.payload(&header, &mut bytes)?;
        Ok((header, bytes))
    }

    /// Whether it was filled; an end before its first byte may be allowed.
    fn fill(&mut self, bytes: &mut [u8], may_end: bool) -> Result<bool, LinkError> {
        let filled = match &mut self.opener {
            Some(opener) => opener.fill(&self.socket, bytes)?,
            None => fill(&self.socket, bytes)?,
        };
        if filled == bytes.len() {
            return Ok(true);
        }
        if may_end && filled == 0 {
            Ok(false)
        } else {
            Err(LinkError::Lost("it was closed in the middle".into()))
        }
    }
}

/// Reads until the slice is full or the peer ends; gives how much there was.
fn fill(socket: &Socket, bytes: &mut [u8]) -> Result<usize, LinkError> {
    let mut done = 0;
    while done < bytes.len() {
        match read(socket, &mut bytes[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

fn read(mut socket: &Socket, bytes: &mut [u8]) -> Result<usize, LinkError> {
    loop {
        match socket.read(bytes) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
}

fn lost(error: &io::Error) -> LinkError {
    LinkError::Lost(match error.kind() {
        io::ErrorKind::WouldBlock => "nothing was heard or taken for too long".into(),
        _ => error.to_string(),
    })
}

impl Opener {
    fn fill(&mut self, socket: &Socket, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let mut done = 0;
        while done < bytes.len() {
            if !self.plain.is_empty() {
                let n = self.plain.len().min(bytes.len() - done);
                bytes[done..done + n].copy_from_slice(&self.plain[..n]);
                self.plain.drain(..n);
                done += n;
                continue;
            }
            let Some(len) = self.sealed_message(socket)? else { break };
            done += self.open(len, &mut bytes[done..])?;
        }
        Ok(done)
    }

    /// Opens the message of `len` bytes at hand, as far as possible in its place.
    fn open(&mut self, len: usize, out: &mut [u8]) -> Result<usize, LinkError> {
        let damaged = |_| LinkError::Protocol("a sealed message does not open (damaged, or not by the peer)");
        let sealed = &self.buf[self.at..self.at + len];
        let opened = if len - TAG <= out.len() {
            self.noise.read_message(self.nonce, sealed, out).map_err(damaged)?
        } else {
            let mut plain = vec![0; len];
            let opened = self.noise.read_message(self.nonce, sealed, &mut plain).map_err(damaged)?;
            let n = opened.min(out.len());
            out[..n].copy_from_slice(&plain[..n]);
            self.plain = plain[n..opened].to_vec();
            n
        };
        self.nonce += 1;
        self.at += len;
        Ok(opened)
    }

    /// Waits for a whole message; its bytes begin at `at`.
    fn sealed_message(&mut self, socket: &Socket) -> Result<Option<usize>, LinkError> {
        if !self.have(socket, 2)? {
            return Ok(None);
        }
        let len = usize::from(u16::from_be_bytes([self.buf[self.at], self.buf[self.at + 1]]));
        if len <= TAG {
            return Err(LinkError::Protocol("a sealed message without content"));
        }
        if !self.have(socket, 2 + len)? {
            return Err(LinkError::Lost("it was closed in the middle".into()));
        }
        self.at += 2;
        Ok(Some(len))
    }

    /// Reads until `n` bytes are at hand; false if the connection ends right before them.
    fn have(&mut self, socket: &Socket, n: usize) -> Result<bool, LinkError> {
        while self.end - self.at < n {
            self.buf.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
            match read(socket, &mut self.buf[self.end..])? {
                0 if self.end == 0 => return Ok(false),
                0 => return Err(LinkError::Lost("it was closed in the middle".into())),
                got => self.end += got,
            }
        }
        Ok(true)
    }
}

/// Writes frames.
pub(crate) struct Writer {
    socket: Arc<Socket>,
    sealer: Option<Sealer>,
    /// Bytes written.
    pub bytes: u64,
}

struct Sealer {
    noise: Arc<StatelessTransportState>,
    nonce: u64,
    /// Sealed messages, to be written at once: `len` bytes.
    out: Vec<u8>,
    len: usize,
}

impl Writer {
    /// Writes a frame; length and checksum are put into its header here.
    pub(crate) fn frame(&mut self, mut header: Header, payload: &[u8]) -> Result<(), LinkError> {
        header.len = payload.len() as u32;
        match &mut self.sealer {
            None => {
                header.payload_crc = crc32c::crc32c(payload);
                self.bytes += write(&self.socket, &header.encode(), payload)?;
            }
            Some(sealer) => {
                sealer.len = 0;
                sealer.seal(&header.encode())?;
                sealer.seal(payload)?;
                self.bytes += write(&self.socket, &sealer.out[..sealer.len], &[])?;
            }
        }
        Ok(())
    }
}

impl Sealer {
    fn seal(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        for piece in bytes.chunks(SEAL_MAX) {
            let (at, len) = (self.len + 2, piece.len() + TAG);
            // It only ever grows: what is in it is overwritten.
            self.out.resize(self.out.len().max(at + len), 0);
            self.out[self.len..at].copy_from_slice(&(len as u16).to_be_bytes());
            let out = &mut self.out[at..at + len];
            self.noise.write_message(self.nonce, piece, out).map_err(internal)?;
            self.nonce += 1;
            self.len = at + len;
        }
        Ok(())
    }
}

/// Writes both slices; gives how many bytes that were.
fn write(mut socket: &Socket, head: &[u8], payload: &[u8]) -> Result<u64, LinkError> {
    let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match socket.write_vectored(rest) {
            Ok(0) => return Err(LinkError::Lost("it takes no more bytes".into())),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(&error)),
        }
    }
    Ok((head.len() + payload.len()) as u64)
}
