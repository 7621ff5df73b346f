//! How a connection begins.
//!
//! The connecting side sends a greeting of 8 bytes: a magic, the version of the link, the cipher (0 none). With a cipher follow the
//! two messages of a Noise handshake (`NNpsk0`, the greeting as prologue), each after its length as a big-endian u16;
//! everything after that travels in Noise messages, each after its length. The first message of the handshake can be replayed, what
//! follows cannot: nothing is done for a connection before its first sealed frame was opened.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use snow::{Builder, StatelessTransportState};
use socket2::Socket;

use crate::LinkError;
use crate::conn::{Conn, internal, ready};
use crate::key::Key;
use crate::wire::{Header, Kind};

const GREETING_LEN: usize = 8;
const MAGIC: [u8; 5] = *b"\x89PCL\n";
const VERSION: u8 = 0;

/// How the bytes of a connection are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    None = 0,
    AesGcm = 1,
    ChaChaPoly = 2,
}

impl Cipher {
    /// The one that is fastest here.
    fn preferred() -> Cipher {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq") {
            return Cipher::AesGcm;
        }
        Cipher::ChaChaPoly
    }

    fn noise(self) -> &'static str {
        match self {
            Cipher::AesGcm => "Noise_NNpsk0_25519_AESGCM_SHA256",
            _ => "Noise_NNpsk0_25519_ChaChaPoly_SHA256",
        }
    }
}

/// Greets as the side that connected.
pub(crate) fn greet(socket: Socket, key: Option<&Key>, limit: Duration) -> Result<Conn, LinkError> {
    let cipher = if key.is_some() { Cipher::preferred() } else { Cipher::None };
    let mut greeting = [0; GREETING_LEN];
    greeting[..5].copy_from_slice(&MAGIC);
    (greeting[5], greeting[6]) = (VERSION, cipher as u8);
    let mut timed = Timed { socket: &socket, until: Instant::now() + limit };
    let lost = |error: io::Error| {
        LinkError::Handshake(match error.kind() {
            io::ErrorKind::WouldBlock => "no answer to the handshake (is it pc-recv?)".into(),
            _ => format!("the other side ended the handshake ({error}); is its key another one, or none?"),
        })
    };
    timed.write(&greeting).map_err(lost)?;
    let Some(key) = key else { return ready(socket, None, limit) };
    let mut noise = builder(key, cipher, &greeting).build_initiator().map_err(internal)?;
    let mut message = [0; 128];
    let len = noise.write_message(&[], &mut message).map_err(internal)?;
    timed.write_message(&message[..len]).map_err(lost)?;
    let len = timed.read_message(&mut message).map_err(lost)?;
    noise
        .read_message(&message[..len], &mut [0; 128])
        .map_err(|_| LinkError::Handshake("the other side does not hold the key".into()))?;
    let noise = noise.into_stateless_transport_mode().map_err(internal)?;
    ready(socket, Some(noise), limit)
}

/// Answers as the side that listens. Until the first sealed frame was read, a replay cannot be told from a peer.
pub(crate) fn welcome(socket: Socket, key: Option<&Key>, limit: Duration) -> Result<Conn, LinkError> {
    let mut timed = Timed { socket: &socket, until: Instant::now() + limit };
    let mut greeting = [0; GREETING_LEN];
    timed.read_greeting(&mut greeting)?;
    let cipher = match greeting[6] {
        0 => Cipher::None,
        1 => Cipher::AesGcm,
        2 => Cipher::ChaChaPoly,
        _ => return Err(LinkError::Handshake("a cipher that this version does not know".into())),
    };
    if greeting[5] != VERSION {
        return Err(LinkError::Handshake(format!("a link of version {}", greeting[5])));
    }
    match (key, cipher) {
        (None, Cipher::None) => ready(socket, None, limit),
        (None, _) => Err(LinkError::Handshake("it uses a key, and there is none here".into())),
        (Some(_), Cipher::None) => {
            // The peer speaks our language, so it gets an answer; it learns nothing by it.
            let mut conn = ready(socket, None, limit)?;
            let header = Header::new(Kind::Refuse, 0, 0);
            let _ = conn.writer.frame(header, b"a key is needed (--key-file)");
            Err(LinkError::Handshake("it came without a key".into()))
        }
        (Some(key), cipher) => {
            let noise = answer(&mut timed, key, cipher, &greeting)?;
            ready(socket, Some(noise), limit)
        }
    }
}

