//! Hosts made of namespaces: two that a server moves between, and one where clients live.
//!
//! ```text
//!     clients 10.199.1.3 ---------- 10.199.1.1 source
//!             10.199.2.3 --.                   10.199.3.1 --. the line that is shaped
//!                           '------ 10.199.2.2 destination   |
//!                                              10.199.3.2 --'
//! ```
//! Clients have lines of their own, so what they see of the move is the server's doing and not
//! that of a full queue.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cleanup::{self, Processes};
use crate::matrix::Link;

/// A host. Dropping it ends every process on it.
pub struct Host {
    unshare: Child,
    processes: Processes,
    /// Its first process lives until this is closed, however this program ends.
    lifeline: Option<ChildStdin>,
}

impl Host {
    /// A host with network, process and mount namespaces of its own.
    pub fn new() -> anyhow::Result<Self> {
        let mut unshare = Command::new("unshare")
            .args(["--net", "--pid", "--mount-proc", "--fork", "--kill-child", "--"])
            .args(["bash", "-c", "ip link set lo up; echo ready; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let mut line = String::new();
        let stdout = unshare.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "a host does not start");
        let id = unshare.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let init = children.trim().parse().context("a host has no first process")?;
        let lifeline = unshare.stdin.take();
        let processes = Processes { unshare: id as i32, init };
        cleanup::host_began(processes);
        Ok(Host { unshare, processes, lifeline })
    }

    fn init(&self) -> i32 {
        self.processes.init
    }

    /// A command that will run on the host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--pid", "--mount", "--target", &self.init().to_string(), "--"]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a command line on the host to its end.
    pub fn sh(&self, line: &str) -> anyhow::Result<()> {
        let done = self.command("sh").args(["-c", line]).output()?;
        if !done.status.success() {
            bail!("{line}: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }

    /// Does something in the host's network, on a thread of its own. Sockets made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let done = scope.spawn(|| self.enter_net().and_then(|()| work())).join();
            done.map_err(|_| anyhow!("a thread panicked"))?
        })
    }

    fn enter_net(&self) -> anyhow::Result<()> {
        let net = File::open(format!("/proc/{}/ns/net", self.init()))?;
        setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Puts one end of a new line on this host and the other on `peer`.
    fn connect(&self, peer: &Host, name: &str, addresses: [Ipv4Addr; 2]) -> anyhow::Result<()> {
        // `ip` takes a process number for the peer's namespace: those of outside are needed.
        let line = format!("ip link add {name} type veth peer name {name} netns {}", peer.init());
        let target = self.init().to_string();
        let done =
            Command::new("nsenter").args(["--net", "--target", &target, "sh", "-c", &line]).output()?;
        ensure!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr).trim());
        for (host, address) in [self, peer].into_iter().zip(addresses) {
            host.sh(&format!("ip address add {address}/24 dev {name} && ip link set {name} up"))?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The first process ends, and the kernel ends all others of its namespace.
        drop(self.lifeline.take());
        let _ = self.unshare.wait();
        cleanup::host_ended(self.processes);
    }
}

/// The three hosts.
pub struct Net {
    pub source: Host,
    pub destination: Host,
    pub clients: Host,
}

impl Net {
    /// Where clients find the server: at the source, and after the move at the destination.
    pub fn service() -> [SocketAddr; 2] {
        [SocketAddr::from(([10, 199, 1, 1], 6379)), SocketAddr::from(([10, 199, 2, 2], 6379))]
    }

    /// Where the stream arrives.
    pub fn stream() -> SocketAddr {
        SocketAddr::from(([10, 199, 3, 2], 7000))
    }

    pub fn new(link: Link) -> anyhow::Result<Self> {
        let net = Net { source: Host::new()?, destination: Host::new()?, clients: Host::new()? };
        let at = |net, host| Ipv4Addr::new(10, 199, net, host);
        net.source.connect(&net.clients, "clients1", [at(1, 1), at(1, 3)])?;
        net.destination.connect(&net.clients, "clients2", [at(2, 2), at(2, 3)])?;
        net.source.connect(&net.destination, "line", [at(3, 1), at(3, 2)])?;
        if link == Link::Gigabit {
            for host in [&net.source, &net.destination] {
                host.sh("tc qdisc add dev line root tbf rate 1gbit burst 1m latency 50ms")?;
            }
        }
        // High numbers, so that they are free on the destination.
        net.source.sh("echo 4000 > /proc/sys/kernel/ns_last_pid")?;
        Ok(net)
    }
}
