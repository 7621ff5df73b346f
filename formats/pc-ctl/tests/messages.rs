//! Messages as bytes: pinned, cut, damaged, unknown.

use pc_ctl::{Clocks, CtlError, Decoder, Encoder, MAX_TEXT, Message, PROTOCOL, decode};
use pc_frame::{Flags, FrameError, HEADER_LEN, Header, PREAMBLE_LEN, crc32c};

const ID: [u8; 16] = [7; 16];

fn all() -> Vec<Message> {
    let clocks = Clocks { realtime: 0x0102_0304_0506_0708, monotonic: -2, boottime: 3 };
    vec![
        Message::Hello { lowest: PROTOCOL, highest: 9, clocks, producer: "pc-restore 1".into() },
        Message::Accepted { stream_id: ID },
        Message::Refused { reason: "no memory: 4 GiB are missing".into() },
        Message::RoundApplied { round: 3, bytes: 1 << 40 },
        Message::Alive,
        Message::Ready,
        Message::Failed { reason: String::new() },
        Message::Running { pid: 4242 },
        Message::Cancelled { reason: "SIGTERM – now".into() },
        Message::Lost { reason: "cut".into() },
    ]
}

fn channel(messages: &[Message]) -> Vec<u8> {
    let mut encoder = Encoder::new(ID);
    let mut bytes: Vec<u8> = messages.iter().flat_map(|message| encoder.message(message)).collect();
    bytes.extend(encoder.end());
    bytes
}

/// A channel with one frame of any kind in it.
fn frame(kind: u16, version: u16, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u64;
    let header = Header { kind, version, flags, len, number: 0, payload_crc: crc32c(payload) };
    let mut bytes = channel(&[])[..PREAMBLE_LEN].to_vec();
    bytes.extend(header.encode());
    bytes.extend(payload);
    bytes
}

#[test]
fn payloads_are_pinned_byte_for_byte() {
    let payload = |message: &Message| channel(std::slice::from_ref(message))[PREAMBLE_LEN..].to_vec();
    let expected: [(u16, &[u8]); 10] = [
        (
            0x0101,
            b"\x01\x00\x09\x00\x08\x07\x06\x05\x04\x03\x02\x01\xfe\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00\x00\x00\x00\x00pc-restore 1",
        ),
        (0x0102, &[7; 16]),
        (0x0103, b"no memory: 4 GiB are missing"),
        (0x0104, b"\x03\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00"),
        (0x0105, b""),
        (0x0106, b""),
        (0x0107, b""),
        (0x0108, b"\x92\x10\x00\x00"),
        (0x0109, "SIGTERM – now".as_bytes()),
        (0x010a, b"cut"),
    ];
    for (message, (kind, body)) in all().iter().zip(expected) {
        let bytes = payload(message);
        assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), kind, "{}", message.name());
        assert_eq!(&bytes[HEADER_LEN..HEADER_LEN + body.len()], body, "{}", message.name());
        assert_eq!(bytes.len(), 2 * HEADER_LEN + body.len(), "{}", message.name());
    }
}

#[test]
fn one_byte_at_a_time_equals_all_at_once() {
    let bytes = channel(&all());
    assert_eq!(decode(&bytes).unwrap(), all());
    let mut decoder = Decoder::default();
    let single = bytes.iter().filter_map(|byte| decoder.feed(&mut [*byte].as_slice()).unwrap());
    assert_eq!(single.collect::<Vec<_>>(), all());
    decoder.finish().unwrap();
}

#[test]
fn every_cut_is_an_early_end_and_every_flipped_bit_an_error() {
    let good = channel(&all());
    for len in 0..good.len() {
        let error = decode(&good[..len]).unwrap_err();
        assert!(matches!(error, CtlError::Frame(FrameError::Truncated { .. })), "{len}: {error}");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn unknown_messages_are_passed_over_only_where_they_say_so() {
    assert!(matches!(
        decode(&frame(0x01ff, 0, Flags::default(), b"x")),
        Err(CtlError::Unknown { kind: 0x01ff, version: 0 })
    ));
    // A later version of a known message is as unknown.
    assert!(matches!(decode(&frame(0x0106, 1, Flags::default(), b"")), Err(CtlError::Unknown { .. })));
    let passed = decode(&frame(0x01ff, 0, Flags::SKIPPABLE, b"x"));
    assert!(matches!(passed, Err(CtlError::Frame(FrameError::Truncated { .. }))), "only its end is missing");
}

#[test]
fn malformed_payloads_are_named_and_huge_ones_never_allocated() {
    for (kind, payload) in [(0x0101, &b"abc"[..]), (0x0102, b"short"), (0x0106, b"x"), (0x0107, b"\xff")] {
        let error = decode(&frame(kind, 0, Flags::default(), payload)).unwrap_err();
        assert!(matches!(error, CtlError::Malformed(_)), "{kind:#x}: {error}");
    }
    let header =
        Header { kind: 0x0107, version: 0, flags: Flags::default(), len: 1 << 60, number: 0, payload_crc: 0 };
    let bytes = [&channel(&[])[..PREAMBLE_LEN], &header.encode()].concat();
    assert!(matches!(decode(&bytes), Err(CtlError::Frame(FrameError::Limit { .. }))));
    let long = frame(0x0107, 0, Flags::default(), &vec![b'x'; MAX_TEXT + 1]);
    assert!(matches!(decode(&long), Err(CtlError::Malformed("Failed"))));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let reason = "x".to_owned() + &"é".repeat(MAX_TEXT);
    let back = decode(&channel(&[Message::Failed { reason: reason.clone() }])).unwrap();
    let [Message::Failed { reason: cut }] = &back[..] else { panic!("{back:?}") };
    assert!(cut.len() == MAX_TEXT - 1 && reason.starts_with(cut.as_str()));
}

#[test]
fn a_second_segment_and_an_image_stream_are_refused() {
    let twice = [channel(&all()), channel(&all())].concat();
    assert!(matches!(decode(&twice), Err(CtlError::Segment)));
    // The first record of an image (Machine, 0x0001).
    assert!(matches!(
        decode(&frame(0x0001, 0, Flags::default(), b"")),
        Err(CtlError::Unknown { kind: 1, .. })
    ));
}
