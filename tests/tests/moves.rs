//! Guests that check themselves, moved many times in a row.

#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pc_tests::{Way, Writer};

/// How many moves in a row: `PC_MOVES`, else 20.
fn moves() -> usize {
    std::env::var("PC_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// Two guests that compute in all of their threads make each other's moves ten times longer on two CPUs.
static ONE: Mutex<()> = Mutex::new(());

fn moved_in_a_row(way: Way, args: &[&str]) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
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
