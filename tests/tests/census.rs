//! The census notices what is another, and what it does not know; its table is what pc-dump(1) says.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::census::table::{self, Look, ROWS};
use pc_tests::census::{Moved, Sample};
use pc_tests::{Folder, Guest, program, wait_for};

#[test]
fn whatever_a_process_changes_is_noticed_and_nothing_else() {
    let folder = Folder::new();
    let report = folder.file("report");
    let guest = Guest::start(Command::new(program("guest-census")).arg(&report));
    wait_for("the guest is ready", Duration::from_secs(20), || folder.file("report.ready").exists());
    let (first, second) = (Sample::take(guest.pid()), Sample::take(guest.pid()));
    assert!(first.len() > 700, "only {} readings", first.len());
    assert_eq!(first.differences(&second, Moved::default()), [""; 0], "nothing has happened");
    guest.signal(Signal::SIGUSR1);
    wait_for("the guest has changed", Duration::from_secs(20), || report.exists());
    let all = first.differences(&Sample::take(guest.pid()), Moved::default());
    let names: BTreeSet<&str> = all.iter().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "fdinfo/flags",
        "limits/Max",
        "prctl/THP_DISABLE",
        "prctl/TIMERSLACK",
        "sigaction",
        "smaps/VmFlags/dd",
        "so/SOCKET/BROADCAST",
        "status/SigIgn",
        "status/THP_enabled",
        "status/Umask",
        "timerslack_ns",
    ];
    let missing: Vec<_> = expected.iter().filter(|name| !names.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?} not noticed: {all:#?}");
    // Where it waits in its code, and what follows from those above.
    let known = ["registers/", "ptrace/extended", "stat/sigignore", "smaps/THPeligible"];
    let other = |name: &&str| !expected.contains(name) && !known.iter().any(|start| name.starts_with(start));
    let others: Vec<_> = names.iter().copied().filter(|name| other(name)).collect();
    assert!(others.is_empty(), "{others:?}: {all:#?}");
}

#[test]
fn a_field_of_proc_that_the_table_does_not_know_is_noticed() {
    let known = "Umask:\t0022\nThreads:\t1\n";
    let before = Sample::of_status(known);
    assert_eq!(before.differences(&Sample::of_status(known), Moved::default()), [""; 0]);
    let new = Sample::of_status(&format!("{known}Shiny_new:\t7\n"));
    for (before, after) in [(&before, &new), (&new, &before), (&new, &new)] {
        let all = before.differences(after, Moved::default());
        assert_eq!(all, ["status/Shiny_new of process (7): the table of the census does not know it"]);
    }
    for name in
        ["file/shiny", "so/TCP/99", "smaps/Shiny", "smaps/VmFlags/zz", "fdinfo/shiny", "stat/field 53"]
    {
        assert!(matches!(table::look(name), Look::Unknown), "{name}");
    }
}

#[test]
fn no_reading_stands_in_the_table_twice() {
    let mut all = BTreeSet::new();
    for seen in ROWS.iter().flat_map(|(_, rows)| *rows).flat_map(|row| row.seen) {
        assert!(all.insert(seen), "{seen}");
    }
    for (name, _) in table::NEW_PID_NS {
        assert!(all.contains(name), "{name} is an exception from nothing");
    }
}

/// `PC_GOLDEN=write cargo test -p pc-tests --test census` writes the section anew.
#[test]
fn the_manual_page_has_the_table_of_kernel_state() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../man/pc-dump.1");
    let page = fs::read_to_string(&path).expect("the manual page");
    let (before, rest) = page.split_once(".SH KERNEL STATE\n").expect("a section KERNEL STATE");
    let (kept, after) = rest.split_once(".SH ").expect("a section after it");
    let section = table::section();
    if std::env::var_os("PC_GOLDEN").is_some_and(|how| how == "write") {
        let page = format!("{before}.SH KERNEL STATE\n{section}.SH {after}");
        return fs::write(&path, page).expect("a page that can be written");
    }
    assert!(kept == section, "the table of kernel state has changed: PC_GOLDEN=write writes the page anew");
}
