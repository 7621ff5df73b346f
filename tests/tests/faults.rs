//! The fault matrix of the hand-over: every tool hit in every state of both machines, and the line between them cut,
//! stalled and corrupted. Afterwards exactly one copy runs, or one is stopped and pc-dump has said so (8) or was killed
//! itself, and `--resolve` settles it. Never two, never none, never a wrong byte, and nothing is left.
//!
//! `PC_FAULTS=N` strikes N points of it, 30 without it; a fifth of them go over pc-send and pc-recv. With
//! `PC_FAULTS_AT='"Thread" Cut'` those between the two tools are points that have all of these words. The guest is the
//! same all the way, and checks itself.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::handing::{Blow, Ended, HandOver, Link, Part, Way, When, state};
use pc_tests::link::{Fault, Relay};
use pc_tests::{
    Alone, Folder, Guest, Writer, descriptors, mounts, patient, patient_option, run, said, slowness, status,
    strays, wait_for,
};

/// Times of an idle machine: others are made of them as slow as it is found to be. How long silence is waited for, and
/// how long the original may be frozen.
///
/// The guest computes in all of its threads, so that no machine is idle with it: much shorter ones are missed.
const SILENCE: Duration = Duration::from_secs(4);
const FREEZE: Duration = Duration::from_secs(3);
/// Longer than every time-out, and than the guardian's patience (the freeze time-out and a second), in milliseconds.
const STOP: u64 = 6500;

/// Each state of both machines is between two of these.
const MOMENTS: [(Way, &str, u32, &[Part]); 24] = {
    use Part::{All, Half, None};
    use Way::{Back, Forth};
    [
        (Back, "Hello", 0, &[None, Half, All]),
        (Forth, "Preamble", 0, &[None, Half, All]),
        (Forth, "Machine", 0, &[Half, All]),
        (Forth, "Task", 0, &[None, All]),
        (Forth, "MapChange", 0, &[None, Half]),
        (Back, "Accepted", 0, &[None, Half, All]),
        (Forth, "Pages", 0, &[Half, All]),
        (Forth, "Pages", 3, &[Half]),
        (Forth, "RoundEnd", 0, &[None, All]),
        (Back, "RoundApplied", 0, &[None, Half, All]),
        (Forth, "Pages", 9, &[Half]),
        (Forth, "RoundEnd", 1, &[Half]),
        (Back, "RoundApplied", 1, &[None, All]),
        (Forth, "RoundBegin", 2, &[None, All]),
        (Forth, "MmState", 0, &[None, Half]),
        (Forth, "OpenFile", 0, &[All]),
        (Forth, "FdTable", 0, &[None, All]),
        (Forth, "TaskState", 0, &[Half]),
        (Forth, "Thread", 0, &[None, Half]),
        (Back, "Ready", 0, &[None, Half, All]),
        (Forth, "RoundEnd", 2, &[None, Half, All]),
        (Forth, "Commit", 0, &[None, Half, All]),
        (Back, "Running", 0, &[None, Half, All]),
        (Forth, "End", 0, &[None, All]),
    ]
};

/// What may happen at a moment; `n` varies what can be varied.
fn blows(part: Part, n: usize) -> Vec<Blow> {
    use Signal::{SIGINT, SIGKILL, SIGSTOP, SIGTERM};
    let mut blows = vec![Blow::Cut, Blow::Stall];
    for (signal, millis) in [(SIGKILL, 0), (SIGTERM, 0), (SIGINT, 0), (SIGSTOP, STOP)] {
        blows.extend([Blow::Dump(signal, millis), Blow::Restore(signal, millis)]);
    }
    if part != Part::All {
        // Each class of bytes: kind, length, checksums, payload.
        blows.push(Blow::Corrupt([0, 5, 10, 17, 26, 30, 33, 40, 1000, 100_000][n % 10]));
    }
    blows
}

/// All of the matrix, with what can be varied varied by `turn`.
fn matrix(turn: usize) -> Vec<(When, Blow)> {
    let mut all = Vec::new();
    for (way, frame, number, parts) in MOMENTS {
        for &part in parts {
            let when = When { way, frame, number, part };
            let n = all.len() + turn;
            all.extend(blows(part, n).into_iter().map(|blow| (when, blow)));
        }
    }
    // The step from Ready to Commit takes a pc-dump less than a millisecond.
    let ready = When { way: Way::Back, frame: "Ready", number: 0, part: Part::All };
    all.extend((0..20).map(|i| (ready, Blow::KillDumpAfter((i * 60 + turn * 13) as u64 % 1200))));
    all
}

