//! pc-show on streams that a hostile source put together: no panic in any view, and no control character in any text.
#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use pc_show::Args;

const WAYS: [&[&str]; 8] = [
    &["pc-show"],
    &["pc-show", "--frames"],
    &["pc-show", "--json"],
    &["pc-show", "--maps"],
    &["pc-show", "--ps"],
    &["pc-show", "--fds"],
    &["pc-show", "--map", "map.svg", "--search", "a5a5a500"],
    &["pc-show", "--pages", "0x1000,64"],
];

fuzz_target!(|data: &[u8]| {
    let stream = pc_fuzz::stream(data);
    let way = WAYS[stream.len() % WAYS.len()];
    let mut out = Vec::new();
    let shown = pc_show::show(&Args::parse_from(way), stream.as_slice(), &mut out).expect("a Vec");
    let _ = (shown.map(), shown.timeline(), shown.json());
    let text = String::from_utf8(out).expect("text");
    let wild = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(wild, None, "in\n{text}");
});
