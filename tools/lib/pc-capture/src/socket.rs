//! What a socket has beside its address and options, whatever its family: filters, groups, what waits in it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use pc_image::{Datagram, FilterStep, Membership, Queue, SockOpt, SocketState};
use pc_sys::sockopt::{self, getsockopt_int, setsockopt};
use pc_sys::{datagram, multicast, netlink};

use crate::error::{Context, Result};
use crate::inet;
use crate::openfile::{Descriptor, Fds};
use crate::sockopts::{Class, Options, Unusual, Usual};

/// What is found of the sockets of a process, and what it takes to find it.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub usual: Usual,
    namespace: Option<File>,
    /// Groups that somebody is a member of; read when first needed.
    groups: Option<Vec<Group>>,
    /// Whether an address is this machine's.
    local: HashMap<IpAddr, bool>,
    pub states: Vec<SocketState>,
    pub queues: Vec<Queue>,
    /// What people should know.
    pub notices: Vec<String>,
}

/// A multicast group on a device.
#[derive(Debug)]
struct Group {
    device: u32,
    name: String,
    address: IpAddr,
}

impl Sockets {
    pub fn of(pid: i32) -> Result<Self> {
        let open = || Ok::<_, std::io::Error>((foreign_namespace(pid)?, foreign_namespace(pid)?));
        let (own, again) = open().of(pid, "opening its network namespace")?;
        let (groups, local) = (None, HashMap::new());
        let (states, queues, notices) = (vec![], vec![], vec![]);
        Ok(Self { usual: Usual::of(own), namespace: again, groups, local, states, queues, notices })
    }

    /// Keeps what was found of a socket.
    pub fn tell(&mut self, state: SocketState, datagrams: Vec<Datagram>) {
        const MOST: usize = 1 << 20;
        let file = state.file;
        if state.says_something() {
            self.states.push(state);
        }
        let (mut first, mut bytes) = (0, 0);
        let mut piece = Vec::new();
        for datagram in datagrams {
            bytes += datagram.bytes.len();
            piece.push(datagram);
            if bytes > MOST {
                let datagrams = std::mem::take(&mut piece);
                let count = datagrams.len() as u32;
                self.queues.push(Queue { file, first, datagrams });
                (first, bytes) = (first + count, 0);
            }
        }
        if !piece.is_empty() {
            self.queues.push(Queue { file, first, datagrams: piece });
        }
    }

    /// Whether an address is one of the machine, or of none in particular.
    pub fn is_here(&mut self, address: IpAddr) -> bool {
        if address.is_unspecified() || address.is_multicast() {
            return true;
        }
        let namespace = self.namespace.as_ref().map(AsFd::as_fd);
        *self.local.entry(address).or_insert_with(|| {
            let bound = netlink::within(namespace, || UdpSocket::bind((address, 0)));
            !bound.is_err_and(|err| err.kind() == std::io::ErrorKind::AddrNotAvailable)
        })
    }
}

/// The network namespace of a process, unless it is ours.
pub(crate) fn foreign_namespace(pid: i32) -> std::io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt as _;
    let theirs = File::open(format!("/proc/{pid}/ns/net"))?;
    let ours = fs::metadata("/proc/self/ns/net")?;
    Ok(Some(theirs).filter(|theirs| theirs.metadata().is_ok_and(|theirs| theirs.ino() != ours.ino())))
}

/// What a socket is and which of its options are not as usual; any number of threads may look at some.
pub(crate) fn unusual(usual: &Usual, socket: BorrowedFd<'_>) -> std::io::Result<Unusual> {
    let option = |name| getsockopt_int(socket, libc::SOL_SOCKET, name);
    let (family, kind) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?);
    let protocol = if family == libc::AF_UNIX { 0 } else { option(libc::SO_PROTOCOL)? };
    Ok(usual.differing(socket, Class { family, kind, protocol }))
}

/// The options of a socket that are to be sent, and what else it has of what every socket may have. Names those with
/// which it cannot be moved; `what` is "a UDP socket", say.
pub(crate) fn look(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    unusual: &Unusual,
    connected: bool,
    what: &str,
) -> Result<(Vec<SockOpt>, SocketState)> {
    let Options { options, devices, refused } = unusual.told(socket, connected);
    if let Some(first) = refused.first() {
        return fds.refuse(d, format!("{what} with {first}, which cannot be moved yet"));
    }
    let filter = filter(fds, d, socket, what)?;
    Ok((options, SocketState { devices, filter, ..SocketState::none(d.file) }))
}

fn filter(fds: &Fds<'_>, d: &Descriptor, socket: BorrowedFd<'_>, what: &str) -> Result<Vec<FilterStep>> {
    let steps = match sockopt::filter(socket) {
        Err(err) if err.raw_os_error() == Some(libc::EACCES) => {
            return fds.refuse(d, format!("{what} with a filter in eBPF, which cannot be moved yet"));
        }
        steps => steps.of(fds.pid, "reading a socket's filter")?,
    };
    let step =
        |step: sockopt::FilterStep| FilterStep { code: step.code, jt: step.jt, jf: step.jf, k: step.k };
    Ok(steps.into_iter().map(step).collect())
}

