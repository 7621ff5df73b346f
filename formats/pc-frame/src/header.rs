//! Frame headers.

use crate::crc32c;
use crate::error::FormatError;
use crate::preamble::{u32_at, u64_at};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 32;
/// The type of the frame that ends a segment; it has no payload.
pub const END: u16 = 0xffff;

/// Flags of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// A reader that does not know the frame's type may pass it over. Without it, such a reader must refuse the stream.
    pub const SKIPPABLE: Self = Self(1);
    /// The payload is compressed (reserved; written by no version yet).
    pub const COMPRESSED: Self = Self(2);
    const DEFINED: u32 = 3;

    /// Whether all of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What stands before every payload. All numbers are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: u16,
    /// Version of the payload's layout.
    pub version: u16,
    /// Flags.
    pub flags: Flags,
    /// Bytes of payload.
    pub len: u64,
    /// Consecutive number in the segment, from 0.
    pub number: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

impl Header {
    /// Its bytes, closed by a CRC-32C of themselves.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back; its checksum comes first.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FormatError> {
        if crc32c(&bytes[..28]) != u32_at(bytes, 28) {
            return Err(FormatError::HeaderChecksum);
        }
        let flags = u32_at(bytes, 4);
        if flags & !Flags::DEFINED != 0 {
            return Err(FormatError::Flags(flags));
        }
        Ok(Self {
            kind: u16::from_le_bytes([bytes[0], bytes[1]]),
            version: u16::from_le_bytes([bytes[2], bytes[3]]),
            flags: Flags(flags),
            len: u64_at(bytes, 8),
            number: u64_at(bytes, 16),
            payload_crc: u32_at(bytes, 24),
        })
    }
}
