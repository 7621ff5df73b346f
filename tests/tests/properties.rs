//! What holds for every stream, tried on all golden ones and on bytes made up from them.

#![forbid(unsafe_code)]

use std::io::Read;
use std::thread;

use pc_image::{Blame, ImageError, Item, Reader, Record, Sink, Source, Writer, record_name};
use pc_tests::streams::{golden, read};

/// Gives one byte at a time.
struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = out.len().min(1);
        self.0.read(&mut out[..n])
    }
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn items(input: impl Read) -> (Vec<Item>, Option<ImageError>) {
    let mut reader = Reader::new(input);
    let mut items = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return (items, None),
            Err(err) => return (items, Some(err)),
        }
    }
}

#[test]
fn one_byte_at_a_time_equals_all_at_once() {
    for (name, bytes) in golden() {
        let (whole, err) = items(bytes.as_slice());
        assert!(err.is_none() && !whole.is_empty(), "{name}: {err:?}");
        let (piecemeal, err) = items(OneByOne(&bytes));
        assert!(err.is_none() && piecemeal == whole, "{name}: {err:?}");
    }
}

#[test]
fn every_single_bit_flip_of_every_golden_stream_is_detected() {
    thread::scope(|scope| {
        for (name, bytes) in golden() {
            scope.spawn(move || {
                let mut bad = bytes.clone();
                for bit in 0..bytes.len() * 8 {
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(read(&bad).is_err(), "{name}: bit {bit} flipped unnoticed");
                    bad[bit / 8] ^= 1 << (bit % 8);
                }
            });
        }
    });
}

#[test]
fn every_cut_of_every_golden_stream_is_blamed_on_truncation() {
    for (name, bytes) in golden() {
        // A stream of two segments cut between them is a stream of one.
        let border = (name == "segments").then(|| golden()[0].1.len());
        for len in (0..bytes.len()).filter(|len| Some(*len) != border) {
            let err = read(&bytes[..len]).expect_err(name);
            assert_eq!(err.blame(), Blame::Truncated, "{name} cut at {len}: {err}");
        }
    }
}

#[test]
fn what_was_read_is_written_again_bit_for_bit() {
    for (name, bytes) in golden().into_iter().filter(|(name, _)| !["segments", "skippable"].contains(name)) {
        let id = std::array::from_fn(|i| bytes[32 + i]);
        let mut writer = Writer::new(Vec::new(), id).expect("a Vec");
        for item in read(&bytes).expect(name) {
            match item {
                Item::Pages(pages) => writer.pages(pages.space, &pages.runs, &[pages.data()]),
                Item::Patches(it) => writer.patches(it.space, &it.patches, it.data()),
                Item::Record(record) => match *record {
                    Record::Commit(_) => writer.commit(),
                    record => writer.record(&record),
                },
            }
            .expect(name);
        }
        assert!(writer.finish().expect(name) == bytes, "{name} was written otherwise");
    }
}

#[test]
fn a_bent_record_that_is_taken_all_the_same_has_one_encoding_only() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let records: Vec<_> = golden().iter().flat_map(|(name, bytes)| read(bytes).expect(name)).collect();
    let mut taken = 0;
    for item in records.iter().cycle().take(60_000) {
        let Item::Record(record) = item else { continue };
        let mut body = record.encode().expect("it was read before");
        for _ in 0..=random.below(3) {
            let at = random.below(body.len());
            match random.below(3) {
                0 => body[at] = random.next() as u8,
                1 => body[at] ^= 1 << random.below(8),
                _ => body.truncate(at.max(1)),
            }
        }
        if let Some(Ok(other)) = Record::decode(record.number(), record.version(), &body) {
            assert_eq!(other.encode().as_ref(), Ok(&body), "{}", record.name());
            taken += 1;
        }
    }
    assert!(taken > 1000, "only {taken} bent bodies were taken: nothing was tried");
}

/// Makes header and payload checksums right again, as far as the frames can be followed.
fn seal(bytes: &mut [u8]) {
    let mut at = pc_frame::PREAMBLE_LEN;
    while let Some(header) = bytes.get(at..at + pc_frame::HEADER_LEN) {
        let len = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
        let payload = at + pc_frame::HEADER_LEN;
        let end = usize::try_from(len).ok().and_then(|len| payload.checked_add(len));
        if let Some(body) = end.and_then(|end| bytes.get(payload..end)) {
            let crc = pc_frame::crc32c(body);
            bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = pc_frame::crc32c(&bytes[at..at + 28]);
        bytes[at + 28..payload].copy_from_slice(&crc.to_le_bytes());
        let Some(end) = end else { return };
        at = end;
    }
}

#[test]
fn bytes_bent_behind_right_checksums_never_panic_and_are_named() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    let streams = golden();
    let mut kinds = std::collections::BTreeSet::new();
    for (name, bytes) in streams.iter().cycle().take(8000) {
        let mut bad = bytes.clone();
        for _ in 0..=random.below(4) {
            let at = pc_frame::PREAMBLE_LEN + random.below(bad.len() - pc_frame::PREAMBLE_LEN);
            bad[at] = random.next() as u8;
        }
        seal(&mut bad);
        let (_, err) = items(bad.as_slice());
        if let Some(err) = err {
            assert!(!err.to_string().is_empty() && err.blame() != Blame::Channel, "{name}: {err}");
            kinds.insert(format!("{:?}", err.blame()));
        }
    }
    assert!(kinds.len() >= 3, "only {kinds:?} were seen");
}

#[test]
fn random_bytes_are_never_a_stream() {
    let mut random = Random(42);
    for len in 0..3000 {
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let err = read(&bytes).expect_err("random bytes");
        assert!(matches!(err.blame(), Blame::Stream | Blame::Truncated), "{err}");
    }
}

#[test]
fn every_record_number_of_a_golden_stream_has_a_name() {
    for (name, bytes) in golden() {
        for item in read(&bytes).expect(name) {
            if let Item::Record(record) = item {
                assert_eq!(record_name(record.number()), Some(record.name()));
            }
        }
    }
}