/// `n` points spread over the matrix, as often over it as need be.
fn points(n: usize) -> Vec<(When, Blow)> {
    let len = matrix(0).len();
    // Prime, and so to every point before it comes to one for the second time.
    let step = [239, 241, 251].into_iter().find(|step| !len.is_multiple_of(*step)).expect("a step");
    let all = (0..).map(|i| matrix(i / len)[i * step % len]);
    match std::env::var("PC_FAULTS_AT") {
        Err(_) => all.take(n).collect(),
        Ok(words) => {
            let is_meant = |point: &(When, Blow)| {
                let text = format!("{point:?}");
                words.split(' ').all(|word| text.contains(word))
            };
            assert!(matrix(0).iter().any(is_meant), "PC_FAULTS_AT: no point has {words}");
            all.filter(is_meant).take(n).collect()
        }
    }
}

/// What has become of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The original runs, there is no copy.
    Stayed,
    /// The copy runs, the original has ended.
    Moved,
    /// The copy runs and the original is stopped.
    DoubtWithCopy,
    /// The original is stopped, there is no copy.
    DoubtAlone,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::Stayed => "the original runs",
            Fate::Moved => "moved",
            Fate::DoubtWithCopy => "stopped, the copy runs",
            Fate::DoubtAlone => "stopped, no copy",
        })
    }
}

/// The copy that runs, if any: the child of a namespace's init that is a child of ours.
fn copy(known: &[i32], sure: bool) -> Option<i32> {
    let mut found = None;
    wait_for("what was begun ends", Duration::from_secs(10), || {
        let strays = strays(known);
        let guardians = strays.iter().filter(|pid| comm(**pid) == "pc-guardian").count();
        let children = |pid: &i32| {
            let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            list.split_whitespace().next().and_then(|child| child.parse::<i32>().ok())
        };
        found = strays.iter().find_map(children).filter(|pid| comm(*pid) == "guest-writer");
        let settled = found.is_some_and(|pid| status_of(pid, "TracerPid") == "0");
        guardians == 0 && (strays.is_empty() || settled && sure)
    });
    found
}

