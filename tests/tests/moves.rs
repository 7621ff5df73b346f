//! Guests that check themselves, moved many times in a row.

#![forbid(unsafe_code)]

use std::time::Instant;

use pc_tests::{Way, Writer};

/// How many moves in a row: `PC_MOVES`, else 20.
fn moves() -> usize {
    std::env::var("PC_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

fn moved_in_a_row(way: Way, args: &[&str]) {
    let mut writer = Writer::start_with(args);
    let began = Instant::now();
    for _ in 0..moves() {
        writer = writer.moved(way);
        writer.goes_on();
    }
    println!("{} moves ({way:?}) in {:?}", moves(), began.elapsed());
    writer.end();
}

#[test]
fn no_byte_and_no_signal_is_lost_when_the_copy_takes_the_pid() {
    moved_in_a_row(Way::File, &[]);
}

#[test]
fn no_byte_and_no_signal_is_lost_on_the_way_into_new_pid_namespaces() {
    moved_in_a_row(Way::NewPidNs, &[]);
}
