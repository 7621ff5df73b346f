//! Packets of chosen TCP connections held back: a table of nf_tables that belongs to a netlink socket, so that it goes
//! with whoever holds that.
//!
//! What is held back is dropped: TCP sends it again. In both directions the packets of the connections are, and of
//! listening sockets the requests for new connections (SYN). The rules look the packets up in sets, so that their number
//! does not matter; without elements they let everything pass.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::netlink::{Attributes, Batch, Netlink};

const NETLINK_NETFILTER: i32 = 12;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const DELTABLE: u16 = NEWTABLE | 2;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
const NEWSET: u16 = NEWTABLE | 9;
const NEWSETELEM: u16 = NEWTABLE | 12;
const DELSETELEM: u16 = NEWTABLE | 14;
const NFPROTO_INET: u8 = 1;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_APPEND: u16 = 0x800;
const NFT_TABLE_F_OWNER: u32 = 2;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_OUT: u32 = 3;
/// Before connection tracking.
const PRIORITY: i32 = -300;
/// The first of the registers of 4 bytes.
const REGISTER: u32 = 8;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// Elements in one message: an attribute has at most 64 KiB.
const PER_MESSAGE: usize = 500;

/// The two ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// That of the process.
    pub local: SocketAddr,
    /// The other.
    pub peer: SocketAddr,
}

/// A table that holds packets back. Dropped, everything passes again.
#[derive(Debug)]
pub struct NetworkLock {
    netlink: Netlink,
    table: Table,
}

/// What is held back, by a table of a name.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    connections: BTreeSet<Ends>,
    listeners: BTreeSet<SocketAddr>,
}

/// The sets: name, the type of the keys for nft(8) to show them (types of 6 bits one after the other), and their length.
const SETS: [(&str, u32, u32); 5] = [
    ("connections4", ADDRESS4 << 18 | PORT << 12 | ADDRESS4 << 6 | PORT, 16),
    ("connections6", ADDRESS6 << 18 | PORT << 12 | ADDRESS6 << 6 | PORT, 40),
    ("listeners4", ADDRESS4 << 6 | PORT, 8),
    ("listeners6", ADDRESS6 << 6 | PORT, 20),
    ("listeners", PORT, 2),
];
const ADDRESS4: u32 = 7;
const ADDRESS6: u32 = 8;
const PORT: u32 = 13;

impl NetworkLock {
    /// Makes the table `name` with its rules, in the caller's network namespace or in `namespace`. Nothing is held back
    /// yet. `EOPNOTSUPP` or `EPROTONOSUPPORT`: this kernel has no nf_tables (or one without owners of tables, before 5.12);
    /// `EEXIST`: somebody has such a table.
    pub fn prepare(name: &str, namespace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER, namespace)?;
        let table = Table { name: name.to_owned(), connections: BTreeSet::new(), listeners: BTreeSet::new() };
        send(&netlink, |batch| table.create(batch, NFT_TABLE_F_OWNER))?;
        Ok(Self { netlink, table })
    }

    /// Holds these back, too.
    pub fn hold(
        &mut self,
        connections: impl IntoIterator<Item = Ends>,
        listeners: impl IntoIterator<Item = SocketAddr>,
    ) -> io::Result<()> {
        let mut fresh = Table {
            name: self.table.name.clone(),
            connections: connections.into_iter().map(Ends::on_the_wire).collect(),
            listeners: listeners.into_iter().map(on_the_wire).collect(),
        };
        fresh.connections.retain(|ends| !self.table.connections.contains(ends));
        fresh.listeners.retain(|listener| !self.table.listeners.contains(listener));
        if fresh.connections.is_empty() && fresh.listeners.is_empty() {
            return Ok(());
        }
        send(&self.netlink, |batch| fresh.elements(batch))?;
        self.table.connections.append(&mut fresh.connections);
        self.table.listeners.append(&mut fresh.listeners);
        Ok(())
    }

    /// Lets everything pass. Microseconds, while it takes the kernel some 25 ms to take a table away: that is for [`NetworkLock::remove`], or for
    /// dropping the lock, when nobody waits any more.
    pub fn pass(&self) -> io::Result<()> {
        send(&self.netlink, |batch| flush(batch, &self.table.name))
    }

    /// Lets pass what a table holds back that [`NetworkLock::leave`] has left for the same connections.
    pub fn pass_left(&self) -> io::Result<()> {
        unless_absent(send(&self.netlink, |batch| flush(batch, &self.table.name_left())))
    }

    /// Takes the table away, and one that was left for the same connections.
    pub fn remove(self) -> io::Result<()> {
        unless_absent(send(&self.netlink, |batch| delete(batch, &self.table.name_left())))?;
        send(&self.netlink, |batch| delete(batch, &self.table.name))
    }

    /// A second table holds the same connections back (requests for new ones are let through), and stays when we are
    /// gone, until somebody deletes it. Gives its name, which depends on nothing but the connections: it takes the place of one
    /// that was left before.
    pub fn leave(&self) -> io::Result<String> {
        let name = self.table.name_left();
        let table = Table { name, listeners: BTreeSet::new(), connections: self.table.connections.clone() };
        send(&self.netlink, |batch| {
            // None that is not there can be taken away.
            put(batch, NEWTABLE, NLM_F_CREATE, |a| {
                a.text(1, &table.name).number(2, 0);
            });
            delete(batch, &table.name);
            table.create(batch, 0);
            table.elements(batch);
        })?;
        Ok(table.name)
    }

    /// How many connections are held back.
    pub fn connections(&self) -> usize {
        self.table.connections.len()
    }
}

