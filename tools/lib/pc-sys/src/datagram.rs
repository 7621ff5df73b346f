//! What waits in a datagram socket, looked at (recvmsg(2) with `MSG_PEEK`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// Room for a sender's address.
const STORAGE: usize = 128;

/// A datagram that stays in its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its sender, of an IPv4 or IPv6 socket.
    pub from: Option<SocketAddr>,
    /// Its sender is a Unix socket that is bound to a name.
    pub from_named: bool,
    /// It is longer than the room for it, or has something beside its bytes: credentials, descriptors.
    pub cut: bool,
}

/// The next datagram, without waiting: `WouldBlock` if there is none. `room` is what its bytes may take.
pub fn peek(fd: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<Peeked> {
    let mut name = [0u8; STORAGE];
    let mut into = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all zeros are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = STORAGE as libc::socklen_t;
    message.msg_iov = &raw mut into;
    message.msg_iovlen = 1;
    // SAFETY: the kernel writes at most `room.len()` bytes to `room` and STORAGE bytes to `name`, which both live on.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    let len = check(got as libc::c_long)? as usize;
    let name = &name[..(message.msg_namelen as usize).min(STORAGE)];
    Ok(Peeked {
        bytes: room[..len.min(room.len())].to_vec(),
        from: address(name),
        // The family alone is the address of a socket without a name.
        from_named: family(name) == Some(libc::AF_UNIX) && name.len() > 2,
        cut: message.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0,
    })
}

fn family(name: &[u8]) -> Option<i32> {
    Some(i32::from(u16::from_ne_bytes(*name.first_chunk()?)))
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(name.get(2..4)?.try_into().ok()?);
    match family(name)? {
        libc::AF_INET => Some((Ipv4Addr::from(<[u8; 4]>::try_from(name.get(4..8)?).ok()?), port).into()),
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(name.get(4..8)?.try_into().ok()?);
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(name.get(8..24)?).ok()?);
            let scope = u32::from_ne_bytes(name.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

    #[test]
    fn a_datagram_is_told_with_its_sender_and_stays() {
        for here in ["127.0.0.1:0", "[::1]:0"] {
            let (to, from) = (UdpSocket::bind(here).unwrap(), UdpSocket::bind(here).unwrap());
            from.send_to(b"abc", to.local_addr().unwrap()).unwrap();
            for _ in 0..2 {
                let got = peek(to.as_fd(), &mut [0; 8]).unwrap();
                assert_eq!((got.bytes, got.from), (b"abc".to_vec(), from.local_addr().ok()));
            }
        }
    }

    #[test]
    fn a_unix_sender_with_a_name_is_told_from_one_without() {
        let name = |what: &str| UnixAddr::from_abstract_name(format!("pc-sys {what} {}", std::process::id()));
        let to = UnixDatagram::bind_addr(&name("to").unwrap()).unwrap();
        let named = UnixDatagram::bind_addr(&name("from").unwrap()).unwrap();
        for (from, is_named) in [(UnixDatagram::unbound().unwrap(), false), (named, true)] {
            from.send_to_addr(b"x", &name("to").unwrap()).unwrap();
            let got = peek(to.as_fd(), &mut [0; 8]).unwrap();
            assert_eq!((got.from_named, got.from, got.cut), (is_named, None, false));
            to.recv(&mut [0; 8]).unwrap();
        }
        assert_eq!(peek(to.as_fd(), &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
