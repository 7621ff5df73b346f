//! A packet as if somebody else had sent it to this machine, through a raw socket (raw(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::check;
use crate::sockopt::sockaddr;

/// Sends a packet to a socket of this machine: it goes over the loopback device, wherever the sender is. Both addresses
/// are of one family. `body` gives the `len` bytes after the IP header, with a checksum that begins with what it is given.
pub(crate) fn deliver(
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    len: usize,
    body: impl FnOnce(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => deliver_v4(from, to, protocol, len, body),
        (IpAddr::V6(from), IpAddr::V6(ip)) => {
            let scope = match to {
                SocketAddr::V6(v6) => v6.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            deliver_v6(from, (ip, scope), protocol, len, body)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "addresses of two families")),
    }
}

fn deliver_v4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    len: usize,
    body: impl FnOnce(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let len = (len as u16).to_be_bytes();
    let body = body(&[&from.octets()[..], &to.octets(), &[0, protocol], &len].concat());
    // The kernel fills in length, identification and checksum.
    let head =
        [&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0][..], &from.octets(), &to.octets()].concat();
    send(libc::AF_INET, &[head, body].concat(), &sockaddr(&SocketAddr::new(to.into(), 0)))
}

fn deliver_v6(
    from: Ipv6Addr,
    (to, scope): (Ipv6Addr, u32),
    protocol: u8,
    len: usize,
    body: impl FnOnce(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let long = (len as u32).to_be_bytes();
    let body = body(&[&from.octets()[..], &to.octets(), &long, &[0, 0, 0, protocol]].concat());
    let len = (len as u16).to_be_bytes();
    let head = [&[0x60, 0, 0, 0, len[0], len[1], protocol, 64][..], &from.octets(), &to.octets()].concat();
    let to = std::net::SocketAddrV6::new(to, 0, 0, scope);
    send(libc::AF_INET6, &[head, body].concat(), &sockaddr(&to.into()))
}

/// The checksum of the internet protocols.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn send(family: i32, packet: &[u8], to: &[u8]) -> io::Result<()> {
    // SAFETY: socket takes three integers.
    let fd = check(
        unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) }.into(),
    )?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let (at, len) = (to.as_ptr().cast(), to.len() as libc::socklen_t);
    // SAFETY: the kernel reads the packet and an address of `len` bytes.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, at, len) };
    check(sent as libc::c_long).map(drop)
}