/// Takes the table away that [`NetworkLock::leave`] has left for these connections, if there is one.
pub fn remove_left(connections: &[Ends], namespace: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let connections = connections.iter().map(|ends| ends.on_the_wire()).collect();
    let table = Table { name: String::new(), connections, listeners: BTreeSet::new() };
    let netlink = Netlink::open(NETLINK_NETFILTER, namespace)?;
    unless_absent(send(&netlink, |batch| delete(batch, &table.name_left())))
}

/// An IPv4 address that an IPv6 socket shows as its own kind of address goes over the wire as what it is.
fn on_the_wire(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl Ends {
    fn on_the_wire(self) -> Self {
        Self { local: on_the_wire(self.local), peer: on_the_wire(self.peer) }
    }
}

/// Sends messages as one transaction.
fn send(netlink: &Netlink, messages: impl FnOnce(&mut Batch)) -> io::Result<()> {
    let generation = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
    let mut batch = Batch::default();
    batch.message(NFNL_MSG_BATCH_BEGIN, 0, &generation, |_| {});
    messages(&mut batch);
    let last = batch.len() - 1;
    batch.message(NFNL_MSG_BATCH_END, 0, &generation, |_| {});
    netlink.send(batch, last)
}

fn put(batch: &mut Batch, kind: u16, flags: u16, attributes: impl FnOnce(&mut Attributes)) {
    batch.message(kind, flags, &[NFPROTO_INET, 0, 0, 0], attributes);
}

fn unless_absent(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|err| if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) })
}

/// Takes all elements out of the sets.
fn flush(batch: &mut Batch, name: &str) {
    for (set, ..) in SETS {
        put(batch, DELSETELEM, 0, |a| {
            a.text(1, name).text(2, set);
        });
    }
}

fn delete(batch: &mut Batch, name: &str) {
    put(batch, DELTABLE, 0, |a| {
        a.text(1, name);
    });
}

impl Table {
    /// A name made of the connections (FNV-1a over their keys).
    fn name_left(&self) -> String {
        let keys = self.connections.iter().flat_map(|ends| [key(ends.peer), key(ends.local)].concat());
        let hash = keys.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("pc-held-{hash:016x}")
    }

    fn create(&self, batch: &mut Batch, flags: u32) {
        put(batch, NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, |a| {
            a.text(1, &self.name).number(2, flags);
        });
        for (id, (set, kind, len)) in (1..).zip(SETS) {
            put(batch, NEWSET, NLM_F_CREATE, |a| {
                a.text(1, &self.name).text(2, set).number(3, 0).number(4, kind).number(5, len).number(10, id);
            });
        }
        for (chain, hook) in [("in", NF_INET_PRE_ROUTING), ("out", NF_INET_LOCAL_OUT)] {
            put(batch, NEWCHAIN, NLM_F_CREATE, |a| {
                a.text(1, &self.name).text(3, chain).text(7, "filter").number(5, 1);
                a.nested(4, |hooked| {
                    hooked.number(1, hook).number(2, PRIORITY as u32);
                });
            });
        }
        self.rule(batch, "in", |rule| rule.family(IPV4).source().destination().drop_if_in("connections4"));
        self.rule(batch, "in", |rule| rule.family(IPV6).source().destination().drop_if_in("connections6"));
        self.rule(batch, "out", |rule| rule.family(IPV4).destination().source().drop_if_in("connections4"));
        self.rule(batch, "out", |rule| rule.family(IPV6).destination().source().drop_if_in("connections6"));
        self.rule(batch, "in", |rule| rule.family(IPV4).request().destination().drop_if_in("listeners4"));
        self.rule(batch, "in", |rule| rule.family(IPV6).request().destination().drop_if_in("listeners6"));
        self.rule(batch, "in", |rule| rule.any_family().request().destination_port().drop_if_in("listeners"));
    }

