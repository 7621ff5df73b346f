//! Compression, by threads beside the way of the bytes.

use crate::wire::CHUNK;

/// Compresses chunks where that pays.
pub(crate) struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    /// Chunks to leave alone before the next attempt, and how many that will be after the next failure.
    skip: u32,
    next_skip: u32,
}

/// A sixteenth must be saved, or the work of unpacking is not worth it.
const GAIN: usize = 16;
const MAX_SKIP: u32 = 64;

impl Packer {
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        Ok(Packer { zstd: zstd::bulk::Compressor::new(level)?, skip: 0, next_skip: 1 })
    }

    /// The compressed bytes in `out`, and their number; `None` where they are better sent as they are. After a chunk that did not
    /// shrink, more and more are not even tried.
    pub(crate) fn pack(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        out.resize(CHUNK, 0);
        let room = bytes.len() - bytes.len() / GAIN;
        // Too little room is how the compressor says that it does not pay.
        match self.zstd.compress_to_buffer(bytes, &mut out[..room]) {
            Ok(len) if len > 0 => {
                self.next_skip = 1;
                Some(len)
            }
            _ => {
                self.skip = self.next_skip;
                self.next_skip = (self.next_skip * 2).min(MAX_SKIP);
                None
            }
        }
    }
}

/// Expands a chunk to exactly the length that was announced.
pub(crate) fn unpack(
    zstd: &mut zstd::bulk::Decompressor<'static>,
    packed: &[u8],
    out: &mut [u8],
) -> Result<(), crate::LinkError> {
    match zstd.decompress_to_buffer(packed, out) {
        Ok(len) if len == out.len() => Ok(()),
        _ => Err(crate::LinkError::Protocol("a compressed chunk does not expand as announced")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_left_alone_and_what_shrinks_comes_back() {
        let mut packer = Packer::new(1).unwrap();
        let mut out = Vec::new();
        let text: Vec<u8> = (0..100_000_u32).map(|i| (i / 100) as u8).collect();
        let len = packer.pack(&text, &mut out).expect("it shrinks");
        let mut back = vec![0; text.len()];
        let mut zstd = zstd::bulk::Decompressor::new().unwrap();
        unpack(&mut zstd, &out[..len], &mut back).unwrap();
        assert_eq!(back, text);
        assert!(unpack(&mut zstd, &out[..len], &mut back[..99_999]).is_err());
        assert!(unpack(&mut zstd, &out[..len - 1], &mut back).is_err());

        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(100_000)
        .collect();
        assert!(packer.pack(&noise, &mut out).is_none());
        assert!(packer.pack(&text, &mut out).is_none(), "the next one is not tried");
        assert!(packer.pack(&text, &mut out).is_some(), "the one after it is");
    }
}
