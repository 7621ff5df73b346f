//! Hosts for tests: network namespaces on one switch, between which a service's address moves with its process.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::{Folder, Guest, Patience, adopt_orphans, patient, program, said};

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Where the process is first.
    One,
    /// Where it goes.
    Two,
    /// Its clients.
    Client,
}

impl Host {
    /// The other one of two.
    pub fn other(self) -> Self {
        if self == Self::One { Self::Two } else { Self::One }
    }
}

const HOSTS: [(&str, Host); 3] = [("one", Host::One), ("two", Host::Two), ("client", Host::Client)];
/// The addresses that move.
const SERVICE: [&str; 2] = ["10.77.0.100/24", "fd77::100/64"];

/// Three hosts on a switch, with the service's addresses at the first. All of it goes with the guard.
pub struct Hosts {
    name: String,
    /// What pc-restore says goes to files that stay: a copy may have them as its own standard error.
    said: Folder,
    moves: AtomicU32,
}

impl Hosts {
    /// Makes them.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pc{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { name, said: Folder::new(), moves: AtomicU32::new(0) };
        hosts.ip(&format!("netns add {}-switch", hosts.name));
        hosts.ip(&format!("-n {}-switch link add name bridge0 type bridge", hosts.name));
        hosts.ip(&format!("-n {}-switch link set bridge0 up", hosts.name));
        for (number, (name, host)) in (1..).zip(HOSTS) {
            let (switch, namespace) = (format!("{}-switch", hosts.name), hosts.namespace(host));
            hosts.ip(&format!("netns add {namespace}"));
            hosts.ip(&format!("-n {namespace} link set lo up"));
            hosts.ip(&format!("-n {switch} link add {name} type veth peer name eth0 netns {namespace}"));
            hosts.ip(&format!("-n {switch} link set {name} master bridge0 up"));
            hosts.ip(&format!("-n {namespace} link set eth0 up"));
            hosts.ip(&format!("-n {namespace} addr add 10.77.0.{number}/24 dev eth0"));
            hosts.ip(&format!("-n {namespace} addr add fd77::{number}/64 dev eth0 nodad"));
        }
        for address in SERVICE {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            hosts.ip(&format!("-n {} addr add {address} dev eth0{nodad}", hosts.namespace(Host::One)));
        }
        hosts
    }

    fn ip(&self, args: &str) {
        let output = Command::new("ip").args(args.split_whitespace()).output().expect("ip runs, as root");
        assert!(output.status.success(), "ip {args}: {}", said(&output));
    }

    /// The name of a host's network namespace.
    pub fn namespace(&self, host: Host) -> String {
        let (name, _) = HOSTS.iter().find(|(_, other)| *other == host).expect("a host");
        format!("{}-{name}", self.name)
    }

    fn path(&self, host: Host) -> PathBuf {
        PathBuf::from("/run/netns").join(self.namespace(host))
    }

    /// A program on a host.
    pub fn command(&self, host: Host, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(host).display())).arg(program);
        command
    }

    /// Does something on a host, in a thread of its own.
    pub fn on<T: Send + 'static>(&self, host: Host, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(self.path(host)).expect("a namespace");
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("as root");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A connection from the client's host, made as soon as somebody listens.
    pub fn connect(&self, address: SocketAddr) -> TcpStream {
        self.on(Host::Client, move || {
            let mut patience = Patience::new(Duration::from_secs(10));
            while !patience.is_over() {
                if let Ok(stream) = TcpStream::connect(address) {
                    stream.set_read_timeout(Some(patient(Duration::from_secs(20)))).expect("a limit");
                    stream.set_nodelay(true).expect("an option");
                    return stream;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("nobody listens on {address}");
        })
    }

    /// The client's link goes down or up: nothing reaches it, and nothing leaves it.
    pub fn client_link(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        self.ip(&format!("-n {}-switch link set client {state}", self.name));
    }

    /// The client hears nothing more, or everything again; what it says is still heard.
    pub fn client_deaf(&self, deaf: bool) {
        let rules = match deaf {
            true => {
                "add table inet deaf; add chain inet deaf in { type filter hook prerouting priority 0; policy drop; }"
            }
            false => "delete table inet deaf",
        };
        self.nft(&self.namespace(Host::Client), rules);
    }

    /// A part of what the client and its peers send each other by TCP is lost from now on, in a hundred so many.
    pub fn lossy(&self, percent: u32) {
        for (namespace, device) in self.client_ends() {
            let rules = format!(
                "add table netdev loss; \
                 add chain netdev loss in {{ type filter hook ingress device {device} priority 0; }}; \
                 add rule netdev loss in meta l4proto tcp numgen random mod 100 < {percent} counter drop"
            );
            self.nft(&namespace, &rules);
        }
    }

    /// How many packets were lost on their way to the client's host, and from it.
    pub fn lost(&self) -> [u64; 2] {
        self.client_ends().map(|(namespace, _)| {
            let rules = self.nft(&namespace, "list table netdev loss");
            let count = rules.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
            count.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no counter: {rules}"))
        })
    }

    /// Where packets to the client come in, and those from it: namespace and device.
    fn client_ends(&self) -> [(String, &'static str); 2] {
        [(self.namespace(Host::Client), "eth0"), (format!("{}-switch", self.name), "client")]
    }

    fn nft(&self, namespace: &str, rules: &str) -> String {
        let mut nft = Command::new("nsenter");
        let nft = nft.arg(format!("--net=/run/netns/{namespace}")).args(["nft", rules]);
        let output = nft.output().expect("nft runs");
        assert!(output.status.success(), "{rules}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What both hosts send goes no faster than this, as tc(8) has it.
    pub fn shaped(&self, rate: &str) {
        for host in [Host::One, Host::Two] {
            let shape = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb"];
            let output = self.command(host, "tc").args(shape).args(["latency", "50ms"]).output();
            let output = output.expect("tc runs");
            assert!(output.status.success(), "{}", said(&output));
        }
    }

    /// How many bytes a host has sent since it was shaped, and how often they had to wait.
    pub fn shaped_bytes(&self, host: Host) -> (u64, u64) {
        let output = self.command(host, "tc").args(["-s", "qdisc", "show", "dev", "eth0"]).output();
        let text = String::from_utf8(output.expect("tc runs").stdout).expect("text");
        let after = |word: &str| -> Option<u64> {
            let mut words = text.split_whitespace().skip_while(|found| *found != word).skip(1);
            words.next()?.parse().ok()
        };
        after("Sent").zip(after("overlimits")).unwrap_or_else(|| panic!("no figures: {text}"))
    }

    /// The tables of nf_tables on a host.
    pub fn tables(&self, host: Host) -> String {
        self.nft(&self.namespace(host), "list tables")
    }

    /// What a hook runs to take the service's addresses from a host, or give them to it.
    pub fn move_addresses(&self, verb: &str) -> String {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/move-address");
        let moves = SERVICE.map(|address| format!("'{}' {verb} {address} eth0", script.display()));
        format!("export PATH=/usr/sbin:/usr/bin:/sbin:/bin; {} & {} && wait $!", moves[0], moves[1])
    }

    /// Gives the service's addresses to a host, or takes them from it.
    pub fn addresses(&self, host: Host, verb: &str) {
        let output =
            self.command(host, "sh").args(["-c", &self.move_addresses(verb)]).output().expect("sh runs");
        assert!(output.status.success(), "{}", said(&output));
    }

    /// pc-dump of a guest on a host, that takes the addresses away, and gives them back if it fails.
    pub fn dump(&self, host: Host, guest: &Guest, args: &[&str]) -> Command {
        let mut dump = self.command(host, program("pc-dump"));
        dump.args(["--tcp-established", "--on-frozen", &self.move_addresses("give")]);
        dump.args(["--on-resumed", &self.move_addresses("take")]).args(args).arg(guest.arg());
        dump.stdin(Stdio::null());
        dump
    }

    /// pc-restore on a host, that gives it the addresses.
    pub fn restore(&self, host: Host, args: &[&str]) -> Command {
        let mut restore = self.command(host, program("pc-restore"));
        restore.args(["--detach", "--tcp-established", "--new-pid-ns"]);
        restore.args(["--on-ready", &self.move_addresses("take")]).args(args);
        restore
    }

    /// Moves a guest from a host to the other, with its addresses and connections.
    pub fn moved(&self, mut guest: Guest, from: Host) -> Guest {
        adopt_orphans();
        let folder = Folder::new();
        let pidfile = folder.file("pid");
        let mut dump = self.dump(from, &guest, &["--kill"]);
        let mut dump = dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pc-dump runs");
        let mut restore = self.restore(from.other(), &["--pidfile", &pidfile.display().to_string()]);
        let text = self.said.file(&self.moves.fetch_add(1, Ordering::Relaxed).to_string());
        let restore = restore.stdin(dump.stdout.take().expect("a pipe")).stdout(Stdio::null());
        let ended = restore.stderr(File::create(&text).expect("a file")).status().expect("pc-restore runs");
        let dumped = dump.wait_with_output().expect("pc-dump ends");
        let text = std::fs::read_to_string(&text).expect("what it said");
        let good = dumped.status.success() && ended.success();
        assert!(good, "{}: {} | {ended}: {text}", dumped.status, said(&dumped));
        let pid = std::fs::read_to_string(&pidfile).expect("a pidfile").trim().parse().expect("a pid");
        let copy = Guest::adopt(pid);
        guest.ended(Duration::from_secs(10));
        copy
    }

    /// Whether no table is left on either host.
    pub fn assert_no_tables(&self) {
        for host in [Host::One, Host::Two] {
            assert_eq!(self.tables(host), "", "{host:?}");
        }
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in ["one", "two", "client", "switch"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{name}", self.name)]).output();
        }
    }
}

/// Where the service is, by IPv4 or IPv6.
pub fn service(v6: bool, port: u16) -> SocketAddr {
    let address: IpAddr =
        SERVICE[usize::from(v6)].split('/').next().and_then(|ip| ip.parse().ok()).expect("an address");
    SocketAddr::new(address, port)
}

/// A tool that does not outlive a test that failed.
pub struct Tool(pub Child);

impl Tool {
    /// Waits for its end, and keeps what it said.
    pub fn output(mut self) -> io::Result<Output> {
        let mut stderr = Vec::new();
        if let Some(pipe) = &mut self.0.stderr {
            io::copy(pipe, &mut stderr)?;
        }
        Ok(Output { status: self.0.wait()?, stdout: Vec::new(), stderr })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that both ends of a connection know by their place.
#[derive(Debug, Default)]
pub struct Pattern(u64);

impl Pattern {
    /// The next bytes.
    pub fn next(&mut self, len: usize) -> Vec<u8> {
        let from = self.0;
        self.0 += len as u64;
        (from..self.0).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }
}
