//! Hand-overs, with a relay between the two sides through which a test strikes at a chosen moment.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pc_frame::{END, HEADER_LEN, Header, PREAMBLE_LEN};

use crate::{Folder, Patience, Tool, program, wait_for};

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Source to destination: records.
    Forth,
    /// Destination to source: messages.
    Back,
}

/// How far a frame has been passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Nothing of it.
    None,
    /// Half of it.
    Half,
    /// All of it.
    All,
}

/// A moment: a part of the `number`th frame of this name has been passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct When {
    /// Which way the frame goes.
    pub way: Way,
    /// Its name; "Preamble" is one, too.
    pub frame: &'static str,
    /// From 0.
    pub number: u32,
    /// How far it has come.
    pub part: Part,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// pc-dump gets a signal; from SIGSTOP it recovers after this many milliseconds.
    Dump(Signal, u64),
    /// So does pc-restore.
    Restore(Signal, u64),
    /// So does pc-send, which is in between in a hand-over over a link.
    Send(Signal, u64),
    /// So does pc-recv.
    Recv(Signal, u64),
    /// Both directions are cut.
    Cut,
    /// Nothing is passed on any more, either way.
    Stall,
    /// A byte of the frame is another one: counted from its first, and taken modulo its length.
    Corrupt(usize),
    /// The process that is moved gets a signal.
    Target(Signal),
    /// A file is removed.
    Remove(&'static str),
    /// pc-dump is killed so many microseconds later.
    KillDumpAfter(u64),
    /// A command of sh(1) is run to its end.
    Run(&'static str),
}

/// Seconds in which every tool ends.
const LIMIT: u64 = 20;
/// What may be part of a hand-over; files of these names have what they said.
const TOOLS: [&str; 4] = ["pc-dump", "pc-restore", "pc-send", "pc-recv"];

/// No option of pc-restore, but that of this harness to go without `--new-pid-ns`.
pub const SAME_PID: &str = "--same-pid";

/// A hand-over under way.
pub struct HandOver {
    /// The source.
    pub dump: Tool,
    /// The destination; over a link pc-recv, which has started it.
    pub restore: Tool,
    /// Over a link, pc-send.
    send: Option<Tool>,
    /// With what both said, the copy's `pid`, and statistics.
    pub folder: Folder,
    relay: Arc<Relay>,
    threads: Vec<JoinHandle<()>>,
}

struct Relay {
    plan: Option<(When, Blow)>,
    /// Processes of pc-dump, pc-restore or pc-recv, and pc-send.
    pids: [i32; 3],
    target: i32,
    ends: Vec<UnixStream>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    struck: bool,
    stalled: bool,
    over: bool,
    passed: Vec<(Way, &'static str)>,
}

/// How both ended.
pub struct Ended {
    /// pc-dump.
    pub dumped: ExitStatus,
    /// pc-restore.
    pub restored: ExitStatus,
    /// The blow has fallen.
    pub struck: bool,
    /// Frames that were passed on whole.
    pub passed: Vec<(Way, &'static str)>,
    /// What both said.
    pub said: String,
    /// With the copy's `pid`, and statistics.
    pub folder: Folder,
}

impl HandOver {
    /// Starts both tools with `--handover`; the copy goes into a new pid namespace, unless `restore` has [`SAME_PID`].
    pub fn start(pid: &str, dump: &[&str], restore: &[&str], plan: Option<(When, Blow)>) -> HandOver {
        HandOver::begin(None, [None; 2], pid, dump, restore, plan)
    }

    /// The same, with pc-dump or pc-restore started by a script; see [`Tool::start_in`].
    pub fn start_in(scripts: [Option<&str>; 2], pid: &str, plan: Option<(When, Blow)>) -> HandOver {
        HandOver::begin(None, scripts, pid, &[], &[], plan)
    }

    /// The same with pc-send and pc-recv between the relay and pc-restore.
    pub fn start_over(
        link: Option<Link<'_>>,
        pid: &str,
        dump: &[&str],
        restore: &[&str],
        plan: Option<(When, Blow)>,
    ) -> HandOver {
        HandOver::begin(link, [None; 2], pid, dump, restore, plan)
    }

    fn begin(
        link: Option<Link<'_>>,
        scripts: [Option<&str>; 2],
        pid: &str,
        dump: &[&str],
        restore: &[&str],
        plan: Option<(When, Blow)>,
    ) -> HandOver {
        let folder = Folder::new();
        let pair = || UnixStream::pair().expect("sockets");
        let ((from_dump, dump_out), (to_restore, restore_in)) = (pair(), pair());
        let ((from_restore, restore_out), (to_dump, dump_in)) = (pair(), pair());
        let as_stdio = |end: UnixStream| Stdio::from(OwnedFd::from(end));
        let path = |name: &str| folder.file(name).display().to_string();
        let (figures, more, pidfile) = (path("dump.json"), path("restore.json"), path("pid"));
        let dump = [&["--handover", "--stats", &figures, pid], dump].concat();
        let [by_dump, by_restore] = scripts;
        let dump = Tool::start_in(by_dump, "pc-dump", &dump, &folder, |tool| {
            tool.stdin(as_stdio(dump_in)).stdout(as_stdio(dump_out));
        });
        let files = ["--pidfile", &pidfile, "--stats", &more];
        let mut restore = [&["--handover", "--detach", "--new-pid-ns"], &files[..], restore].concat();
        if restore.contains(&SAME_PID) {
            restore.retain(|arg| ![SAME_PID, "--new-pid-ns"].contains(arg));
        }
        let target = pid.parse().expect("a pid");
        let (restore, send) = match link {
            None => {
                let pipe = |tool: &mut Command| {
                    tool.stdin(as_stdio(restore_in)).stdout(as_stdio(restore_out));
                };
                (Tool::start_in(by_restore, "pc-restore", &restore, &folder, pipe), None)
            }
            Some(link) => {
                let (recv, send) = link.start(&folder, &restore, as_stdio(restore_in), as_stdio(restore_out));
                (recv, Some(send))
            }
        };
        let all = [&from_dump, &to_restore, &from_restore, &to_dump];
        let ends = all.map(|end| end.try_clone().expect("a duplicate")).into();
        let pids = [dump.pid(), restore.pid(), send.as_ref().map_or(0, Tool::pid)];
        let relay =
            Arc::new(Relay { plan, pids, target, ends, state: Mutex::default(), changed: Condvar::new() });
        let pass = |way, from, to| {
            let relay = relay.clone();
            thread::spawn(move || relay.pass(way, from, to))
        };
        let threads = vec![pass(Way::Forth, from_dump, to_restore), pass(Way::Back, from_restore, to_dump)];
        HandOver { dump, restore, send, folder, relay, threads }
    }

    /// Whether the blow has fallen.
    pub fn is_struck(&self) -> bool {
        self.relay.state.lock().expect("no panic").struck
    }

    /// Waits until both tools have ended.
    pub fn finish(self) -> Ended {
        self.finish_within(1.0)
    }

    /// Waits until both tools have ended, where what they were told to wait for takes this many times longer.
    pub fn finish_within(self, times: f64) -> Ended {
        let HandOver { mut dump, mut restore, send, folder, relay, threads } = self;
        let of = |tool: &str| fs::read_to_string(folder.file(tool)).unwrap_or_default();
        let said = || TOOLS.map(of).join(" | ");
        let plan = relay.plan;
        let ended = |tool: &mut Tool, name: &str, most: u64| {
            let mut patience = Patience::new(Duration::from_secs(most).mul_f64(times));
            loop {
                match tool.0.try_wait().expect("wait") {
                    Some(status) => return Some(status),
                    None if !patience.is_over() => thread::sleep(Duration::from_millis(2)),
                    None if most < LIMIT => return None,
                    None => panic!("{name} does not end: {plan:?}: {}", said()),
                }
            }
        };
        let dumped = ended(&mut dump, "pc-dump", LIMIT).expect("it has ended");
        if let Some(mut send) = send {
            ended(&mut send, "pc-send", LIMIT);
            if ended(&mut restore, "pc-recv", 4).is_none() {
                // Nobody came who knew the key: it listens on.
                restore.signal(Signal::SIGTERM);
            }
        }
        let restored = ended(&mut restore, "the other side", LIMIT).expect("it has ended");
        relay.end();
        threads.into_iter().for_each(|thread| thread.join().expect("the relay"));
        let said = said();
        let mut state = relay.state.lock().expect("no panic");
        let (struck, passed) = (state.struck, std::mem::take(&mut state.passed));
        Ended { dumped, restored, struck, passed, said, folder }
    }
}

/// The link of a hand-over that goes over one.
#[derive(Clone, Copy)]
pub struct Link<'a> {
    /// Options of both ends.
    pub both: &'a [&'a str],
    /// Where pc-send connects to, when pc-recv listens at an address: something in between, or that itself.
    pub via: &'a dyn Fn(&str) -> String,
}

impl Link<'_> {
    fn start(&self, folder: &Folder, restore: &[&str], input: Stdio, output: Stdio) -> (Tool, Tool) {
        let restore_path = program("pc-restore").display().to_string();
        let command = [&["--", &restore_path], restore].concat();
        let recv = [&["127.0.0.1:0"], self.both, &command].concat();
        let recv = Tool::start("pc-recv", &recv, folder, |_| {});
        let mut addr = None;
        wait_for("pc-recv listens", Duration::from_secs(10), || {
            let said = fs::read_to_string(folder.file("pc-recv")).unwrap_or_default();
            let line = said.lines().find_map(|line| line.strip_prefix("pc-recv: listening on "));
            addr = line.filter(|_| said.ends_with('\n')).map(|addr| (self.via)(addr));
            addr.is_some()
        });
        let addr = addr.expect("an address");
        let send = [&[addr.as_str()], self.both].concat();
        let send = Tool::start("pc-send", &send, folder, |tool| {
            tool.stdin(input).stdout(output);
        });
        (recv, send)
    }
}