/// Whether SIGKILL waits for a process, or it is on its way out.
fn killed(pid: i32) -> bool {
    let waits = |field| u64::from_str_radix(&status_of(pid, field), 16).is_ok_and(|set| set >> 8 & 1 != 0);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    const PF_EXITING: u64 = 4;
    waits("SigPnd") || waits("ShdPnd") || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// A field of status, of a process that may just be ending.
fn status_of(pid: i32, field: &str) -> String {
    if state(pid).is_none() { String::new() } else { status(pid, field) }
}

/// Judges a move by what is there, settles a doubt, and gives the guest that goes on.
fn settle(writer: Writer, outcome: &Outcome) -> (Fate, Writer) {
    let pid = writer.guest.pid();
    let known = [writer.guest.child()];
    // Nothing of a husk outlives its tracer by more than a moment: what is there then is a copy.
    if outcome.restored.is_none() {
        std::thread::sleep(patient(Duration::from_millis(100)));
    }
    let copy = copy(&known, outcome.restored.is_none_or(|code| code == 0));
    // One that is being killed runs no instruction of its own any more, but on a busy machine it may take its time to go.
    let gone = || matches!(state(pid), None | Some('Z' | 'X'));
    let dying = || killed(pid) || gone();
    if copy.is_some() && dying() {
        wait_for("the original ends", Duration::from_secs(10), gone);
    }
    let mut original = None;
    // One that has a stop to come stands, too, until it is given a CPU to take it; one that runs mostly sleeps.
    wait_for("the original ends, stops or sleeps", Duration::from_secs(10), || {
        original = match state(pid) {
            None | Some('Z' | 'X') => None,
            Some('T') => Some(true),
            Some('t') => panic!("still traced: {outcome}"),
            Some('S') => Some(false),
            _ => return false,
        };
        true
    });
    let fate = match (original, copy) {
        (None, Some(_)) => Fate::Moved,
        (Some(false), None) => Fate::Stayed,
        (Some(true), Some(_)) => Fate::DoubtWithCopy,
        (Some(true), None) => Fate::DoubtAlone,
        (Some(false), Some(_)) => panic!("two run: {outcome}"),
        (None, None) => panic!("none is left: {outcome}"),
    };
    match (fate, outcome.dumped) {
        (Fate::Moved, Some(0)) | (Fate::DoubtWithCopy | Fate::DoubtAlone, Some(8)) => {}
        (Fate::Stayed, Some(code)) if ![0, 8].contains(&code) => {}
        (_, None) => {}
        _ => panic!("{fate} is not what pc-dump said: {outcome}"),
    }
    match outcome.restored {
        Some(0) => assert!(copy.is_some(), "pc-restore said that it runs: {outcome}"),
        Some(_) => assert!(copy.is_none(), "pc-restore said that none runs: {outcome}"),
        None => {}
    }
    let how = match fate {
        Fate::DoubtWithCopy => Some("gone"),
        Fate::DoubtAlone => Some("running"),
        _ => None,
    };
    if let Some(how) = how {
        let output = run("pc-dump", &["--resolve", how, &pid.to_string()]);
        assert!(output.status.success(), "{}: {outcome}", said(&output));
    }
    let writer = match copy {
        None => writer,
        Some(copy) => writer.moved_by(|mut original| {
            original.ended(Duration::from_secs(10));
            Guest::adopt(copy)
        }),
    };
    writer.goes_on();
    assert_eq!(status(writer.guest.pid(), "TracerPid"), "0", "{outcome}");
    assert_eq!(differences(&vdso(writer.guest.pid())), [0; 0], "the vDSO was written to: {fate}, {outcome}");
    let child = writer.guest.child();
    wait_for("nothing is left", Duration::from_secs(5), || strays(&[child]).is_empty());
    (fate, writer)
}

/// Bytes at the end of the vDSO in which remote calls have their code.
const UNUSED: usize = 128;

/// The code that the kernel gives to every process.
fn vdso(pid: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a vDSO");
    let (start, rest) = line.split_once('-').expect("a range");
    let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
    let (start, end) = (number(start), number(rest.split(' ').next().expect("an end")));
    let mut bytes = vec![0; (end - start) as usize];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    memory.read_exact_at(&mut bytes, start).expect("the vDSO");
    bytes
}

/// Where it is not ours. A killed pc-dump may leave code of its own in the unused bytes at its end.
fn differences(theirs: &[u8]) -> Vec<usize> {
    let ours = vdso(std::process::id() as i32);
    assert_eq!(ours.len(), theirs.len());
    (0..ours.len() - UNUSED).filter(|at| ours[*at] != theirs[*at]).collect()
}

/// How a move ended, as far as the tools tell.
struct Outcome {
    point: String,
    /// Exit codes; `None` for a tool that was killed.
    dumped: Option<i32>,
    restored: Option<i32>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pc-dump {:?}, pc-restore {:?}: {}", self.dumped, self.restored, self.point)
    }
}

/// Exit statuses of pc-dump, as pc-tools(7) has them.
fn codes(blow: Blow) -> &'static [i32] {
    use Signal::{SIGINT, SIGKILL, SIGSTOP, SIGTERM};
    match blow {
        Blow::Dump(SIGTERM | SIGINT, _) | Blow::Restore(SIGTERM | SIGINT, _) => &[0, 7],
        Blow::Dump(SIGSTOP, _) => &[0, 5],
        // Killed when it had said that the copy runs.
        Blow::Restore(SIGKILL, _) | Blow::Cut => &[0, 5, 8],
        Blow::Restore(SIGSTOP, _) | Blow::Stall => &[0, 5, 7, 8],
        Blow::Corrupt(_) => &[0, 5, 8],
        // The line, and what waits in it.
        Blow::Send(..) | Blow::Recv(..) => &[0, 5, 7, 8],
        _ => &[0],
    }
}

/// Whether pc-dump may have been killed, by the blow or by its guardian.
fn may_die(plan: Option<(When, Blow)>) -> bool {
    let blow = plan.map(|(_, blow)| blow);
    matches!(blow, Some(Blow::Dump(Signal::SIGKILL | Signal::SIGSTOP, _) | Blow::KillDumpAfter(_)))
}

