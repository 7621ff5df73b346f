//! The stream coming in.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::poll::PollFlags;
use zstd::stream::read::Decoder;

use crate::exit::{Exit, WithExit as _};
use crate::signals::{Cancel, Cancelled, Silence};

/// The largest zstd window that is accepted, as a power of two: 128 MiB, what `zstd -d` takes
/// without being asked for more. Memory stays bounded by it whatever the input claims.
pub const WINDOW_LOG_MAX: u32 = 27;

/// What is wrong with the zstd layer around a stream. Arrives inside an [`io::Error`], of kind
/// `UnexpectedEof` or `InvalidData`; [`crate::exit_of`] finds it there.
#[derive(Debug, thiserror::Error)]
pub enum CompressedInput {
    /// The input ended within a zstd frame.
    #[error("the compressed input ended early")]
    Truncated,
    /// The input is packed by a program whose format is not read here.
    #[error("this is {format}; unpack it first: {unpack} … | {tool}")]
    Foreign {
        /// What it is.
        format: &'static str,
        /// The command that unpacks it.
        unpack: &'static str,
        /// The tool that was to read it.
        tool: String,
    },
    /// The input is not valid zstd, or needs a window above [`WINDOW_LOG_MAX`].
    #[error("bad compressed input: {0}")]
    Damaged(String),
}

impl CompressedInput {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            CompressedInput::Truncated => Exit::Truncated,
            CompressedInput::Damaged(_) | CompressedInput::Foreign { .. } => Exit::BadStream,
        }
    }
}

impl From<CompressedInput> for io::Error {
    fn from(error: CompressedInput) -> Self {
        let kind = match error {
            CompressedInput::Truncated => io::ErrorKind::UnexpectedEof,
            CompressedInput::Damaged(_) | CompressedInput::Foreign { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// An opened input: as it comes, or decompressed where it is zstd.
pub struct Input(Kind);

enum Kind {
    /// A regular file, not compressed, at its place.
    Plain(File),
    /// A pipe, socket or device, with the bytes that were looked at for the magic.
    Piped(Peeked),
    Zstd(Box<Decoder<'static, BufReader<Peeked>>>),
}

/// Opens `path`, or standard input where it is `None` or `-`.
///
/// # Errors
/// A file that cannot be opened; a terminal, with [`Exit::Usage`].
pub fn input(tool: &str, path: Option<&Path>) -> anyhow::Result<Input> {
    open(tool, path, None, None)
}

/// [`input`], but a wait for bytes ends with [`crate::signals::Cancelled`] when a signal comes.
///
/// # Errors
/// As [`input`].
pub fn input_until(tool: &str, path: Option<&Path>, cancel: &Cancel) -> anyhow::Result<Input> {
    open(tool, path, Some(cancel.clone()), None)
}

/// [`input_until`] of standard input, but a wait for bytes is no longer than `most`: then it ends with
/// [`crate::signals::Silence`].
///
/// # Errors
/// As [`input`].
pub fn input_within(tool: &str, cancel: &Cancel, most: Duration) -> anyhow::Result<Input> {
    open(tool, None, Some(cancel.clone()), Some(most))
}

fn open(
    tool: &str,
    path: Option<&Path>,
    cancel: Option<Cancel>,
    most: Option<Duration>,
) -> anyhow::Result<Input> {
    let file = match path.filter(|path| *path != Path::new("-")) {
        Some(path) => File::open(path).with_context(|| format!("cannot open {}", path.display()))?,
        None => io::stdin().as_fd().try_clone_to_owned().context("standard input")?.into(),
    };
    if file.is_terminal() {
        let why = anyhow!("{tool} does not read a stream from a terminal; give it a file or a pipe");
        return Err(why).exit(Exit::Usage);
    }
    crate::output::enlarge(file.as_fd());
    Input::of(tool, file, cancel, most).context("cannot read the input")
}

impl Input {
    /// Takes over an opened file, pipe or socket. Waits for its first four bytes.
    pub fn new(file: File) -> io::Result<Self> {
        Self::of("the tool", file, None, None)
    }

    fn of(tool: &str, file: File, cancel: Option<Cancel>, most: Option<Duration>) -> io::Result<Self> {
        let mut head = [0; 4];
        if file.metadata()?.is_file() {
            let at = (&file).stream_position()?;
            let len = fill(&mut head, |rest, done| file.read_at(rest, at + done as u64))?;
            foreign(tool, &head[..len])?;
            if !is_zstd(&head[..len]) {
                return Ok(Input(Kind::Plain(file)));
            }
            return Self::decompress(Peeked { head, at: 0, len: 0, file, cancel: None, most });
        }
        let mut peeked = Peeked { head, at: 0, len: 0, file, cancel, most };
        let len = fill(&mut head, |rest, _| peeked.read(rest))?;
        (peeked.head, peeked.len) = (head, len);
        foreign(tool, &head[..len])?;
        if is_zstd(&head[..len]) { Self::decompress(peeked) } else { Ok(Input(Kind::Piped(peeked))) }
    }

    fn decompress(peeked: Peeked) -> io::Result<Self> {
        let buffer = zstd::zstd_safe::DCtx::in_size();
        let mut decoder = Decoder::with_buffer(BufReader::with_capacity(buffer, peeked))?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Input(Kind::Zstd(Box::new(decoder))))
    }

    /// The file itself, at the stream's first byte, where it is a plain regular one (to map it).
    pub fn file(&self) -> Option<&File> {
        match &self.0 {
            Kind::Plain(file) => Some(file),
            _ => None,
        }
    }

    /// Whether the input came compressed.
    pub fn is_compressed(&self) -> bool {
        matches!(self.0, Kind::Zstd(..))
    }

    /// The descriptor that the bytes come from, to poll it or to size its pipe. More may already
    /// be buffered here than it says.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Plain(file) => file.as_fd(),
            Kind::Piped(peeked) => peeked.file.as_fd(),
            Kind::Zstd(decoder) => decoder.get_ref().get_ref().file.as_fd(),
        }
    }
}

impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(file) => file.read(out),
            Kind::Piped(peeked) => peeked.read(out),
            Kind::Zstd(decoder) => decoder.read(out).map_err(blame),
        }
    }
}

