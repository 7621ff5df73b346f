//! Records to bytes.

use std::io::Write;

use pc_frame::{Flags, FrameWriter, HEADER_LEN, Limits, Preamble};
use sha2::{Digest, Sha256};

use crate::record::patched_pages;
use crate::table::{PAGES, PATCHES, VERSION};
use crate::{
    Cancel, Commit, Counts, ImageError, PageRun, Patch, Record, Sink, SpaceId, pages, patches as patching,
};

/// Writes a segment: the preamble at once, then what it is given, and Commit and End by [`Writer::commit`].
/// It keeps the totals and the digest that Commit needs.
#[derive(Debug)]
pub struct Writer<W: Write> {
    frames: FrameWriter<W>,
    digest: Sha256,
    rounds: u32,
    round: Counts,
    totals: Counts,
}

impl<W: Write> Writer<W> {
    /// A writer of one segment. `stream_id` should be random.
    pub fn new(output: W, stream_id: [u8; 16]) -> Result<Self, ImageError> {
        let mut frames = FrameWriter::new(output, Limits::default());
        frames.preamble(&Preamble::x86_64(stream_id))?;
        Ok(Self {
            frames,
            digest: Sha256::new(),
            rounds: 0,
            round: Counts::default(),
            totals: Counts::default(),
        })
    }

    /// What this round has held so far: what its RoundEnd has to say.
    pub fn round_counts(&self) -> Counts {
        self.round
    }

    /// What all rounds have held so far.
    pub fn totals(&self) -> Counts {
        let add = u64::saturating_add;
        Counts {
            pages: add(self.totals.pages, self.round.pages),
            zero_pages: add(self.totals.zero_pages, self.round.zero_pages),
            zapped_pages: add(self.totals.zapped_pages, self.round.zapped_pages),
            patched_pages: add(self.totals.patched_pages, self.round.patched_pages),
        }
    }

    /// Bytes written and gathered so far.
    pub fn offset(&self) -> u64 {
        self.frames.offset()
    }

    /// The output. Written to directly, the stream is broken.
    pub fn get_mut(&mut self) -> &mut W {
        self.frames.get_mut()
    }

    /// Writes Commit and hands everything to the operating system. The copy may run as soon as the End follows.
    pub fn commit(&mut self) -> Result<(), ImageError> {
        let encoding_digest = self.digest.clone().finalize().into();
        let commit = Commit { rounds: self.rounds, totals: self.totals(), encoding_digest };
        self.record(&Record::Commit(commit))?;
        self.flush()
    }

    /// Writes the End.
    pub fn end(&mut self) -> Result<(), ImageError> {
        Ok(self.frames.end()?)
    }

    /// Writes the End and gives the output back.
    pub fn finish(mut self) -> Result<W, ImageError> {
        self.end()?;
        Ok(self.frames.into_inner())
    }

    /// Gives the stream up, wherever it is: writes Cancel with the reason, and the End.
    pub fn cancel(&mut self, reason: &str) -> Result<(), ImageError> {
        self.record(&Record::Cancel(Cancel { reason: reason.to_owned() }))?;
        self.end()
    }

    fn count(&mut self, record: &Record) {
        match record {
            Record::Zap(zap) => self.round.zapped_pages += range_pages(&zap.ranges),
            Record::ZeroPages(zero) => self.round.zero_pages += range_pages(&zero.ranges),
            Record::RoundEnd(_) => {
                self.rounds += 1;
                self.totals = self.totals();
                self.round = Counts::default();
            }
            _ => {}
        }
    }

    fn note(&mut self, header: [u8; HEADER_LEN]) {
        self.digest.update(header);
    }
}

impl<W: Write> Sink for Writer<W> {
    fn record(&mut self, record: &Record) -> Result<(), ImageError> {
        let body = record
            .encode()
            .map_err(|what| ImageError::Caller(format!("{} record: {what}", record.name())))?;
        let header = self.frames.frame(record.number(), record.version(), Flags::default(), &[&body])?;
        self.note(header);
        self.count(record);
        Ok(())
    }

    fn pages(&mut self, space: SpaceId, runs: &[PageRun], data: &[&[u8]]) -> Result<(), ImageError> {
        let len = data.iter().map(|d| d.len()).sum();
        pages::check_runs(runs, len).map_err(|what| ImageError::Caller(format!("Pages: {what}")))?;
        let head = pages::encode_head(space, runs);
        let pieces: Vec<&[u8]> = std::iter::once(head.as_slice()).chain(data.iter().copied()).collect();
        let header = self.frames.frame(PAGES, VERSION, Flags::default(), &pieces)?;
        self.note(header);
        self.round.pages += runs.iter().map(|run| run.pages).sum::<u64>();
        Ok(())
    }

    fn patches(&mut self, space: SpaceId, patches: &[Patch], data: &[u8]) -> Result<(), ImageError> {
        patching::check(patches, data.len())
            .map_err(|what| ImageError::Caller(format!("Patches: {what}")))?;
        let head = patching::encode_head(space, patches);
        let header = self.frames.frame(PATCHES, VERSION, Flags::default(), &[&head, data])?;
        self.note(header);
        self.round.patched_pages += range_pages(&patched_pages(patches));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        Ok(self.frames.flush()?)
    }
}

/// Pages in ranges of bytes.
pub(crate) fn range_pages(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(start, end)| end.saturating_sub(*start) / crate::PAGE_SIZE).sum()
}