    fn rule(&self, batch: &mut Batch, chain: &str, expressions: impl FnOnce(Rule<'_, '_>)) {
        put(batch, NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |a| {
            a.text(1, &self.name).text(2, chain).nested(4, |list| {
                expressions(Rule { list, register: REGISTER, address: (0, 0, 0) });
            });
        });
    }

    fn elements(&self, batch: &mut Batch) {
        let mut keys: [Vec<Vec<u8>>; 5] = Default::default();
        for Ends { local, peer } in &self.connections {
            keys[usize::from(local.is_ipv6())].push([key(*peer), key(*local)].concat());
        }
        for listener in &self.listeners {
            match listener.ip().is_unspecified() {
                true => keys[4].push(listener.port().to_be_bytes().to_vec()),
                false => keys[2 + usize::from(listener.is_ipv6())].push(key(*listener)),
            }
        }
        for ((set, ..), keys) in SETS.iter().zip(keys) {
            for some in keys.chunks(PER_MESSAGE) {
                put(batch, NEWSETELEM, NLM_F_CREATE, |a| {
                    a.text(1, &self.name)
                        .text(2, set)
                        .nested(3, |list| some.iter().for_each(|k| element(list, k)));
                });
            }
        }
    }
}

fn element(list: &mut Attributes, key: &[u8]) {
    list.nested(1, |element| {
        element.nested(1, |data| {
            data.bytes(1, key);
        });
    });
}

/// An address and a port as they lie in registers.
fn key(addr: SocketAddr) -> Vec<u8> {
    let mut key = match addr.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    key.extend(addr.port().to_be_bytes());
    key.extend([0; 2]);
    key
}

/// A family of addresses: its number, where source and destination stand in its header, and their length.
type Family = (u8, u32, u32, u32);
const IPV4: Family = (2, 12, 16, 4);
const IPV6: Family = (10, 8, 24, 16);

