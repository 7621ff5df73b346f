//! Frames of the envelope.
//!
//! A frame is a header of 32 bytes and its payload. All numbers are little-endian:
//!
//! | at | field |
//! | --- | --- |
//! | 0 | kind, u8 |
//! | 1 | flags, u8: 1 = the payload is zstd |
//! | 2 | zero, u16 |
//! | 4 | bytes of payload, u32 |
//! | 8 | number, u64 |
//! | 16 | second number, u64; of Data, the bytes that the payload expands to |
//! | 24 | CRC-32C of the payload, u32; 0 where the connection is encrypted, which proves more |
//! | 28 | CRC-32C of bytes 0 to 27, u32 |
//!
//! | kind | number | second number | payload |
//! | --- | --- | --- | --- |
//! | 1 Join | streams | index of this connection | see [`Join`] |
//! | 2 Welcome | seconds for which a broken connection is waited for | | |
//! | 3 Refuse | | | why |
//! | 4 Data | of this chunk | bytes | the bytes |
//! | 5 Fin | chunks there were | | |
//! | 6 Ack | chunks consumed (and one more: the end) | chunks received without a gap | |
//! | 7 Stop | | | |
//! | 8 Bye | status | see [`Heard`] | |
//! | 9 Abort | | | why |
//!
//! Ack doubles as the sign of life that every connection gives once a second.

use crate::LinkError;

pub(crate) const HEADER_LEN: usize = 32;
/// Most bytes of a payload, and of what it expands to.
pub(crate) const CHUNK: usize = 256 << 10;
/// Most bytes that one direction has under way: read here, and not yet written there.
pub(crate) const WINDOW: usize = 32 << 20;

/// What of the window a chunk takes: small ones cost memory too.
pub(crate) fn cost(len: usize) -> usize {
    len.max(1024)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Join = 1,
    Welcome = 2,
    Refuse = 3,
    Data = 4,
    Fin = 5,
    Ack = 6,
    Stop = 7,
    Bye = 8,
    Abort = 9,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        use Kind::*;
        [Join, Welcome, Refuse, Data, Fin, Ack, Stop, Bye, Abort]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// What a Bye says of the other side's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub(crate) enum Heard {
    /// It has not come yet.
    No = 0,
    /// It has come.
    Yes = 1,
    /// It has come, and nothing more is needed: this side goes.
    Over = 2,
}

impl Heard {
    pub(crate) fn of(number: u64) -> Heard {
        match number {
            0 => Heard::No,
            1 => Heard::Yes,
            _ => Heard::Over,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub packed: bool,
    pub len: u32,
    pub number: u64,
    pub second: u64,
    pub payload_crc: u32,
}

impl Header {
    pub(crate) fn new(kind: Kind, number: u64, second: u64) -> Self {
        Header { kind, packed: false, len: 0, number, second, payload_crc: 0 }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind as u8;
        bytes[1] = self.packed.into();
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.second.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The checksum comes first, then the limits.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, LinkError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if crc32c::crc32c(&bytes[..28]) != u32_at(28) {
            return Err(LinkError::Protocol("a frame header's checksum is wrong"));
        }
        let kind = Kind::of(bytes[0]).ok_or(LinkError::Protocol("a frame of unknown kind"))?;
        if bytes[1] > 1 || bytes[2..4] != [0, 0] {
            return Err(LinkError::Protocol("a frame with unknown flags"));
        }
        let header = Header {
            kind,
            packed: bytes[1] == 1,
            len: u32_at(4),
            number: u64_at(8),
            second: u64_at(16),
            payload_crc: u32_at(24),
        };
        let expands = if kind == Kind::Data { header.second } else { 0 };
        if header.len as usize > CHUNK || expands > CHUNK as u64 {
            return Err(LinkError::Protocol("a frame above the limit"));
        }
        if kind == Kind::Data && !header.packed && u64::from(header.len) != header.second {
            return Err(LinkError::Protocol("a frame whose lengths disagree"));
        }
        Ok(header)
    }
}

/// What a connection is to be part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Join {
    /// Names the transfer.
    pub session: [u8; 16],
    /// Whether the transfer begins with this connection.
    pub first: bool,
    /// For how many seconds a broken connection shall be waited for.
    pub patience: u32,
}

impl Join {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.session.to_vec();
        bytes.push(self.first.into());
        bytes.extend(self.patience.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LinkError> {
        let bad = LinkError::Protocol("a malformed Join");
        let (Some((session, rest)), 21) = (bytes.split_first_chunk(), bytes.len()) else { return Err(bad) };
        let Some((patience, _)) = rest[1..].split_first_chunk() else { return Err(bad) };
        Ok(Join { session: *session, first: rest[0] != 0, patience: u32::from_le_bytes(*patience) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_no_flipped_bit_passes() {
        let header = Header { len: 7, packed: true, payload_crc: 9, ..Header::new(Kind::Data, 1 << 40, 99) };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_limited_before_anything_is_allocated() {
        let long = Header { len: CHUNK as u32 + 1, ..Header::new(Kind::Data, 0, CHUNK as u64 + 1) };
        assert!(Header::decode(&long.encode()).is_err());
        let bomb = Header { len: 10, packed: true, ..Header::new(Kind::Data, 0, 1 << 60) };
        assert!(Header::decode(&bomb.encode()).is_err());
        let lie = Header { len: 10, ..Header::new(Kind::Data, 0, 11) };
        assert!(Header::decode(&lie.encode()).is_err());
    }

    #[test]
    fn joins_come_back() {
        let join = Join { session: [3; 16], first: true, patience: 70_000 };
        assert_eq!(Join::decode(&join.encode()).unwrap(), join);
        assert!(Join::decode(&join.encode()[..20]).is_err());
    }
}