/// A blow on a machine that is this many times slower: who is stopped is so for longer than what waits for him.
fn slower(blow: Blow, slowness: f64) -> Blow {
    let longer = |millis: u64| (millis as f64 * slowness) as u64;
    match blow {
        Blow::Dump(signal, millis) => Blow::Dump(signal, longer(millis)),
        Blow::Restore(signal, millis) => Blow::Restore(signal, longer(millis)),
        Blow::Send(signal, millis) => Blow::Send(signal, longer(millis)),
        Blow::Recv(signal, millis) => Blow::Recv(signal, longer(millis)),
        other => other,
    }
}

/// One point of the matrix.
fn strike(writer: Writer, link: Option<Link<'_>>, plan: Option<(When, Blow)>) -> (Fate, bool, Writer) {
    let pid = writer.guest.pid();
    let (fds, mounted) = (descriptors(pid), mounts());
    // Of a machine that is slower still, some moments come too late, which is provided for.
    let slowness = slowness().min(6.0);
    let plan = plan.map(|(when, blow)| (when, slower(blow, slowness)));
    let option = |name, limit: Duration| format!("{name}={}ms", limit.mul_f64(slowness).as_millis());
    let (timeout, freeze) = (option("--timeout", SILENCE), option("--freeze-timeout", FREEZE));
    let dump = ["--rounds=2", "--downtime-limit=0", &timeout, &freeze];
    let ended =
        HandOver::start_over(link, &writer.guest.arg(), &dump, &[&timeout], plan).finish_within(slowness);
    let Ended { dumped, restored, struck, said, folder, .. } = &ended;
    // Over a link, it is pc-recv that has ended, which may have lost the link to pc-send.
    let restored = restored.code().filter(|code| link.is_none() || *code == 0);
    let outcome = Outcome { point: format!("{plan:?}: {said}"), dumped: dumped.code(), restored };
    let (fate, writer) = settle(writer, &outcome);
    // A signal that came before pc-dump had begun to listen for signals.
    let unheard = !said.contains("pc-dump: ");
    // On a busy machine the stop alone may take longer than it may.
    let (missed, late) = (plan.is_some() && !struck, said.contains("the destination was not ready in time"));
    let allowed = plan.filter(|_| !late).map_or(&[0, 1, 5, 6, 7, 8][..], |(_, blow)| codes(blow));
    // Nor may it come to run in time to see that it is late.
    let ended = slowness > 1.0 && said.contains("frozen for too long by a pc-dump that stood still");
    // Whichever side has missed the other for too long first says so.
    let silent = said.contains("nothing came for") || said.contains("nothing was heard from");
    let known = outcome
        .dumped
        .map_or(may_die(plan) || unheard || ended, |code| allowed.contains(&code) || (silent && code == 5));
    assert!(known, "not what pc-tools(7) says: {outcome}");
    // A pc-dump that shares two CPUs with the guest's fifteen threads can be silent for longer than may be.
    let slow = late || silent;
    assert!(!missed || fate == Fate::Moved || slow, "a move that nothing befell has failed: {outcome}");
    if writer.guest.pid() == pid {
        assert_eq!(descriptors(pid), fds, "{outcome}");
        assert_eq!(mounts(), mounted, "{outcome}");
    }
    for entry in fs::read_dir(folder.file("")).expect("a folder") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        let known = ["pc-dump", "pc-restore", "pc-send", "pc-recv", "pid", "dump.json", "restore.json"];
        assert!(known.contains(&name.as_str()), "{name} is left: {outcome}");
    }
    (fate, *struck, writer)
}

/// How often what has become of moves that were hit in some way.
#[derive(Default)]
struct Tally(BTreeMap<String, BTreeMap<Fate, u32>>);

impl Tally {
    fn count(&mut self, kind: impl Into<String>, fate: Fate) {
        *self.0.entry(kind.into()).or_default().entry(fate).or_default() += 1;
    }

    fn print(&self) {
        for (kind, counts) in &self.0 {
            let counts: Vec<_> = counts.iter().map(|(fate, n)| format!("{n} {fate}")).collect();
            println!("  {kind}: {}", counts.join(", "));
        }
    }
}