impl Ended {
    /// Exit codes of pc-dump and pc-restore.
    pub fn codes(&self) -> (Option<i32>, Option<i32>) {
        (self.dumped.code(), self.restored.code())
    }

    /// Figures that a tool has left.
    pub fn stats(&self, tool: &str) -> serde_json::Value {
        let text = fs::read(self.folder.file(&format!("{tool}.json"))).expect("statistics");
        serde_json::from_slice(&text).expect("JSON")
    }
}

impl Relay {
    fn pass(&self, way: Way, mut from: UnixStream, mut to: UnixStream) {
        // A side that is gone shows as an error here; what has become of all is judged by the test.
        let _ = self.pass_frames(way, &mut from, &mut to);
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Write));
    }

    fn pass_frames(&self, way: Way, from: &mut UnixStream, to: &mut UnixStream) -> io::Result<()> {
        let mut preamble = vec![0; PREAMBLE_LEN];
        from.read_exact(&mut preamble)?;
        self.pass_frame(way, "Preamble", 0, preamble, to)?;
        let mut passed: Vec<&str> = Vec::new();
        loop {
            let mut frame = vec![0; HEADER_LEN];
            from.read_exact(&mut frame)?;
            let header = Header::decode(frame[..].try_into().expect("a header")).expect("a header");
            frame.resize(HEADER_LEN + header.len as usize, 0);
            from.read_exact(&mut frame[HEADER_LEN..])?;
            let name = name(way, header.kind);
            let number = passed.iter().filter(|passed| **passed == name).count() as u32;
            self.pass_frame(way, name, number, frame, to)?;
            passed.push(name);
        }
    }

    fn pass_frame(
        &self,
        way: Way,
        frame: &'static str,
        number: u32,
        mut bytes: Vec<u8>,
        to: &mut UnixStream,
    ) -> io::Result<()> {
        let at = |part| When { way, frame, number, part };
        self.strike_if(at(Part::None), &mut bytes)?;
        let half = bytes.len() / 2;
        to.write_all(&bytes[..half])?;
        self.strike_if(at(Part::Half), &mut bytes[half..])?;
        to.write_all(&bytes[half..])?;
        self.state.lock().expect("no panic").passed.push((way, frame));
        self.strike_if(at(Part::All), &mut [])
    }

    fn strike_if(&self, now: When, bytes: &mut [u8]) -> io::Result<()> {
        if let Some((when, blow)) = self.plan
            && when == now
        {
            self.state.lock().expect("no panic").struck = true;
            self.strike(blow, bytes);
        }
        let state = self.state.lock().expect("no panic");
        let state = self.changed.wait_while(state, |state| state.stalled && !state.over);
        if state.expect("no panic").over { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn strike(&self, blow: Blow, bytes: &mut [u8]) {
        match blow {
            Blow::Dump(signal, millis) => send(self.pids[0], signal, millis),
            Blow::Restore(signal, millis) => send(self.pids[1], signal, millis),
            Blow::Send(signal, millis) => send(self.pids[2], signal, millis),
            Blow::Recv(signal, millis) => send(self.pids[1], signal, millis),
            Blow::Cut => self.ends.iter().for_each(|end| _ = end.shutdown(Shutdown::Both)),
            Blow::Stall => self.state.lock().expect("no panic").stalled = true,
            Blow::Corrupt(at) => {
                let len = bytes.len().max(1);
                bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte ^= 0x10);
            }
            Blow::Target(signal) => kill(Pid::from_raw(self.target), signal).expect("the target is there"),
            Blow::Remove(path) => fs::remove_file(path).expect("a file to remove"),
            Blow::Run(command) => {
                let done = Command::new("sh").args(["-c", command]).status();
                assert!(done.is_ok_and(|done| done.success()), "{command}");
            }
            Blow::KillDumpAfter(micros) => {
                let pid = self.pids[0];
                thread::spawn(move || {
                    thread::sleep(Duration::from_micros(micros));
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                });
            }
        }
    }

    fn end(&self) {
        self.state.lock().expect("no panic").over = true;
        self.changed.notify_all();
        self.ends.iter().for_each(|end| _ = end.shutdown(Shutdown::Both));
    }
}

/// Sends a signal to a process. What is killed is dead on return, what is stopped stands, and goes on later; to any
/// other signal there was time to react.
pub fn send(pid: i32, signal: Signal, millis: u64) {
    let pid = Pid::from_raw(pid);
    if kill(pid, signal).is_err() {
        return;
    }
    let is = |states: &str| state(pid.as_raw()).is_none_or(|state| states.contains(state));
    match signal {
        Signal::SIGKILL => wait_for("its death", Duration::from_secs(10), || is("ZX")),
        Signal::SIGSTOP => {
            wait_for("its stop", Duration::from_secs(10), || is("TZX"));
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(millis));
                let _ = kill(pid, Signal::SIGCONT);
            });
        }
        // One that cancels by it ends.
        _ => {
            let mut patience = Patience::new(Duration::from_millis(500));
            while !patience.is_over() && !is("ZX") {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// The state letter of a process; `None` if there is none.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn name(way: Way, kind: u16) -> &'static str {
    match way {
        _ if kind == END => "End",
        Way::Forth => pc_image::record_name(kind).expect("a record"),
        Way::Back => pc_ctl::message_name(kind).expect("a message"),
    }
}
