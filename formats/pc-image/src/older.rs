//! Record bodies of older versions that are still read.

use bincode::{Decode, Encode};

/// Counts before there were patches.
#[derive(Debug, Encode, Decode)]
pub(crate) struct Counts1 {
    pages: u64,
    zero_pages: u64,
    zapped_pages: u64,
}

/// RoundEnd, version 1.
#[derive(Debug, Encode, Decode)]
pub(crate) struct RoundEnd1 {
    number: u32,
    counts: Counts1,
}

/// Commit, version 1.
#[derive(Debug, Encode, Decode)]
pub(crate) struct Commit1 {
    rounds: u32,
    totals: Counts1,
    encoding_digest: [u8; 32],
}

impl From<Counts1> for crate::Counts {
    fn from(old: Counts1) -> Self {
        let Counts1 { pages, zero_pages, zapped_pages } = old;
        Self { pages, zero_pages, zapped_pages, patched_pages: 0 }
    }
}

impl From<RoundEnd1> for crate::RoundEnd {
    fn from(old: RoundEnd1) -> Self {
        Self { number: old.number, counts: old.counts.into() }
    }
}

impl From<Commit1> for crate::Commit {
    fn from(old: Commit1) -> Self {
        let Commit1 { rounds, totals, encoding_digest } = old;
        Self { rounds, totals: totals.into(), encoding_digest }
    }
}
