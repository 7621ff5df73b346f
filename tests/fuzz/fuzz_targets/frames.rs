//! The frame decoder: no panic, no allocation beyond the limit, no piece size that makes a difference, and what is
//! taken for a complete stream is written back bit for bit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pc_frame::{Decoder, Event, FrameWriter, Limits};

const LIMITS: Limits = Limits { payload: 1 << 16 };

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut sealed = data.to_vec();
    pc_fuzz::seal(&mut sealed);
    check(&sealed);
});

fn check(bytes: &[u8]) {
    let (events, end) = pc_fuzz::events(bytes, LIMITS);
    let piece = 1 + bytes.len() % 7;
    let mut decoder = Decoder::new(LIMITS);
    let mut again = Vec::new();
    let mut failed = None;
    'all: for mut chunk in bytes.chunks(piece) {
        while !chunk.is_empty() {
            match decoder.feed(&mut chunk) {
                Ok(event) => again.extend(event),
                Err(err) => {
                    failed = Some(err);
                    break 'all;
                }
            }
        }
    }
    let other = failed.map_or_else(|| decoder.finish(), Err);
    assert_eq!(events, again);
    assert_eq!(end.as_ref().err().map(ToString::to_string), other.err().map(|err| err.to_string()));
    if end.is_ok() {
        assert_eq!(written(&events), bytes);
    }
}

fn written(events: &[Event]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new(), LIMITS);
    for event in events {
        match event {
            Event::Preamble(preamble) => writer.preamble(preamble).expect("a preamble"),
            Event::Frame(frame) => {
                let header = frame.header;
                let pieces = [frame.payload.as_slice()];
                writer.frame(header.kind, header.version, header.flags, &pieces).expect("a frame");
            }
        }
    }
    writer.flush().expect("a Vec takes everything");
    writer.into_inner()
}
