//! The preamble of a segment.

use crate::crc32c;
use crate::error::FormatError;

/// First bytes of a stream: a byte above 127, a name, and line endings that any conversion of text would break.
pub const MAGIC: [u8; 8] = *b"\x89PCS\r\n\x1a\n";
/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = 64;
/// The version of this layer.
pub const FORMAT_VERSION: u16 = 1;
/// The architecture number of x86-64: that of ELF (`EM_X86_64`).
pub const ARCH_X86_64: u16 = 62;

/// What stands at the start of every segment. All numbers are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Version of the frame layer.
    pub version: u16,
    /// ELF machine number of the source.
    pub arch: u16,
    /// Bytes of a page at the source.
    pub page_size: u32,
    /// Features that a reader may ignore.
    pub compatible: u64,
    /// Features that a reader must know.
    pub incompatible: u64,
    /// A random number that names the stream.
    pub stream_id: [u8; 16],
}

impl Preamble {
    /// A preamble of this version for x86-64 with pages of 4 KiB.
    pub fn x86_64(stream_id: [u8; 16]) -> Self {
        Self {
            version: FORMAT_VERSION,
            arch: ARCH_X86_64,
            page_size: 4096,
            compatible: 0,
            incompatible: 0,
            stream_id,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.arch.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.compatible.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.incompatible.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.stream_id);
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back. The version is not judged here.
    pub fn decode(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, FormatError> {
        if bytes[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        if crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err(FormatError::PreambleChecksum);
        }
        if bytes[48..60].iter().any(|b| *b != 0) {
            return Err(FormatError::Preamble);
        }
        let mut stream_id = [0; 16];
        stream_id.copy_from_slice(&bytes[32..48]);
        Ok(Self {
            version: u16::from_le_bytes([bytes[8], bytes[9]]),
            arch: u16::from_le_bytes([bytes[10], bytes[11]]),
            page_size: u32_at(bytes, 12),
            compatible: u64_at(bytes, 16),
            incompatible: u64_at(bytes, 24),
            stream_id,
        })
    }
}

/// The little-endian number at `at`; 0 where there are too few bytes (the callers' arrays are of fixed length).
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// As [`u32_at`], of eight bytes.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
