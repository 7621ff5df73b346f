//! A process with sockets of every kind, every option of which is another than a new socket's, and with what sockets may
//! have beside options; it reads them back after a move and then uses them.
//!
//! `guest-sockets REPORT FOLDER`: see `pc_tests::guest`. Works in FOLDER.

use std::io::{Error, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::ExitCode;

use pc_image::sockopt::{Fate, SocketOption, TABLE};
use pc_sys::multicast::{self, Filter};
use pc_sys::sockopt::{self, FilterStep, getsockopt, setsockopt};

/// Family, type and protocol of a socket.
type Class = (i32, i32, i32);

const UDP4: Class = (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
const UDP6: Class = (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
const TCP4: Class = (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
const TCP6: Class = (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP);
const STREAM: Class = (libc::AF_UNIX, libc::SOCK_STREAM, 0);
const DATAGRAM: Class = (libc::AF_UNIX, libc::SOCK_DGRAM, 0);

/// Those that this kernel, or any socket of these kinds, does not let be set, or that are not to be set here.
const SKIPPED: [&str; 18] = [
    // They change what the others here can be told from.
    "SO_LOCK_FILTER",
    "SO_BINDTODEVICE",
    // Needs a cgroup of version 2 with a limit.
    "SO_RESERVE_MEM",
    // Needs a Wi-Fi device, or is not for these sockets.
    "SO_WIFI_STATUS",
    "SO_NOFCS",
    "IPV6_RTHDR",
    "IPV6_ROUTER_ALERT_ISOLATE",
    "SO_PASSSEC",
    "IP_PASSSEC",
    "SO_INCOMING_CPU",
    // A UDP socket with it is refused.
    "SO_ZEROCOPY",
    // What the kernel derives from others.
    "SO_BUF_LOCK",
    "SO_TIMESTAMP",
    "SO_TIMESTAMPNS",
    "SO_TIMESTAMPING",
    "UDP_ENCAP",
    "SO_PREFER_BUSY_POLL",
    "SO_SELECT_ERR_QUEUE",
];

fn new((family, kind, protocol): Class) -> OwnedFd {
    // SAFETY: makes a descriptor, which is owned once.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    assert!(fd >= 0, "socket: {}", Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn readable(class: Class) -> impl Iterator<Item = &'static SocketOption> {
    let is = move |option: &&SocketOption| {
        matches!(option.fate, Fate::Carried(_) | Fate::Device(_)) && option.of.include(class.0, class.2)
    };
    TABLE.iter().filter(is)
}

/// Values that an option may take, beside small numbers.
fn candidates(option: &SocketOption) -> Vec<Vec<u8>> {
    let own: &[&[u8]] = match option.label {
        "SO_LINGER" => &[&[1, 0, 0, 0, 5, 0, 0, 0]],
        "SO_RCVTIMEO" | "SO_SNDTIMEO" => &[&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
        "SO_TIMESTAMPING_NEW" => &[&[0x18, 0, 0, 0, 0, 0, 0, 0]],
        "SO_TXTIME" => &[&[1, 0, 0, 0, 1, 0, 0, 0]],
        "SO_MAX_PACING_RATE" => &[&[0, 0, 0, 1, 0, 0, 0, 0]],
        "TCP_CONGESTION" => &[b"cubic", b"reno"],
        "TCP_FASTOPEN_KEY" => &[b"0123456789abcdef"],
        "IP_OPTIONS" => &[&[1, 1, 1, 0]],
        "IP_LOCAL_PORT_RANGE" => &[&[0x30, 0x75, 0x40, 0x9c]],
        "IP_MULTICAST_IF" => &[&[127, 0, 0, 1]],
        "IPV6_HOPOPTS" | "IPV6_DSTOPTS" | "IPV6_RTHDRDSTOPTS" => &[&[0, 0, 1, 4, 0, 0, 0, 0]],
        "IP_UNICAST_IF" | "IPV6_UNICAST_IF" => &[&[0, 0, 0, 1]],
        "TCP_MAXSEG" => &[&[0xe8, 3, 0, 0]],
        "SO_SNDBUF" | "SO_RCVBUF" => &[&[0, 0, 1, 0]],
        _ => &[],
    };
    let numbers = [1i32, 0, 2, 5, 100, 1000, 100_000, 0x0402].map(|n| n.to_ne_bytes().to_vec());
    own.iter().map(|value| value.to_vec()).chain(numbers).collect()
}

/// Sets all options that a socket can have. Names those that stay as they are.
fn set_all(fd: &OwnedFd, class: Class) -> Vec<&'static str> {
    let fresh = new(class);
    let value =
        |fd: &OwnedFd, option: &SocketOption| getsockopt(fd.as_fd(), option.level, option.name, 2048).ok();
    let mut same = Vec::new();
    for option in readable(class).filter(|option| !SKIPPED.contains(&option.label)) {
        let usual = value(&fresh, option);
        let changed = candidates(option).iter().any(|candidate| {
            setsockopt(fd.as_fd(), option.level, option.name, candidate).is_ok() && value(fd, option) != usual
        });
        // Not of Unix sockets since Linux 6.14.
        let unix = class.0 == libc::AF_UNIX && option.label == "SO_REUSEPORT";
        if !changed && usual.is_some() && !unix {
            same.push(option.label);
        }
    }
    same
}

/// Sockets that were made, by what they are.
struct Made {
    all: Vec<(String, OwnedFd, Class)>,
    /// Options that could not be set.
    same: Vec<String>,
}

impl Made {
    fn keep(&mut self, what: &str, fd: OwnedFd, class: Class) {
        self.all.push((what.to_owned(), fd, class));
    }

    fn with_options(&mut self, what: &str, class: Class) -> RawFd {
        let fd = new(class);
        self.same
            .extend(set_all(&fd, class).into_iter().map(|label| format!("{what}: {label} cannot be set")));
        let number = fd.as_raw_fd();
        self.keep(what, fd, class);
        number
    }

    fn get(&self, what: &str) -> &OwnedFd {
        self.all.iter().find(|(name, ..)| name == what).map(|(_, fd, _)| fd).expect("a socket")
    }
}

fn bind(fd: RawFd, address: &str) {
    let address = sockopt::sockaddr(&address.parse().expect("an address"));
    // SAFETY: an address of its own length.
    let done = unsafe { libc::bind(fd, address.as_ptr().cast(), address.len() as u32) };
    assert_eq!(done, 0, "bind: {}", Error::last_os_error());
}

fn listen(fd: RawFd) {
    // SAFETY: two numbers.
    assert_eq!(unsafe { libc::listen(fd, 7) }, 0, "listen: {}", Error::last_os_error());
}

fn set(fd: &impl AsFd, level: i32, name: i32, value: i32) {
    setsockopt(fd.as_fd(), level, name, &value.to_ne_bytes()).expect("an option");
}

fn make() -> Made {
    let mut made = Made { all: Vec::new(), same: Vec::new() };
    for (what, class, address) in [
        ("udp4", UDP4, "127.0.0.1:0"),
        ("udp6", UDP6, "[::1]:0"),
        ("tcp4", TCP4, "127.0.0.1:0"),
        ("tcp6", TCP6, "[::1]:0"),
    ] {
        made.with_options(&format!("{what} new"), class);
        let fd = made.with_options(&format!("{what} bound"), class);
        bind(fd, address);
    }
    let fd = made.with_options("tcp4 listening", TCP4);
    bind(fd, "127.0.0.1:0");
    listen(fd);
    made.with_options("unix stream", STREAM);
    made.with_options("unix datagram", DATAGRAM);
    ports(&mut made);
    groups_and_filters(&mut made);
    queues(&mut made);
    ended(&mut made);
    files(&mut made);
    made
}

/// Addresses that were taken by options that are cleared since.
fn ports(made: &mut Made) {
    let (first, second) = (new(TCP4), new(TCP4));
    set(&first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
    set(&second, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
    bind(first.as_raw_fd(), "127.0.0.1:0");
    let first = TcpListener::from(first);
    bind(second.as_raw_fd(), &first.local_addr().expect("an address").to_string());
    listen(first.as_raw_fd());
    listen(second.as_raw_fd());
    set(&first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 0);
    set(&second, libc::SOL_SOCKET, libc::SO_REUSEPORT, 0);
    made.keep("port of two", first.into(), TCP4);
    made.keep("port of two again", second, TCP4);
    let free = new(UDP4);
    set(&free, libc::IPPROTO_IP, libc::IP_FREEBIND, 1);
    bind(free.as_raw_fd(), "203.0.113.9:0");
    set(&free, libc::IPPROTO_IP, libc::IP_FREEBIND, 0);
    made.keep("foreign address", free, UDP4);
    let late = new(TCP4);
    set(&late, libc::IPPROTO_IP, 24, 1);
    bind(late.as_raw_fd(), "127.0.0.1:0");
    set(&late, libc::IPPROTO_IP, 24, 0);
    made.keep("address without a port", late, TCP4);
}

const GROUP4: [u8; 4] = [239, 1, 2, 3];

fn groups_and_filters(made: &mut Made) {
    let member = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let sources = vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
    let filter = Filter { include: true, sources };
    multicast::join(member.as_fd(), 1, GROUP4.into(), &filter).expect("a group");
    let all = Filter { include: false, sources: vec![] };
    multicast::join(member.as_fd(), 1, [239, 1, 2, 4].into(), &all).expect("a group");
    made.keep("member", member.into(), UDP4);
    let filtered = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // Takes what is longer than 8 bytes of header and 3 of its own.
    let steps = [
        FilterStep { code: 0x80, jt: 0, jf: 0, k: 0 },
        FilterStep { code: 0x25, jt: 0, jf: 1, k: 11 },
        FilterStep { code: 6, jt: 0, jf: 0, k: 0xffff },
        FilterStep { code: 6, jt: 0, jf: 0, k: 0 },
    ];
    sockopt::attach_filter(filtered.as_fd(), &steps).expect("a filter");
    set(&filtered, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1);
    made.keep("filtered", filtered.into(), UDP4);
}

fn queues(made: &mut Made) {
    let unread = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for datagram in [&b"one"[..], b"", b"three"] {
        sender.send_to(datagram, unread.local_addr().expect("an address")).expect("sent");
    }
    set(&unread, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 2);
    made.keep("unread", unread.into(), UDP4);
    made.keep("sender", sender.into(), UDP4);
    let shut = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    shut.connect(shut.local_addr().expect("an address")).expect("connected");
    // SAFETY: two numbers.
    assert_eq!(unsafe { libc::shutdown(shut.as_raw_fd(), libc::SHUT_WR) }, 0);
    made.keep("shut", shut.into(), UDP4);
    let path = std::env::current_dir().expect("a folder").join("unread");
    let unread = UnixDatagram::bind(&path).expect("a socket");
    let sender = UnixDatagram::unbound().expect("a socket");
    sender.send_to(b"four", &path).expect("sent");
    sender.send_to(b"fifth", &path).expect("sent");
    made.keep("unread unix", unread.into(), DATAGRAM);
}

/// TCP connections that both ends have ended, one with bytes that were not read.
fn ended(made: &mut Made) {
    for (what, bytes) in [("ended", &b""[..]), ("ended unread", b"to be read")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let mut peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let (own, _) = listener.accept().expect("a connection");
        peer.write_all(bytes).expect("written");
        peer.shutdown(Shutdown::Write).expect("ended");
        own.shutdown(Shutdown::Write).expect("ended");
        peer.read_to_end(&mut Vec::new()).expect("its end");
        drop(peer);
        while pc_sys::tcp_repair::info(own.as_fd()).expect("TCP_INFO").state != 7 {
            std::thread::yield_now();
        }
        made.keep(what, own.into(), TCP4);
    }
}

fn files(made: &mut Made) {
    let folder = std::env::current_dir().expect("a folder");
    let removed = UnixListener::bind(folder.join("removed")).expect("a socket");
    std::fs::remove_file("removed").expect("removed");
    std::fs::write("removed", "another's").expect("a file");
    made.keep("removed", removed.into(), STREAM);
    let renamed = UnixListener::bind(folder.join("renamed")).expect("a socket");
    std::fs::rename("renamed", "elsewhere").expect("renamed");
    made.keep("renamed", renamed.into(), STREAM);
}

fn name(fd: RawFd) -> String {
    let (mut name, mut len) = ([0u8; 128], 128);
    // SAFETY: room for as many bytes as `len` says.
    let got = unsafe { libc::getsockname(fd, name.as_mut_ptr().cast(), &mut len) };
    format!("{got} {:?}", &name[..len as usize])
}

fn readings(made: &Made) -> Vec<String> {
    let mut all = made.same.clone();
    for (what, fd, class) in &made.all {
        // Addresses of a connection that has ended are gone.
        if !what.starts_with("ended") {
            all.push(format!("{what}: {}", name(fd.as_raw_fd())));
        }
        for option in readable(*class).filter(|option| !what.starts_with("ended") || !is_tuned(option)) {
            if let Ok(value) = getsockopt(fd.as_fd(), option.level, option.name, 2048) {
                all.push(format!("{what}: {} = {value:?}", option.label));
            }
        }
        all.push(format!("{what}: filter {:?}", sockopt::filter(fd.as_fd())));
        for group in [GROUP4.into(), IpAddr::from([239, 1, 2, 4])] {
            all.push(format!("{what}: {group} {:?}", multicast::membership(fd.as_fd(), 1, group).ok()));
        }
    }
    all
}

/// What the kernel changes of a connection by itself.
fn is_tuned(option: &SocketOption) -> bool {
    ["SO_SNDBUF", "SO_RCVBUF", "SO_INCOMING_CPU", "TCP_MAXSEG", "TCP_WINDOW_CLAMP"].contains(&option.label)
}

fn last(made: &Made) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |good: bool, what: &str| {
        if !good {
            wrong.push(what.to_owned());
        }
    };
    let udp = |what: &str| UdpSocket::from(made.get(what).try_clone().expect("a duplicate"));
    let mut bytes = [0; 64];
    let (unread, sender) = (udp("unread"), udp("sender").local_addr().expect("an address"));
    unread.set_nonblocking(true).expect("set");
    for expected in [&b"one"[..], b"", b"three"] {
        let got = unread.recv_from(&mut bytes);
        check(
            got.as_ref().is_ok_and(|(len, from)| &bytes[..*len] == expected && *from == sender),
            &format!("a datagram: {got:?}"),
        );
    }
    check(unread.recv(&mut bytes).is_err(), "a datagram too many");
    let sent = udp("shut").send(b"x");
    check(sent.is_err_and(|err| err.raw_os_error() == Some(libc::EPIPE)), "a UDP socket that was shut down");
    let unread = UnixDatagram::from(made.get("unread unix").try_clone().expect("a duplicate"));
    for expected in [&b"four"[..], b"fifth"] {
        check(unread.recv(&mut bytes).is_ok_and(|len| &bytes[..len] == expected), "a Unix datagram");
    }
    for (what, expected) in [("ended", &b""[..]), ("ended unread", b"to be read")] {
        let events = sockopt::events(made.get(what).as_fd()).expect("poll");
        let wanted = libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP;
        check(events == wanted, &format!("{what}: events {events:#x}"));
        let mut stream = TcpStream::from(made.get(what).try_clone().expect("a duplicate"));
        let mut got = Vec::new();
        let read = stream.read_to_end(&mut got);
        check(read.is_ok() && got == expected, &format!("{what}: {read:?} {got:?}"));
        let written = stream.write(b"x");
        check(written.is_err_and(|err| err.raw_os_error() == Some(libc::EPIPE)), &format!("{what}: writing"));
    }
    check(
        std::fs::read("removed").is_ok_and(|text| text == b"another's"),
        "a file at a removed socket's name",
    );
    check(!std::path::Path::new("renamed").exists(), "a renamed socket at its old name");
    check(std::os::unix::net::UnixStream::connect("elsewhere").is_ok(), "a renamed socket at its new name");
    let filtered = udp("filtered");
    let to = filtered.local_addr().expect("an address");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    sender.send_to(b"abc", to).and_then(|_| sender.send_to(b"abcd", to)).expect("sent");
    check(filtered.recv(&mut bytes).is_ok_and(|len| len == 4), "a filter");
    wrong
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, folder] = &args[..] else { panic!("usage: guest-sockets REPORT FOLDER") };
    std::env::set_current_dir(folder).expect("the folder");
    let made = make();
    assert!(made.same.is_empty(), "{:#?}", made.same);
    pc_tests::guest::asked_twice(report, || readings(&made), || last(&made))
}