fn answer(
    timed: &mut Timed<'_>,
    key: &Key,
    cipher: Cipher,
    greeting: &[u8],
) -> Result<StatelessTransportState, LinkError> {
    let lost = |error: io::Error| LinkError::Handshake(broken_off(&error));
    let mut noise = builder(key, cipher, greeting).build_responder().map_err(internal)?;
    let mut message = [0; 128];
    let len = timed.read_message(&mut message).map_err(lost)?;
    noise
        .read_message(&message[..len], &mut [0; 128])
        .map_err(|_| LinkError::Handshake("it does not hold the key".into()))?;
    let len = noise.write_message(&[], &mut message).map_err(internal)?;
    timed.write_message(&message[..len]).map_err(lost)?;
    noise.into_stateless_transport_mode().map_err(internal)
}

fn broken_off(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => "it was silent or slow for too long".into(),
        io::ErrorKind::UnexpectedEof => "it closed the connection in the handshake".into(),
        _ => error.to_string(),
    }
}

fn builder<'a>(key: &'a Key, cipher: Cipher, greeting: &'a [u8]) -> Builder<'a> {
    // The names are literals, and each has one key and one prologue: none of these can fail.
    let pattern = cipher.noise().parse().unwrap_or_else(|_| unreachable!("a literal"));
    let keyed = Builder::new(pattern).psk(0, &key.0).and_then(|builder| builder.prologue(greeting));
    keyed.unwrap_or_else(|_| unreachable!("given once"))
}

/// Reads and writes up to one point in time, however slowly the peer drips.
struct Timed<'a> {
    socket: &'a Socket,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(left) }
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut socket = self.socket;
        while !bytes.is_empty() {
            self.socket.set_read_timeout(Some(self.left()?))?;
            match socket.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => bytes = &mut bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        let mut socket = self.socket;
        socket.write_all(bytes)
    }

    fn write_message(&mut self, message: &[u8]) -> io::Result<()> {
        let len = (message.len() as u16).to_be_bytes();
        self.write(&[len.as_slice(), message].concat())
    }

    fn read_message(&mut self, message: &mut [u8]) -> io::Result<usize> {
        let mut len = [0; 2];
        self.read(&mut len)?;
        let len = usize::from(u16::from_be_bytes(len));
        let bytes = message.get_mut(..len).ok_or(io::Error::other("a handshake message that is too long"))?;
        self.read(bytes)?;
        Ok(len)
    }

    /// The first byte that is wrong ends it, so that an unlucky program hears soon; what came is named for the log.
    fn read_greeting(&mut self, greeting: &mut [u8; GREETING_LEN]) -> Result<(), LinkError> {
        for at in 0..GREETING_LEN {
            self.read(&mut greeting[at..=at]).map_err(|error| {
                LinkError::Handshake(match (error.kind(), at) {
                    (io::ErrorKind::UnexpectedEof, 0) => {
                        "it connected and said nothing (a port scan?)".into()
                    }
                    (io::ErrorKind::WouldBlock, _) => {
                        format!("it was silent or slow for too long, after {at} bytes")
                    }
                    _ => broken_off(&error),
                })
            })?;
            if at < MAGIC.len() && greeting[at] != MAGIC[at] {
                let mut more = [0; 16];
                more[0] = greeting[at];
                let known: [&[u8]; 6] = [b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN"];
                let _ = self.read(&mut more[1..4]);
                let what = match known.iter().any(|word| more.starts_with(word)) && at == 0 {
                    true => "an HTTP request",
                    false if at == 0 && more.starts_with(b"\x16\x03") => "a TLS greeting",
                    false if at == 0 && more.starts_with(b"SSH-") => "an SSH greeting",
                    false => "it does not speak the language of pc-send",
                };
                return Err(LinkError::Handshake(what.into()));
            }
        }
        Ok(())
    }
}
