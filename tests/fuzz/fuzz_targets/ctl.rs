//! The messages of a hand-over: no panic, no piece size that makes a difference, what is taken is written and read
//! again; and a source that is told anything in any order never both resumes and ends the original.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pc_ctl::{Decoder, Encoder, Message, Source, SourceAction, SourceEvent};

fuzz_target!(|data: &[u8]| {
    let mut sealed = data.to_vec();
    pc_fuzz::seal(&mut sealed);
    let (messages, error) = read(&sealed, sealed.len().max(1));
    let (again, other) = read(&sealed, 1);
    assert_eq!((&messages, &error), (&again, &other));
    let mut encoder = Encoder::new([1; 16]);
    let mut bytes: Vec<u8> = messages.iter().flat_map(|message| encoder.message(message)).collect();
    bytes.extend(encoder.end());
    assert_eq!(pc_ctl::decode(&bytes).expect("our own bytes"), messages);
    drive(&sealed, messages);
});

fn read(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<String>) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for mut chunk in bytes.chunks(piece) {
        while !chunk.is_empty() {
            match decoder.feed(&mut chunk) {
                Ok(message) => messages.extend(message),
                Err(err) => return (messages, Some(err.to_string())),
            }
        }
    }
    (messages, decoder.finish().err().map(|err| err.to_string()))
}

/// A source that hears the messages, between them whatever else can happen.
fn drive(bytes: &[u8], messages: Vec<Message>) {
    let mut source = Source::new([7; 16]);
    let mut actions = Vec::new();
    let mut running = false;
    for (message, byte) in messages.into_iter().zip(bytes.iter().rev().cycle()) {
        running |= matches!(message, Message::Running { .. });
        actions.extend(source.on(SourceEvent::Message(message)));
        let event = match byte % 16 {
            0 => SourceEvent::Stop,
            1 => SourceEvent::FinalWritten,
            2 => SourceEvent::Prepared,
            3 => SourceEvent::FreezeTimeout,
            4 => SourceEvent::Silence,
            5 => SourceEvent::Interrupted,
            6 => SourceEvent::PeerLost("gone".into()),
            7 => SourceEvent::WriteFailed("full".into()),
            8 => SourceEvent::Failed("no".into()),
            _ => continue,
        };
        actions.extend(source.on(event));
    }
    let ended = actions.contains(&SourceAction::EndOriginal);
    assert!(!ended || running, "the original ended though no copy runs");
    assert!(!ended || !actions.contains(&SourceAction::Resume) || !resumed_last(&actions), "two run");
}

/// Whether the original runs when all actions are done.
fn resumed_last(actions: &[SourceAction]) -> bool {
    let last = |action: SourceAction| actions.iter().rposition(|a| *a == action);
    last(SourceAction::Resume) > last(SourceAction::Freeze)
}
