//! Bytes <-> frames: the outer layer of a pc-tools stream.
//!
//! A stream is one or more segments. A segment is a [`Preamble`], then frames, then an End frame ([`END`]). Every frame has
//! a [`Header`] of fixed size whose own checksum is verified before any of its fields is believed, and a payload whose
//! checksum stands in the header. pc-stream(5) has every byte.
//!
//! [`Decoder`] does no input of its own: it says how many bytes it wants next, is given them in pieces of any size, and
//! answers with an [`Event`]. [`FrameReader`] and [`FrameWriter`] are thin layers over `Read` and `Write`.
//!
//! This layer is frozen: what it writes can be read by every later version.
#![forbid(unsafe_code)]

mod decoder;
mod error;
mod header;
mod preamble;
mod reader;
mod writer;

pub use decoder::{Decoder, Event, Frame, Limits};
pub use error::{FormatError, FrameError};
pub use header::{END, Flags, HEADER_LEN, Header};
pub use preamble::{ARCH_X86_64, FORMAT_VERSION, MAGIC, PREAMBLE_LEN, Preamble};
pub use reader::FrameReader;
pub use writer::FrameWriter;

/// CRC-32C (Castagnoli, as in iSCSI): the checksum of preamble, headers and payloads.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