/// The groups that a socket is a member of.
pub(crate) fn memberships(fds: &mut Fds<'_>, socket: BorrowedFd<'_>, v6: bool) -> Result<Vec<Membership>> {
    let pid = fds.pid;
    let groups = fds.sockets.groups.get_or_insert_with(|| groups(pid));
    let mut found = Vec::new();
    for group in groups.iter().filter(|group| v6 || group.address.is_ipv4()) {
        let member = multicast::membership(socket, group.device, group.address);
        let Some(filter) = member.of(pid, "asking for a socket's multicast groups")? else { continue };
        found.push(Membership {
            device: group.name.clone().into_bytes(),
            group: octets(group.address),
            include: filter.include,
            sources: filter.sources.into_iter().map(octets).collect(),
        });
    }
    Ok(found)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The groups that sockets of a network namespace are members of. (A machine without IPv6 has no such file.)
fn groups(pid: i32) -> Vec<Group> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut found = groups_v4(&read("igmp"));
    found.extend(groups_v6(&read("igmp6")));
    found
}

/// Lines of a device, `1 lo : 1 V3`, and after each those of its groups, `010000E0 1 0:00000000 0`: address, members.
fn groups_v4(text: &str) -> Vec<Group> {
    const ALL_HOSTS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 1));
    let (mut device, mut found) = ((0, ""), Vec::new());
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if !line.starts_with(char::is_whitespace) {
            device = (first.parse().unwrap_or(0), second.trim_end_matches(':'));
            continue;
        }
        let Ok(address) = u32::from_str_radix(first, 16) else { continue };
        let address = IpAddr::from(address.to_ne_bytes());
        // The kernel is a member of one by itself.
        if address != ALL_HOSTS || second != "1" {
            found.push(Group { device: device.0, name: device.1.to_owned(), address });
        }
    }
    found
}

/// Lines `1 lo ff020000000000000000000000000001 1 0000000C 0`: device, group, members.
fn groups_v6(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut words = line.split_whitespace();
        let device = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        let address: [u8; 16] = u128::from_str_radix(words.next()?, 16).ok()?.to_be_bytes();
        let members = words.next()?;
        // The kernel is a member of those of all nodes, and of that of each own address.
        let own = address[..2] == [0xff, 1] || address[..2] == [0xff, 2];
        let address = IpAddr::from(address);
        (!own || members != "1").then_some(Group { device, name, address })
    };
    text.lines().filter_map(group).collect()
}

/// The bits of [`SocketState::shutdown`] of a UDP socket.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, events: i16, local: Option<SocketAddr>) -> u8 {
    let read = u8::from(events & libc::POLLRDHUP != 0);
    let both = events & libc::POLLHUP != 0;
    let write = both || local.is_some_and(|local| is_write_shut(socket, local));
    read | u8::from(write) << 1
}

fn is_write_shut(socket: BorrowedFd<'_>, local: SocketAddr) -> bool {
    // One that is connected takes that address, too.
    let to = inet::peer(socket).unwrap_or_else(|| reachable(local));
    to.port() != 0 && sockopt::is_write_shut(socket, &to)
}

/// An address by which a bound socket reaches itself.
fn reachable(mut local: SocketAddr) -> SocketAddr {
    if local.ip().is_unspecified() {
        local.set_ip(match local {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    local
}

/// Peeks from the front of what waits, whatever the process's own `SO_PEEK_OFF` is; on drop that is as it was.
pub(crate) struct PeekAt<'a> {
    socket: BorrowedFd<'a>,
    before: i32,
}

impl<'a> PeekAt<'a> {
    /// `offset` of -1 peeks at the front again and again, 0 goes on after what was peeked at.
    pub fn begin(socket: BorrowedFd<'a>, offset: i32) -> std::io::Result<Self> {
        // Sockets of a kind that has no such thing, as TCP's before Linux 6.9.
        let before = getsockopt_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
        if before != offset {
            setsockopt(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &offset.to_ne_bytes())?;
        }
        Ok(Self { socket, before })
    }
}

impl Drop for PeekAt<'_> {
    fn drop(&mut self) {
        // What was set before can be set again.
        let _ = setsockopt(self.socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &self.before.to_ne_bytes());
    }
}

/// What waits in a datagram socket.
pub(crate) struct Waiting {
    pub datagrams: Vec<Datagram>,
    /// A datagram has a sender with a name (of a Unix socket), or something beside its bytes.
    pub special: bool,
}

/// Reads what waits in a datagram socket, which keeps it.
pub(crate) fn waiting(socket: BorrowedFd<'_>) -> std::io::Result<Waiting> {
    const LONGEST: usize = 1 << 20;
    let mut found = Waiting { datagrams: Vec::new(), special: false };
    let _behind = PeekAt::begin(socket, 0)?;
    let mut room = vec![0u8; LONGEST];
    loop {
        let got = match datagram::peek(socket, &mut room) {
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return Ok(found),
            got => got?,
        };
        found.special |= got.from_named || got.cut;
        found.datagrams.push(Datagram { from: got.from, bytes: got.bytes });
    }
}

/// An option that holds only while a socket is bound.
pub(crate) fn flag(level: i32, name: i32) -> SockOpt {
    SockOpt { level, name, value: 1i32.to_ne_bytes().to_vec() }
}

/// Whether options have one set.
pub(crate) fn has(options: &[SockOpt], level: i32, name: i32) -> bool {
    options.iter().any(|o| (o.level, o.name) == (level, name) && o.value.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_device_but_for_those_of_the_kernel() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     2      V3\n\t\t\t\t030201EF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     2 0:00000000\t\t0\n";
        let found: Vec<_> =
            groups_v4(text).into_iter().map(|g| (g.device, g.name, g.address.to_string())).collect();
        assert_eq!(
            found,
            [(2, "eth0".into(), "239.1.2.3".into()), (2, "eth0".to_owned(), "224.0.0.1".to_owned())]
        );
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                    1    lo              ff050000000000000000000000000077     1 00000004 0\n";
        assert_eq!(groups_v6(text).len(), 1);
    }
}
