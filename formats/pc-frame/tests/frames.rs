//! What a frame stream promises: nothing wrong goes unnoticed, and no piece size makes a difference.

use pc_frame::{
    Decoder, END, Event, Flags, FormatError, FrameError, FrameReader, FrameWriter, HEADER_LEN, Header,
    Limits, PREAMBLE_LEN, Preamble,
};

fn sample() -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), Limits::default());
    writer.preamble(&Preamble::x86_64([7; 16])).unwrap();
    writer.frame(1, 0, Flags::default(), &[b"hello", b"", b" world"]).unwrap();
    writer.frame(2, 3, Flags::SKIPPABLE, &[]).unwrap();
    writer.frame(3, 0, Flags::default(), &[&[9; 5000], &[8; 300]]).unwrap();
    writer.end().unwrap();
    writer.into_inner()
}

fn decode_in_pieces(bytes: &[u8], piece: usize) -> Result<Vec<Event>, FrameError> {
    let mut decoder = Decoder::new(Limits::default());
    let mut events = Vec::new();
    for mut chunk in bytes.chunks(piece) {
        while !chunk.is_empty() {
            events.extend(decoder.feed(&mut chunk)?);
        }
    }
    decoder.finish().map(|()| events)
}

#[test]
fn one_byte_at_a_time_equals_all_at_once() {
    let bytes = sample();
    let whole = decode_in_pieces(&bytes, bytes.len()).unwrap();
    assert_eq!(whole.len(), 5);
    for piece in [1, 2, 3, 31, 32, 33, 64, 1000] {
        assert_eq!(decode_in_pieces(&bytes, piece).unwrap(), whole, "in pieces of {piece}");
    }
    let mut reader = FrameReader::new(bytes.as_slice(), Limits::default());
    let read: Vec<Event> = std::iter::from_fn(|| reader.read().unwrap()).collect();
    assert_eq!(read, whole);
}

#[test]
fn every_single_bit_flip_is_detected() {
    let bytes = sample();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_in_pieces(&bad, bad.len()).is_err(), "bit {bit} flipped unnoticed");
    }
}

#[test]
fn every_truncation_is_told_from_a_complete_stream() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let err = decode_in_pieces(&bytes[..len], 4096).unwrap_err();
        assert!(matches!(err, FrameError::Truncated { .. }), "cut at {len}: {err}");
    }
}

#[test]
fn segments_concatenate_and_a_preamble_elsewhere_is_refused() {
    let bytes = sample();
    let twice = [bytes.as_slice(), bytes.as_slice()].concat();
    assert_eq!(decode_in_pieces(&twice, 100).unwrap().len(), 10);
    let open = &bytes[..bytes.len() - HEADER_LEN];
    let nested = [open, bytes.as_slice()].concat();
    let err = decode_in_pieces(&nested, 100).unwrap_err();
    assert!(matches!(err, FrameError::Format { what: FormatError::HeaderChecksum, .. }), "{err}");
}

#[test]
fn an_absurd_length_is_refused_before_anything_is_allocated() {
    let mut bytes = Preamble::x86_64([0; 16]).encode().to_vec();
    let header =
        Header { kind: 1, version: 0, flags: Flags::default(), len: 1 << 60, number: 0, payload_crc: 0 };
    bytes.extend(header.encode());
    let err = decode_in_pieces(&bytes, 7).unwrap_err();
    assert!(matches!(err, FrameError::Limit { offset: 64, frame: 0, .. }), "{err}");
}

#[test]
fn a_missing_or_repeated_frame_is_refused() {
    let bytes = sample();
    let first = PREAMBLE_LEN..PREAMBLE_LEN + HEADER_LEN + 11;
    let mut missing = bytes.clone();
    missing.drain(first.clone());
    let err = decode_in_pieces(&missing, 4096).unwrap_err();
    assert!(
        matches!(err, FrameError::Format { what: FormatError::Sequence { expected: 0, found: 1 }, .. }),
        "{err}"
    );
    let mut repeated = bytes[..first.end].to_vec();
    repeated.extend_from_slice(&bytes[first.start..]);
    assert!(decode_in_pieces(&repeated, 4096).is_err());
}

#[test]
fn what_is_not_a_stream_is_named_so() {
    let err = decode_in_pieces(&[b'x'; 200], 200).unwrap_err();
    assert_eq!(err.to_string(), "at byte 0, frame 0: not a pc-tools stream");
}

#[test]
fn random_bytes_never_panic_and_after_an_error_nothing_is_taken() {
    let mut state = 1u64;
    for _ in 0..2000 {
        let mut bytes = sample();
        for _ in 0..20 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
        }
        let mut decoder = Decoder::new(Limits { payload: 1 << 16 });
        let mut rest = bytes.as_slice();
        while let Ok(Some(_)) = decoder.feed(&mut rest) {}
        if decoder.finish().is_err() && !rest.is_empty() {
            assert!(decoder.feed(&mut rest).is_err());
        }
    }
}

/// Gives bytes, then says that more should have come: what a decompressor does whose input is cut.
struct Dry<'a>(&'a [u8]);

impl std::io::Read for Dry<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        }
    }
}

#[test]
fn input_cut_below_us_is_truncated_even_behind_an_end() {
    let bytes = sample();
    let mut reader = FrameReader::new(Dry(&bytes), Limits::default());
    for _ in 0..5 {
        assert!(matches!(reader.read(), Ok(Some(_))));
    }
    let err = reader.read().unwrap_err();
    assert!(matches!(err, FrameError::Truncated { offset, .. } if offset == bytes.len() as u64), "{err}");
}

#[test]
fn a_buffer_used_again_shows_nothing_of_what_it_held() {
    let mut writer = FrameWriter::new(Vec::new(), Limits::default());
    writer.preamble(&Preamble::x86_64([7; 16])).unwrap();
    let lens = [100_000, 70_000, 90_000, 100_000, 200_000, 10];
    for (i, len) in lens.iter().enumerate() {
        writer.frame(1, 0, Flags::default(), &[&vec![i as u8 + 1; *len]]).unwrap();
    }
    writer.end().unwrap();
    let bytes = writer.into_inner();
    let mut reader = FrameReader::new(bytes.as_slice(), Limits::default());
    reader.read().unwrap();
    for (i, len) in lens.iter().enumerate() {
        let Some(Event::Frame(frame)) = reader.read().unwrap() else { panic!("frame {i} is due") };
        assert_eq!(frame.payload, vec![i as u8 + 1; *len]);
        reader.recycle(frame.payload);
    }
}

#[test]
fn a_payload_above_the_limit_is_the_writers_own_error() {
    let mut writer = FrameWriter::new(Vec::new(), Limits { payload: 10 });
    let err = writer.frame(1, 0, Flags::default(), &[&[0; 11]]).unwrap_err();
    assert!(matches!(err, FrameError::Caller(_)), "{err}");
    assert_ne!(END, 1);
}
