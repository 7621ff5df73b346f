//! The golden streams are what this code writes, byte for byte, and what it reads.
//!
//! A change of the format shows here. If it is wanted, write them anew, and the seeds of the fuzz targets with them:
//! `PC_GOLDEN=write cargo test -p pc-tests --test golden`

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use pc_image::{Item, PAGES};
use pc_tests::streams::{folder, golden, read};

/// Compares a file with what it should hold, or writes it when asked to.
fn check(path: &Path, bytes: &[u8]) {
    if std::env::var_os("PC_GOLDEN").is_some_and(|how| how == "write") {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        return fs::write(path, bytes).expect("a file that can be written");
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

/// A record as the fuzz targets take it: its number and its body.
fn piece(item: &Item) -> (u16, Vec<u8>) {
    match item {
        Item::Record(record) => (record.number(), record.encode().expect("it was read before")),
        Item::Pages(pages) => (PAGES, [&pages.payload[..4], &pages.payload[8..pages.data_offset]].concat()),
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_follow_the_golden_streams() {
    for (name, bytes) in golden() {
        let mut pieces = Vec::new();
        for (i, item) in read(&bytes).expect("a good stream").iter().enumerate() {
            let (number, body) = piece(item);
            if name == "everything" && number != PAGES {
                check(&seeds("record").join(format!("{i:02}")), &[&number.to_le_bytes(), &body[..]].concat());
            }
            pieces.extend([number, body.len() as u16].iter().flat_map(|word| word.to_le_bytes()));
            pieces.extend(body);
        }
        check(&seeds("items").join(name), &pieces);
    }
}
