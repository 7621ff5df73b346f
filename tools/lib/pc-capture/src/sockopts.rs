//! Options of sockets, as far as they differ from what a new socket has.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pc_image::SockOpt;
use pc_sys::sockopt::getsockopt;

const SO_SNDBUF: i32 = libc::SO_SNDBUF;
const SO_RCVBUF: i32 = libc::SO_RCVBUF;

/// Options that every socket may have. Buffer sizes come as the kernel tells them: twice what was asked for.
const SOCKET: [i32; 17] = [
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_KEEPALIVE,
    libc::SO_LINGER,
    libc::SO_BROADCAST,
    libc::SO_OOBINLINE,
    libc::SO_DONTROUTE,
    libc::SO_PRIORITY,
    libc::SO_MARK,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_BUSY_POLL,
    libc::SO_ZEROCOPY,
    libc::SO_BINDTODEVICE,
];
const UNIX: [i32; 2] = [libc::SO_PASSCRED, libc::SO_PASSSEC];
const TCP: [i32; 12] = [
    libc::TCP_NODELAY,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_CONGESTION,
    libc::TCP_FASTOPEN,
    libc::TCP_NOTSENT_LOWAT,
];
const UDP: [i32; 2] = [libc::UDP_CORK, libc::UDP_SEGMENT];
const IPV4: [i32; 9] = [
    libc::IP_TOS,
    libc::IP_TTL,
    libc::IP_MTU_DISCOVER,
    libc::IP_RECVERR,
    libc::IP_PKTINFO,
    libc::IP_TRANSPARENT,
    libc::IP_FREEBIND,
    libc::IP_MULTICAST_TTL,
    libc::IP_MULTICAST_LOOP,
];
const IPV6: [i32; 8] = [
    libc::IPV6_V6ONLY,
    libc::IPV6_TCLASS,
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_RECVERR,
    libc::IPV6_RECVPKTINFO,
    libc::IPV6_MULTICAST_HOPS,
    libc::IPV6_MULTICAST_LOOP,
];

/// Those of a TCP or UDP socket.
pub(crate) fn inet(fd: BorrowedFd<'_>, family: i32, protocol: i32) -> Vec<SockOpt> {
    let (v6, tcp) = (family == libc::AF_INET6, protocol == libc::IPPROTO_TCP);
    let fresh = socket(
        if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet },
        if tcp { SockType::Stream } else { SockType::Datagram },
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let fresh = fresh.as_ref().ok().map(AsFd::as_fd);
    let mut found = Vec::new();
    collect(fd, fresh, libc::SOL_SOCKET, &SOCKET, &mut found);
    buffers(fd, fresh, &mut found);
    collect(fd, fresh, libc::IPPROTO_IP, settable(&IPV4, tcp), &mut found);
    if v6 {
        collect(fd, fresh, libc::IPPROTO_IPV6, settable(&IPV6, tcp), &mut found);
    }
    let own: &[i32] = if tcp { &TCP } else { &UDP };
    collect(fd, fresh, protocol, own, &mut found);
    found
}

/// The kernel keeps a packet's TTL among the multicast options of a TCP connection, and lets nobody set them there: the
/// last two of the tables.
fn settable(names: &[i32], tcp: bool) -> &[i32] {
    &names[..names.len() - if tcp { 2 } else { 0 }]
}

/// Those of a Unix socket of type `kind`.
pub(crate) fn unix(fd: BorrowedFd<'_>, kind: i32) -> Vec<SockOpt> {
    let kind = match kind {
        libc::SOCK_STREAM => SockType::Stream,
        libc::SOCK_DGRAM => SockType::Datagram,
        _ => SockType::SeqPacket,
    };
    let fresh = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None);
    let fresh = fresh.as_ref().ok().map(AsFd::as_fd);
    let mut found = Vec::new();
    let options: Vec<i32> =
        SOCKET.iter().chain(&UNIX).copied().filter(|o| *o != libc::SO_BINDTODEVICE).collect();
    collect(fd, fresh, libc::SOL_SOCKET, &options, &mut found);
    buffers(fd, fresh, &mut found);
    found
}

/// Adds the options whose value is not that of a new socket. One that this socket does not have is not told.
fn collect(
    fd: BorrowedFd<'_>,
    fresh: Option<BorrowedFd<'_>>,
    level: i32,
    names: &[i32],
    found: &mut Vec<SockOpt>,
) {
    for &name in names {
        let Ok(value) = getsockopt(fd, level, name, 64) else { continue };
        let usual = fresh.and_then(|fresh| getsockopt(fresh, level, name, 64).ok());
        if usual.as_ref() != Some(&value) {
            found.push(SockOpt { level, name, value });
        }
    }
}

/// Sizes that the program has set itself are locked against the kernel's own tuning (`SO_BUF_LOCK`); others change with
/// the traffic and are not told. The bits of the lock: 1 for sending, 2 for receiving.
fn buffers(fd: BorrowedFd<'_>, fresh: Option<BorrowedFd<'_>>, found: &mut Vec<SockOpt>) {
    let Ok(lock) = getsockopt(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, 4) else { return };
    let bits = lock.first().copied().unwrap_or(0);
    for (bit, name) in [(1, SO_SNDBUF), (2, SO_RCVBUF)] {
        if bits & bit != 0 {
            collect(fd, fresh, libc::SOL_SOCKET, &[name], found);
        }
    }
}
