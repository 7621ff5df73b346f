//! What fails once Commit is out: a copy may run, so the original keeps its stop, and exit code 8 says so.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use pc_tests::handing::HandOver;
use pc_tests::net::Host;
use pc_tests::told::Told;
use pc_tests::{
    Alone, Failing, Folder, Guest, is_stopped, program, restored, run, said, sleeper, status, wait_for,
};

/// It is stopped, held by nobody, and `--resolve` does with it what is asked for.
fn stays_stopped(original: &mut Guest) {
    assert!(is_stopped(original.pid()), "{}", status(original.pid(), "State"));
    assert_eq!(status(original.pid(), "TracerPid"), "0");
    let resolved = run("pc-dump", &["--resolve", "gone", &original.arg()]);
    assert!(resolved.status.success(), "{}", said(&resolved));
    original.ended(Duration::from_secs(10));
}

/// Exit code 8, for this reason.
fn in_doubt(output: &Output, why: &str) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(8), "{text}");
    assert!(text.contains(why) && text.contains("is left stopped"), "{text}");
}

#[test]
fn an_original_that_cannot_be_ended_or_whose_image_is_not_on_the_disk_stays_stopped() {
    let _one = Alone::new();
    for (call, why) in [("pidfd_send_signal", "ending it"), ("fsync", "syncing the output")] {
        let (mut guest, folder) = (sleeper(), Folder::new());
        let (image, resumed) = (folder.file("image"), folder.file("resumed"));
        let mut dump = Command::new(program("pc-dump"));
        dump.args(["--kill", "--on-frozen", "true", "--on-resumed"]);
        dump.arg(format!("touch {}", resumed.display())).arg(guest.arg());
        let failing = Failing::new(call, 1, &folder);
        let mut dump = failing.command(&dump);
        let dump = dump.stdin(Stdio::null()).stdout(File::create(&image).expect("an image"));
        let dumped = dump.output().expect("strace runs");
        in_doubt(&dumped, why);
        assert!(said(&dumped).contains("the stream is written"), "it was, and on its end: {}", said(&dumped));
        assert!(failing.has_failed());
        assert!(!resumed.exists(), "{call}: what was done for the copy is undone");
        let copy = restored(&image, &["--new-pid-ns"]);
        stays_stopped(&mut guest);
        assert!(!is_stopped(copy.pid()));
    }
}

#[test]
fn an_original_that_cannot_be_ended_stays_stopped_when_its_copy_is_known_to_run() {
    let _one = Alone::new();
    let (mut guest, folder) = (sleeper(), Folder::new());
    let failing = Failing::new("pidfd_send_signal", 1, &folder);
    let ended = HandOver::start_in([Some(&failing.script()), None], &guest.arg(), None).finish();
    assert!(failing.has_failed());
    assert_eq!(ended.codes(), (Some(8), Some(0)), "{}", ended.said);
    assert!(ended.said.contains("the copy runs as pid"), "{}", ended.said);
    assert!(ended.said.contains("is left stopped") && ended.said.contains("ending it"), "{}", ended.said);
    let copy = fs::read_to_string(ended.folder.file("pid")).expect("a pidfile");
    let copy = Guest::adopt(copy.trim().parse().expect("a pid"));
    stays_stopped(&mut guest);
    assert!(!is_stopped(copy.pid()));
}

/// How often pc-dump makes a call, if it does not have to end the original.
fn calls(told: &Told, call: &'static str) -> usize {
    let counting = Failing::new(call, 0, &told.folder);
    let dump = told.dump_to(&told.folder.file("image"), &["--tcp-established", "--once", "--leave-running"]);
    let mut dump = counting.command(&dump);
    let dump = dump.stdin(Stdio::null()).stdout(File::create(told.folder.file("image")).expect("an image"));
    let output = dump.output().expect("strace runs");
    assert!(output.status.success(), "{}", said(&output));
    counting.calls()
}

/// pc-dump, one of whose calls fails.
fn dump_failing(told: &Told, failing: &Failing, args: &[&str]) -> Output {
    let image = told.folder.file("image");
    let mut dump = failing.command(&told.dump_to(&image, &[&["--tcp-established", "--once"], args].concat()));
    let dump = dump.stdin(Stdio::null()).stdout(File::create(&image).expect("an image"));
    let output = dump.output().expect("strace runs");
    assert!(failing.has_failed(), "{}", said(&output));
    output
}