/// Tells an error of the zstd layer from one of the file below it, which carries an errno.
fn blame(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CompressedInput::Truncated.into(),
        io::ErrorKind::Interrupted => error,
        _ if error.raw_os_error().is_some() => error,
        _ if error.get_ref().is_some_and(|inner| inner.is::<Cancelled>() || inner.is::<Silence>()) => error,
        _ => CompressedInput::Damaged(error.to_string()).into(),
    }
}

/// A zstd frame, or a skippable one such as `pzstd` puts first.
fn is_zstd(head: &[u8]) -> bool {
    let Ok(head) = head.try_into() else { return false };
    let magic = u32::from_le_bytes(head);
    magic == zstd::zstd_safe::MAGICNUMBER || magic & 0xffff_fff0 == 0x184d_2a50
}

/// Formats that people put around a stream and that are not read here: how they begin, and what unpacks them.
const FOREIGN: [(&[u8], &str, &str); 13] = [
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\x1f\x9d", "compress (.Z)", "gzip -dc"),
    (b"\xfd7zX", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4 -dc"),
    (b"LZIP", "lzip", "lzip -dc"),
    (b"\x89LZO", "lzop", "lzop -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
    (b"Salt", "encrypted by openssl", "openssl enc -d"),
    (b"age-", "encrypted by age", "age -d"),
    (b"----", "encrypted or encoded text", "age -d or gpg -d"),
    (b"\x85\x02", "encrypted by gpg", "gpg -d"),
];

fn foreign(tool: &str, head: &[u8]) -> io::Result<()> {
    match FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        Some((_, format, unpack)) => {
            Err(CompressedInput::Foreign { format, unpack, tool: tool.to_owned() }.into())
        }
        None => Ok(()),
    }
}

fn fill(head: &mut [u8], mut read: impl FnMut(&mut [u8], usize) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < head.len() {
        match read(&mut head[done..], done) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file whose first bytes have been read ahead.
struct Peeked {
    head: [u8; 4],
    at: usize,
    len: usize,
    file: File,
    cancel: Option<Cancel>,
    /// How long a wait may be.
    most: Option<Duration>,
}

impl Read for Peeked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.len {
            if let Some(cancel) = &self.cancel {
                cancel.wait_for(self.file.as_fd(), PollFlags::POLLIN, self.most)?;
            }
            return self.file.read(out);
        }
        let n = (&self.head[self.at..self.len]).read(out)?;
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
