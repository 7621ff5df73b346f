//! The golden streams are what this code writes, byte for byte, and what it reads.
//!
//! A change of the format shows here. If it is wanted, write them anew, and the seeds of the fuzz targets with them:
//! `PC_GOLDEN=write cargo test -p pc-tests --test golden`

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use pc_image::{Item, PAGES, PATCHES};
use pc_tests::streams::{folder, golden, read};

/// Compares a file with what it should hold, or writes it when asked to.
fn check(path: &Path, bytes: &[u8]) {
    if std::env::var_os("PC_GOLDEN").is_some_and(|how| how == "write") {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        // In one step, as other tests read the folder at the same time.
        let new = path.with_extension("new");
        fs::write(&new, bytes).expect("a file that can be written");
        return fs::rename(&new, path).expect("a file that can be replaced");
    }
    let kept = fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let differ = kept.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(kept.len().min(bytes.len()));
    assert!(kept == bytes, "{} differs from byte {differ} on: the format has changed", path.display());
}

fn seeds(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

#[test]
fn the_golden_streams_are_what_is_written() {
    for (name, bytes) in golden() {
        check(&folder().join(format!("{name}.pcs")), &bytes);
        assert!(read(&bytes).is_ok(), "{name}");
    }
}

fn streams_in(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.extension() {
            _ if path.is_dir() => streams_in(&path, into),
            Some(extension) if extension == "pcs" => into.push(path),
            _ => {}
        }
    }
}

/// Before a record gets another version, the golden streams are copied to a folder of their own (tests/golden/1, …),
/// where they stay for as long as that version is read.
#[test]
fn every_stream_that_was_ever_kept_is_still_read() {
    let mut all = Vec::new();
    streams_in(&folder(), &mut all);
    assert!(all.len() >= golden().len());
    for path in all {
        let bytes = fs::read(&path).expect("a file");
        let items = read(&bytes).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        assert!(!items.is_empty(), "{}", path.display());
    }
}

/// A record as the fuzz targets take it: its number and its body.
fn piece(item: &Item) -> (u16, Vec<u8>) {
    match item {
        Item::Record(record) => (record.number(), record.encode().expect("it was read before")),
        Item::Pages(pages) => (PAGES, [&pages.payload[..4], &pages.payload[8..pages.data_offset]].concat()),
        Item::Patches(it) => (PATCHES, [&it.payload[..4], &it.payload[8..it.data_offset]].concat()),
    }
}

#[test]
fn the_seeds_of_the_hand_over_hold_every_message() {
    use pc_ctl::{Clocks, Encoder, Message, PROTOCOL};
    let text = || "why".to_owned();
    let hello = Message::Hello {
        lowest: PROTOCOL,
        highest: PROTOCOL,
        clocks: Clocks { realtime: 1, monotonic: 2, boottime: 3 },
        producer: "pc-restore 0".into(),
    };
    let accepted = Message::Accepted { stream_id: [7; 16] };
    let begun = [hello, accepted, Message::RoundApplied { round: 0, bytes: 4096 }, Message::Alive];
    let ends = [
        vec![Message::Ready, Message::Running { pid: 100 }],
        vec![Message::Ready, Message::Failed { reason: text() }],
        vec![Message::Cancelled { reason: text() }],
        vec![Message::Refused { reason: text() }],
        vec![Message::Lost { reason: text() }],
    ];
    for (i, end) in ends.iter().enumerate() {
        let mut encoder = Encoder::new([3; 16]);
        let messages = || begun.iter().chain(end);
        let mut bytes: Vec<u8> = messages().flat_map(|message| encoder.message(message)).collect();
        bytes.extend(encoder.end());
        assert_eq!(pc_ctl::decode(&bytes).expect("good messages"), messages().cloned().collect::<Vec<_>>());
        check(&seeds("ctl").join(i.to_string()), &bytes);
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_follow_the_golden_streams() {
    for (name, bytes) in golden() {
        let mut pieces = Vec::new();
        for (i, item) in read(&bytes).expect("a good stream").iter().enumerate() {
            let (number, body) = piece(item);
            if name == "everything" && ![PAGES, PATCHES].contains(&number) {
                check(&seeds("record").join(format!("{i:02}")), &[&number.to_le_bytes(), &body[..]].concat());
            }
            pieces.extend([number, body.len() as u16].iter().flat_map(|word| word.to_le_bytes()));
            pieces.extend(body);
        }
        check(&seeds("items").join(name), &pieces);
    }
}
