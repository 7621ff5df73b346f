//! Bytes to records.

use std::io::{BufReader, Read};

use pc_frame::{ARCH_X86_64, END, Event, Flags, Frame, FrameReader, Header, Limits, Preamble};
use sha2::{Digest, Sha256};

use crate::table::{PAGES, PATCHES, VERSION, record_name};
use crate::validator::Validator;
use crate::{ImageError, Item, PAGE_SIZE, Record, Source, pages, patches};

/// Where a frame stood: for messages and listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// Offset in bytes of its header.
    pub offset: u64,
    /// Its header.
    pub header: Header,
}

/// What a step of a [`Reader`] came upon. [`Reader::last_frame`] tells where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A segment begins.
    Preamble(Preamble),
    /// A record or page data.
    Item(Item),
    /// A frame of a type or version that nobody here knows, and that may be passed over.
    Skipped,
    /// The segment's End.
    End,
}

/// Reads records, and checks everything that can be checked without a kernel: checksums, numbers, the grammar, counts,
/// digests. Small frames are read through a buffer, page data straight into the buffer that is handed out.
#[derive(Debug)]
pub struct Reader<R: Read> {
    frames: FrameReader<BufReader<R>>,
    validator: Validator,
    digest: Sha256,
    last: Option<FrameInfo>,
    preamble: Option<Preamble>,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a stream.
    pub fn new(input: R) -> Self {
        Self::with_limits(input, Limits::default())
    }

    /// A reader with limits of its own.
    pub fn with_limits(input: R, limits: Limits) -> Self {
        Self {
            frames: FrameReader::new(BufReader::with_capacity(64 * 1024, input), limits),
            validator: Validator::default(),
            digest: Sha256::new(),
            last: None,
            preamble: None,
        }
    }

    /// The frame that the last item came from.
    pub fn last_frame(&self) -> Option<FrameInfo> {
        self.last
    }

    /// The preamble of the current segment.
    pub fn preamble(&self) -> Option<&Preamble> {
        self.preamble.as_ref()
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.frames.offset()
    }

    fn begin_segment(&mut self, preamble: Preamble) -> Result<(), ImageError> {
        if preamble.arch != ARCH_X86_64 {
            return Err(ImageError::Unsupported(format!(
                "the stream comes from another architecture (ELF machine {}), this is x86-64 ({ARCH_X86_64})",
                preamble.arch
            )));
        }
        if u64::from(preamble.page_size) != PAGE_SIZE {
            return Err(ImageError::Unsupported(format!(
                "the stream has pages of {} bytes, this machine {PAGE_SIZE}",
                preamble.page_size
            )));
        }
        self.preamble = Some(preamble);
        self.digest = Sha256::new();
        self.validator.begin_segment();
        Ok(())
    }

    /// The next thing of whatever kind; `None` at the true end of input. [`Source::next`] is the same, but gives items only.
    pub fn step(&mut self) -> Result<Option<Step>, ImageError> {
        match self.frames.read()? {
            None => Ok(None),
            Some(Event::Preamble(preamble)) => {
                self.begin_segment(preamble)?;
                Ok(Some(Step::Preamble(preamble)))
            }
            Some(Event::Frame(frame)) => self.frame(frame).map(Some),
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<Step, ImageError> {
        let info = FrameInfo { offset: frame.offset, header: frame.header };
        self.last = Some(info);
        let (kind, version) = (frame.header.kind, frame.header.version);
        let Some(name) = record_name(kind) else { return self.unknown(frame) };
        if frame.header.flags.contains(Flags::COMPRESSED) {
            return Err(ImageError::Unsupported(format!(
                "at byte {}: a compressed {name} record, which this version does not know",
                frame.offset
            )));
        }
        let malformed =
            |what| ImageError::Body { offset: info.offset, frame: info.header.number, record: name, what };
        let record = match (kind, version) {
            (END, 0) => {
                self.validator.end_segment().map_err(|what| grammar(info, what))?;
                return Ok(Step::End);
            }
            (PAGES, VERSION) => {
                self.note(&info.header);
                let pages = pages::decode(frame.payload).map_err(malformed)?;
                self.validator.pages(&pages).map_err(|what| grammar(info, what))?;
                return Ok(Step::Item(Item::Pages(pages)));
            }
            (PATCHES, VERSION) => {
                self.note(&info.header);
                let patches = patches::decode(frame.payload).map_err(malformed)?;
                self.validator.patches(&patches).map_err(|what| grammar(info, what))?;
                return Ok(Step::Item(Item::Patches(patches)));
            }
            _ => match Record::decode(kind, version, &frame.payload) {
                Some(record) => record.map_err(malformed)?,
                None => return self.unknown(frame),
            },
        };
        self.frames.recycle(frame.payload);
        if let Record::Commit(commit) = &record {
            let digest: [u8; 32] = self.digest.clone().finalize().into();
            if digest != commit.encoding_digest {
                return Err(grammar(info, "the digest in Commit is not that of the stream".to_owned()));
            }
        }
        self.note(&info.header);
        self.validator.record(&record).map_err(|what| grammar(info, what))?;
        Ok(Step::Item(Item::Record(Box::new(record))))
    }

    fn note(&mut self, header: &Header) {
        self.digest.update(header.encode());
    }

    /// A type or version that this reader does not know.
    fn unknown(&mut self, frame: Frame) -> Result<Step, ImageError> {
        let Header { kind, version, flags, .. } = frame.header;
        if !flags.contains(Flags::SKIPPABLE) {
            let name = record_name(kind).unwrap_or("unknown");
            return Err(ImageError::Unsupported(format!(
                "at byte {}: a record of type {kind:#06x} ({name}) version {version}, which this version does not know",
                frame.offset
            )));
        }
        self.note(&frame.header);
        self.frames.recycle(frame.payload);
        Ok(Step::Skipped)
    }
}

impl<R: Read> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<Item>, ImageError> {
        loop {
            match self.step()? {
                None => return Ok(None),
                Some(Step::Item(item)) => return Ok(Some(item)),
                Some(Step::Preamble(_) | Step::Skipped | Step::End) => {}
            }
        }
    }

    fn recycle(&mut self, payload: Vec<u8>) {
        self.frames.recycle(payload);
    }
}

fn grammar(info: FrameInfo, what: String) -> ImageError {
    ImageError::Grammar { offset: info.offset, frame: info.header.number, what }
}
