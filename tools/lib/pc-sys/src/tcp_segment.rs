//! One TCP segment as if the peer of a connection had sent it to this machine, through a raw socket (raw(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::check;

/// A segment without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Who seems to send it.
    pub from: SocketAddr,
    /// An address of this machine.
    pub to: SocketAddr,
    /// Its number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledged: u32,
    /// The window that it tells, already shifted.
    pub window: u16,
    /// It is the sender's last.
    pub fin: bool,
}

const TCP_HEADER: usize = 20;
const FIN: u8 = 1;
const ACK: u8 = 16;

/// Sends a segment to a socket of this machine: it goes over the loopback device, wherever the sender is. Both
/// addresses are of one family.
pub fn deliver(segment: &Segment) -> io::Result<()> {
    match (segment.from.ip().to_canonical(), segment.to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => deliver_v4(segment, from, to),
        (IpAddr::V6(from), IpAddr::V6(to)) => deliver_v6(segment, from, to),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "addresses of two families")),
    }
}

fn deliver_v4(segment: &Segment, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<()> {
    let tcp = tcp(
        segment,
        &[&from.octets()[..], &to.octets(), &[0, 6], &(TCP_HEADER as u16).to_be_bytes()].concat(),
    );
    // The kernel fills in length, identification and checksum.
    let head = [&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0][..], &from.octets(), &to.octets()].concat();
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.octets()) },
        sin_zero: [0; 8],
    };
    send(libc::AF_INET, &[head, tcp].concat(), &to)
}

fn deliver_v6(segment: &Segment, from: Ipv6Addr, to: Ipv6Addr) -> io::Result<()> {
    let len = (TCP_HEADER as u32).to_be_bytes();
    let tcp = tcp(segment, &[&from.octets()[..], &to.octets(), &len, &[0, 0, 0, 6]].concat());
    let len = (TCP_HEADER as u16).to_be_bytes();
    let head = [&[0x60, 0, 0, 0, len[0], len[1], 6, 64][..], &from.octets(), &to.octets()].concat();
    let scope = match segment.to {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let to = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as u16,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: to.octets() },
        sin6_scope_id: scope,
    };
    send(libc::AF_INET6, &[head, tcp].concat(), &to)
}

/// The header, with its checksum over `pseudo` and itself.
fn tcp(segment: &Segment, pseudo: &[u8]) -> Vec<u8> {
    let flags = ACK | if segment.fin { FIN } else { 0 };
    let mut header = Vec::with_capacity(TCP_HEADER);
    header.extend(segment.from.port().to_be_bytes());
    header.extend(segment.to.port().to_be_bytes());
    header.extend(segment.sequence.to_be_bytes());
    header.extend(segment.acknowledged.to_be_bytes());
    header.extend([(TCP_HEADER as u8 / 4) << 4, flags]);
    header.extend(segment.window.to_be_bytes());
    header.extend([0; 4]);
    let sum = checksum(&[pseudo, &header].concat());
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The checksum of the internet protocols, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn send<A>(family: i32, packet: &[u8], to: &A) -> io::Result<()> {
    // SAFETY: socket takes three integers.
    let fd = check(
        unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) }.into(),
    )?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let (at, len) = (std::ptr::from_ref(to).cast(), size_of::<A>() as libc::socklen_t);
    // SAFETY: the kernel reads the packet and an address of `len` bytes, which is a `sockaddr_in` or `sockaddr_in6`.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, at, len) };
    check(sent as libc::c_long).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp_repair::{self, Queue, Repair};
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    #[test]
    fn a_fin_in_the_peers_name_ends_what_can_be_read() {
        for address in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, from) = listener.accept().unwrap();
            let fd = server.as_fd();
            tcp_repair::repair(fd, Repair::On).expect("as root");
            let number = |queue| {
                tcp_repair::choose(fd, queue).unwrap();
                tcp_repair::sequence(fd).unwrap()
            };
            let (sequence, acknowledged) = (number(Queue::Receive), number(Queue::Send));
            tcp_repair::repair(fd, Repair::OffSilently).unwrap();
            let to = server.local_addr().unwrap();
            deliver(&Segment { from, to, sequence, acknowledged, window: 500, fin: true }).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0, "{address}");
            assert_eq!(tcp_repair::info(server.as_fd()).unwrap().state, 8, "CLOSE-WAIT");
            drop(client);
        }
    }
}