fn kind(blow: Blow) -> String {
    match blow {
        Blow::Dump(signal, _) => format!("pc-dump {signal}"),
        Blow::Restore(signal, _) => format!("pc-restore {signal}"),
        Blow::Send(signal, _) => format!("pc-send {signal}"),
        Blow::Recv(signal, _) => format!("pc-recv {signal}"),
        Blow::Corrupt(_) => "corrupted".to_owned(),
        Blow::KillDumpAfter(_) => "pc-dump SIGKILL about Commit".to_owned(),
        other => format!("{other:?}"),
    }
}

/// So many points are wanted in all.
fn wanted() -> usize {
    std::env::var("PC_FAULTS").map_or(30, |n| n.parse().expect("PC_FAULTS is a number"))
}

#[test]
fn whatever_befalls_a_hand_over_one_copy_runs_or_is_stopped_and_said_to_be() {
    let _one = Alone::new();
    let wanted = wanted() * 4 / 5;
    let mut writer = Writer::start();
    let (mut tally, mut missed) = (Tally::default(), 0);
    for (i, (when, blow)) in points(wanted).into_iter().enumerate() {
        if i > 0 && i % 200 == 0 {
            println!("{i} points:");
            tally.print();
        }
        let (fate, struck, survivor) = strike(writer, None, Some((when, blow)));
        writer = survivor;
        tally.count(kind(blow), fate);
        missed += usize::from(!struck);
    }
    println!("{wanted} points of {}, {missed} blows came too late for their moment", matrix(0).len());
    tally.print();
    assert!(missed * 10 <= wanted, "{missed} moments never came");
    writer.end();
}

/// Moments spread over those of the matrix, for the tools in between.
fn moments(n: usize) -> Vec<When> {
    let all: Vec<When> = MOMENTS
        .iter()
        .flat_map(|(way, frame, number, parts)| {
            parts.iter().map(|part| When { way: *way, frame, number: *number, part: *part })
        })
        .collect();
    (0..n).map(|i| all[i * 7 % all.len()]).collect()
}

#[test]
fn whatever_befalls_the_link_between_one_copy_runs_or_is_stopped_and_said_to_be() {
    let _one = Alone::new();
    let folder = Folder::new();
    let key = folder.file("key").display().to_string();
    assert!(run("pc-recv", &["--new-key", &key]).status.success());
    let wanted = wanted() / 5;
    let mut writer = Writer::start();
    let mut tally = Tally::default();
    let direct = |addr: &str| addr.to_owned();
    let signals = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSTOP, Signal::SIGINT];
    for (i, when) in moments(wanted * 3 / 5).into_iter().enumerate() {
        let signal = signals[i / 2 % 4];
        let blow = if i % 2 == 0 { Blow::Send(signal, STOP) } else { Blow::Recv(signal, STOP) };
        let timeout = patient_option("--timeout", Duration::from_secs(2));
        let both: &[&str] = if i % 3 == 0 { &[&timeout] } else { &[&timeout, "--key-file", &key] };
        let (fate, _, survivor) = strike(writer, Some(Link { both, via: &direct }), Some((when, blow)));
        writer = survivor;
        tally.count(kind(blow), fate);
    }
    // About so many bytes go over it; the later ones are those of the stop.
    let whole = 18_000_000;
    for i in 0..wanted - wanted * 3 / 5 {
        let after = whole / 8 * (i % 9) + i * 1009;
        let (what, fault, more) = match i % 4 {
            0 => ("link reset", Fault::CutEach { after, times: 1 }, &[][..]),
            1 => ("link stalled", Fault::Stall { connection: 0, after }, &[][..]),
            2 => ("link corrupted", Fault::Flip { at: after }, &[][..]),
            _ => ("link reset, --reconnect", Fault::CutEach { after, times: 1 }, &["--reconnect=10"][..]),
        };
        let timeout = patient_option("--timeout", Duration::from_secs(2));
        let both = [&[timeout.as_str(), "--key-file", &key], more].concat();
        let between = std::cell::RefCell::new(None);
        let via = |addr: &str| {
            let relay = Relay::start(addr, fault);
            let addr = relay.addr.clone();
            between.replace(Some(relay));
            addr
        };
        let (fate, _, survivor) = strike(writer, Some(Link { both: &both, via: &via }), None);
        writer = survivor;
        tally.count(what, fate);
        assert!(more.is_empty() || fate == Fate::Moved, "a reset that --reconnect bridges: {fate}");
    }
    println!("{wanted} points over pc-send and pc-recv");
    tally.print();
    writer.end();
}