#[test]
fn an_original_whose_connections_cannot_be_silenced_stays_stopped_and_says_nothing_to_the_peer() {
    let _one = Alone::new();
    let mut told = Told::echoing();
    let silencing = Failing::new("setsockopt", calls(&told, "setsockopt") + 1, &told.folder);
    told.echoes();
    in_doubt(&dump_failing(&told, &silencing, &["--kill"]), "silencing its connections");
    assert!(is_stopped(told.guest.pid()));
    // Its packets are held back as those of any original that is left stopped.
    assert!(told.hosts.tables(Host::One).contains("pc-held-"));
    told.resolved_to_run();
    told.ends_echoing();
}

#[test]
fn an_original_whose_connections_cannot_be_silenced_stays_stopped_when_its_copy_is_known_to_run() {
    let _one = Alone::new();
    let mut told = Told::echoing();
    let silencing = Failing::new("setsockopt", calls(&told, "setsockopt") + 1, &told.folder);
    told.echoes();
    let (give, take) = (told.hosts.move_addresses("give"), told.hosts.move_addresses("take"));
    let (dumped, handed, text) = told.handed_over(&take, &give, Some(&silencing));
    assert!(silencing.has_failed());
    assert_eq!((dumped, handed), (Some(8), Some(0)), "{text}");
    assert!(text.contains("is left stopped") && text.contains("silencing its connections"), "{text}");
    let copy = fs::read_to_string(told.folder.file("pid")).expect("a pidfile");
    let copy = Guest::adopt(copy.trim().parse().expect("a pid"));
    let mut original = std::mem::replace(&mut told.guest, copy);
    told.at = Host::Two;
    told.echoes();
    stays_stopped(&mut original);
    told.ends_echoing();
}

/// Somebody else's table, which nobody else can take away or write to.
struct Foreign(Child);

impl Foreign {
    fn new(told: &Told, name: &str) -> Foreign {
        let mut nft = told.hosts.command(Host::One, "nft");
        let nft = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut foreign = Foreign(nft.spawn().expect("nft runs"));
        let input = foreign.0.stdin.as_mut().expect("a pipe");
        writeln!(input, "add table inet {name} {{ flags owner; }}").expect("nft reads");
        wait_for("a table", Duration::from_secs(10), || told.hosts.tables(Host::One).contains(name));
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The table that is left where the packets of the guest's connection are still held back.
fn table_left(told: &Told) -> String {
    let mut dump = told.dump_to(&told.folder.file("image"), &["--tcp-established", "--leave-stopped"]);
    let output = dump.stderr(Stdio::piped()).output().expect("pc-dump runs");
    assert!(output.status.success(), "{}", said(&output));
    let tables = told.hosts.tables(Host::One);
    told.resolved_to_run();
    tables.trim().strip_prefix("table inet ").expect("one table").to_owned()
}

#[test]
fn an_original_whose_packets_cannot_be_held_back_any_longer_stays_stopped() {
    let _one = Alone::new();
    let mut told = Told::echoing();
    let foreign = Foreign::new(&told, &table_left(&told));
    let end = calls(&told, "writev");
    for (args, end_is_written) in
        [(&["--kill"][..], true), (&["--leave-stopped"], true), (&["--leave-stopped"], false)]
    {
        told.echoes();
        let resumed = told.folder.file("resumed");
        let undo = format!("touch {}", resumed.display());
        let args = [args, &["--on-frozen", "true", "--on-resumed", &undo]].concat();
        let output = match end_is_written {
            true => {
                let args = [&["--tcp-established", "--once"], &args[..]].concat();
                let mut dump = told.dump_to(&told.folder.file("image"), &args);
                dump.stderr(Stdio::piped()).output().expect("pc-dump runs")
            }
            false => dump_failing(&told, &Failing::new("writev", end, &told.folder), &args),
        };
        in_doubt(&output, "holding back its packets");
        assert!(end_is_written || said(&output).contains("its end was not written"), "{}", said(&output));
        assert!(is_stopped(told.guest.pid()), "{args:?}");
        assert!(!resumed.exists(), "{args:?}: what was done for the copy is undone");
        told.resolved_to_run();
    }
    drop(foreign);
    told.ends_echoing();
}
