//! A peer that got in and breaks the rules: no panic, no memory without bound, an error that names it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pc_link::{Ends, Failure, LinkError, Listener, Outcome, Settings};

const JOIN: u8 = 1;
const DATA: u8 = 4;
const FIN: u8 = 5;
const ACK: u8 = 6;
const BYE: u8 = 8;

fn frame(kind: u8, packed: bool, number: u64, second: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, packed.into(), 0, 0];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(second.to_le_bytes());
    bytes.extend(crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn data(number: u64, payload: &[u8]) -> Vec<u8> {
    frame(DATA, false, number, payload.len() as u64, payload)
}

/// Greets and joins as a true sender does, then sends `bytes`; gives how the transfer ended.
fn after_join(bytes: impl FnOnce(&mut TcpStream) + Send + 'static) -> Result<Outcome, Failure> {
    let addr = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&addr, &Settings::default()).unwrap();
    let mut socket = TcpStream::connect(listener.local()).unwrap();
    let peer = thread::spawn(move || {
        socket.write_all(b"\x89PCL\n\0\0\0").unwrap();
        let join = [&[7; 16][..], &[1], &0_u32.to_le_bytes()].concat();
        socket.write_all(&frame(JOIN, false, 1, 0, &join)).unwrap();
        bytes(&mut socket);
        let _ = socket.shutdown(Shutdown::Write);
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let sink = || {
        let sink = std::fs::File::options().write(true).open("/dev/null").unwrap();
        Ok(Ends { source: None, sink: Some(sink.into()), status: Box::new(|| Ok(0)) })
    };
    let result = listener.take_one(Arc::new(sink));
    peer.join().unwrap();
    result
}

fn refused(bytes: Vec<u8>) -> String {
    match after_join(move |socket| drop(socket.write_all(&bytes))) {
        Err(Failure { error: LinkError::Protocol(what), .. }) => what.to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_true_transfer_by_hand_is_taken() {
    let bytes = [data(1, b"b"), data(0, b"a"), frame(FIN, false, 2, 0, b"")].concat();
    let outcome = after_join(move |socket| {
        // What it says between signs of life has no payload here.
        let wait_for = |socket: &mut TcpStream, kind| {
            let mut head = [0; 32];
            while head[0] != kind {
                socket.read_exact(&mut head).unwrap();
                assert_eq!(head[4..8], [0; 4]);
            }
        };
        socket.write_all(&bytes).unwrap();
        wait_for(socket, FIN);
        socket.write_all(&frame(ACK, false, 1, 0, b"")).unwrap();
        socket.write_all(&frame(BYE, false, 3, 0, b"")).unwrap();
        wait_for(socket, BYE);
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.peer_status, outcome.figures.received), (3, 2));
}

#[test]
fn broken_rules_are_named() {
    assert_eq!(refused(frame(ACK, false, 5, 0, b"")), "more was acknowledged than sent");
    assert_eq!(refused(frame(ACK, false, 0, 9, b"")), "more was acknowledged than sent");
    assert_eq!(refused(frame(JOIN, false, 1, 0, b"")), "a frame that belongs to the handshake");
    assert_eq!(refused(frame(FIN, false, 0, 0, b"x")), "a payload where none belongs");
    assert_eq!(refused(frame(77, false, 0, 0, b"")), "a frame of unknown kind");
    assert_eq!(refused(data(0, b"")), "an empty chunk");
    assert_eq!(refused([frame(FIN, false, 1, 0, b""), data(1, b"x")].concat()), "bytes behind the end");
    assert_eq!(refused([data(3, b"x"), frame(FIN, false, 2, 0, b"")].concat()), "an end that cannot be");
    assert_eq!(
        refused([frame(FIN, false, 1, 0, b""), frame(FIN, false, 2, 0, b"")].concat()),
        "an end that cannot be"
    );
    let expands = "a compressed chunk does not expand as announced";
    assert_eq!(refused(frame(DATA, true, 0, 100, b"no zstd at all")), expands);
    let bomb = zstd::bulk::compress(&vec![0; 1 << 24], 19).unwrap();
    assert_eq!(refused(frame(DATA, true, 0, 262_144, &bomb)), expands);
    assert_eq!(refused(frame(DATA, true, 0, 1 << 40, &bomb)), "a frame above the limit");
    let mut damaged = data(0, b"payload");
    damaged[35] ^= 1;
    assert_eq!(refused(damaged), "a payload's checksum is wrong");
}

#[test]
fn a_window_that_is_ignored_ends_the_transfer() {
    // Chunk 0 never comes, so nothing can be written: everything else has to be held.
    let result = after_join(|socket| {
        let chunk = vec![1; 262_144];
        let _ = (1..1000).try_for_each(|number| socket.write_all(&data(number, &chunk)));
    });
    let Err(Failure { error: LinkError::Protocol(what), .. }) = result else { panic!("{result:?}") };
    assert_eq!(what, "more was sent than the window allows");
}

#[test]
fn nonsense_never_panics() {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for _ in 0..150 {
        // Frames that are well-formed and make no sense together.
        let frames = (0..next() % 20).flat_map(|_| {
            let payload = vec![next() as u8; (next() % 50) as usize];
            let (number, second) = (u64::from(next() % 8), u64::from(next() % 60));
            frame((next() % 11) as u8, next() % 2 == 0, number, second, &payload)
        });
        let bytes: Vec<u8> = frames.collect();
        let result = after_join(move |socket| drop(socket.write_all(&bytes)));
        assert!(result.is_err(), "{result:?}");
    }
}