/// The expressions of a rule. What they load lies in one register behind the other, as a key.
struct Rule<'a, 'b> {
    list: &'a mut Attributes<'b>,
    register: u32,
    /// Of source and destination where they stand, and their length.
    address: (u32, u32, u32),
}

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes)) {
        self.list.nested(1, |expression| {
            expression.text(1, name).nested(2, data);
        });
    }

    /// Goes on if what `key` of meta gives is this byte.
    fn meta_is(&mut self, key: u32, value: u8) {
        self.expression("meta", |a| {
            a.number(1, REGISTER).number(2, key);
        });
        self.is(value);
    }

    /// Goes on if the first register holds this byte.
    fn is(&mut self, value: u8) {
        self.expression("cmp", |a| {
            a.number(1, REGISTER).number(2, 0).nested(3, |data| {
                data.bytes(1, &[value]);
            });
        });
    }

    /// TCP of one family.
    fn family(mut self, (number, source, destination, len): Family) -> Self {
        const NFT_META_NFPROTO: u32 = 15;
        self.meta_is(NFT_META_NFPROTO, number);
        self.address = (source, destination, len);
        self.any_family()
    }

    /// TCP.
    fn any_family(mut self) -> Self {
        const NFT_META_L4PROTO: u32 = 16;
        self.meta_is(NFT_META_L4PROTO, libc::IPPROTO_TCP as u8);
        self
    }

    /// A request for a new connection: SYN without ACK.
    fn request(mut self) -> Self {
        const FLAGS: u32 = 13;
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        self.payload(REGISTER, TRANSPORT, FLAGS, 1);
        self.expression("bitwise", |a| {
            a.number(1, REGISTER).number(2, REGISTER).number(3, 1);
            a.nested(4, |mask| {
                mask.bytes(1, &[SYN | ACK]);
            });
            a.nested(5, |xor| {
                xor.bytes(1, &[0]);
            });
        });
        self.is(SYN);
        self
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, len: u32) {
        self.expression("payload", |a| {
            a.number(1, register).number(2, base).number(3, offset).number(4, len);
        });
    }

    fn load(mut self, base: u32, offset: u32, len: u32) -> Self {
        self.payload(self.register, base, offset, len);
        self.register += len.div_ceil(4);
        self
    }

    /// The source: address and port.
    fn source(self) -> Self {
        let (source, _, len) = self.address;
        self.load(NETWORK, source, len).load(TRANSPORT, 0, 2)
    }

    /// The destination: address and port.
    fn destination(self) -> Self {
        let (_, destination, len) = self.address;
        self.load(NETWORK, destination, len).destination_port()
    }

    fn destination_port(self) -> Self {
        self.load(TRANSPORT, 2, 2)
    }

    fn drop_if_in(mut self, set: &str) {
        const NFT_REG_VERDICT: u32 = 0;
        const NF_DROP: u32 = 0;
        self.expression("lookup", |a| {
            a.text(1, set).number(2, REGISTER);
        });
        self.expression("immediate", |a| {
            a.number(1, NFT_REG_VERDICT).nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.number(1, NF_DROP);
                });
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    fn namespace() {
        // Nobody else's packets are touched: the thread of each test has a network namespace of its own.
        // SAFETY: unshare takes an integer, and changes nothing but this thread's network namespace.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into()).expect("as root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
    }

    fn pair(address: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        (listener, client, server)
    }

    fn ends(of: &TcpStream) -> Ends {
        Ends { local: of.local_addr().unwrap(), peer: of.peer_addr().unwrap() }
    }

    fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).is_ok()
    }

    #[test]
    fn both_directions_of_the_connections_named_are_held_back_and_no_others() {
        namespace();
        for address in ["127.0.0.1", "::1"] {
            let (_l, mut client, mut server) = pair(address);
            let (_k, mut other, mut its_server) = pair(address);
            let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
            assert!(arrives(&mut client, &mut server) && arrives(&mut server, &mut client));
            lock.hold([ends(&server)], []).unwrap();
            lock.hold([ends(&server)], []).unwrap();
            assert_eq!(lock.connections(), 1);
            assert!(!arrives(&mut client, &mut server) && !arrives(&mut server, &mut client));
            assert!(arrives(&mut other, &mut its_server) && arrives(&mut its_server, &mut other));
            lock.pass().unwrap();
            // What was held back is sent again.
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            server.read_exact(&mut [0]).unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn more_connections_than_a_socket_has_room_for_are_held_back_at_once() {
        namespace();
        let (_l, mut client, mut server) = pair("127.0.0.1");
        let others = (0..20_000).map(|i: u32| {
            let local = SocketAddr::from((i.to_be_bytes(), 80));
            Ends { local, peer: SocketAddr::from(([127, 0, 0, 2], 1000)) }
        });
        let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
        lock.hold(others.chain([ends(&server)]), []).unwrap();
        assert_eq!(lock.connections(), 20_001);
        assert!(!arrives(&mut client, &mut server));
        lock.leave().unwrap();
        lock.remove().unwrap();
        assert!(arrives(&mut server, &mut client));
    }

    #[test]
    fn a_table_goes_with_its_owner_and_one_that_was_left_stays_until_it_is_deleted() {
        namespace();
        let (_l, mut client, mut server) = pair("127.0.0.1");
        let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
        let twice = NetworkLock::prepare("pc-sys-test", None).unwrap_err();
        assert!(matches!(twice.raw_os_error(), Some(libc::EEXIST | libc::EPERM)), "{twice}");
        lock.hold([ends(&server)], []).unwrap();
        assert!(lock.leave().unwrap().starts_with("pc-held-"));
        lock.leave().expect("it takes the place of the first");
        drop(lock);
        assert!(!arrives(&mut client, &mut server));
        // Whoever holds the same connections later takes it away.
        let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
        lock.hold([ends(&server)], []).unwrap();
        // An error of one batch is not taken for that of the next.
        assert!(send(&lock.netlink, |batch| flush(batch, "absent")).is_err());
        lock.pass_left().unwrap();
        lock.pass().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        server.read_exact(&mut [0]).unwrap();
        lock.remove().unwrap();
        assert!(arrives(&mut server, &mut client));
    }

    #[test]
    fn requests_for_connections_wait_while_their_listener_is_held() {
        namespace();
        for (bound, to) in
            [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]
        {
            let listener = TcpListener::bind((bound, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
            lock.hold([], [listener.local_addr().unwrap()]).unwrap();
            let began = Instant::now();
            let to = SocketAddr::new(to.parse().unwrap(), port);
            let error = TcpStream::connect_timeout(&to, Duration::from_millis(100)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{bound}");
            assert!(began.elapsed() >= Duration::from_millis(100));
            drop(lock);
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        }
    }

    #[test]
    fn many_connections_are_held_back_at_once() {
        namespace();
        let peer = |i: u32| SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 1000));
        let local = SocketAddr::from(([127, 0, 0, 1], 80));
        let mut lock = NetworkLock::prepare("pc-sys-test", None).unwrap();
        lock.hold((0..5000).map(|i| Ends { local, peer: peer(i) }), []).unwrap();
        lock.hold((4990..5010).map(|i| Ends { local, peer: peer(i) }), []).unwrap();
        assert_eq!(lock.connections(), 5010);
    }
}
