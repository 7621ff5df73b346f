//! sock_diag(7): what the kernel reports of TCP sockets beside their options.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::netlink::Netlink;
use crate::sockopt::{getsockopt, network_namespace};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Asks for what a diagnosing program gets: `1 << (INET_DIAG_INFO - 1)`. Keys come with it.
const WITH_INFO: u8 = 2;
const INET_DIAG_MD5SIG: u16 = 18;
/// Sockets that are only bound (Linux 6.8), of which the kernel reports no keys.
const TCPF_BOUND_INACTIVE: u32 = 1 << 13;
/// Bytes of `struct inet_diag_msg`, and where the cookie of its socket stands.
const MESSAGE: usize = 72;
const COOKIE: std::ops::Range<usize> = 44..52;

/// Whether a TCP socket of `family` with this local port has keys of TCP-MD5 (`TCP_MD5SIG`, net/ipv4/tcp_diag.c). `None`:
/// the kernel does not list it, as it is neither connected nor listening. Needs CAP_NET_ADMIN over its network namespace.
pub fn has_md5_keys(socket: BorrowedFd<'_>, family: u8, port: u16) -> io::Result<Option<bool>> {
    let cookie = getsockopt(socket, libc::SOL_SOCKET, libc::SO_COOKIE, 8)?;
    let namespace = network_namespace(socket)?;
    let all = Netlink::open(NETLINK_SOCK_DIAG, Some(namespace.as_fd()))?
        .dump(SOCK_DIAG_BY_FAMILY, &request(family, port))?;
    let of_it = all.iter().find(|message| message.get(COOKIE) == Some(&cookie));
    Ok(of_it.map(|message| has_attribute(message.get(MESSAGE..).unwrap_or_default(), INET_DIAG_MD5SIG)))
}

/// `struct inet_diag_req_v2`: TCP sockets with this local port, in any state that is reported.
fn request(family: u8, port: u16) -> Vec<u8> {
    let mut request = vec![family, libc::IPPROTO_TCP as u8, WITH_INFO, 0];
    request.extend((!TCPF_BOUND_INACTIVE).to_ne_bytes());
    request.extend(port.to_be_bytes());
    // Any peer, any address, any device, any cookie.
    request.extend([0; 38]);
    request.extend([0xff; 8]);
    request
}

fn has_attribute(mut attributes: &[u8], kind: u16) -> bool {
    while let [l0, l1, k0, k1, ..] = *attributes {
        if u16::from_ne_bytes([k0, k1]) == kind {
            return true;
        }
        let len = usize::from(u16::from_ne_bytes([l0, l1])).max(4).next_multiple_of(4);
        attributes = attributes.get(len..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockopt::setsockopt;
    use std::net::{TcpListener, TcpStream};

    /// `struct tcp_md5sig` with a key for 127.0.0.2.
    fn key() -> Vec<u8> {
        let mut key = vec![0; 216];
        key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        key[4..8].copy_from_slice(&[127, 0, 0, 2]);
        key[130..132].copy_from_slice(&3u16.to_ne_bytes());
        key[136..139].copy_from_slice(b"abc");
        key
    }

    #[test]
    fn the_kernel_lists_listeners_and_connections_with_their_keys() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = TcpStream::connect(local).unwrap();
        let (server, _) = listener.accept().unwrap();
        let asked = |socket: BorrowedFd<'_>, port| has_md5_keys(socket, libc::AF_INET as u8, port).unwrap();
        let client_port = client.local_addr().unwrap().port();
        for (socket, port) in
            [(listener.as_fd(), local.port()), (server.as_fd(), local.port()), (client.as_fd(), client_port)]
        {
            assert_eq!(asked(socket, port), Some(false));
        }
        for socket in [listener.as_fd(), client.as_fd()] {
            setsockopt(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &key()).unwrap();
        }
        assert_eq!(asked(listener.as_fd(), local.port()), Some(true), "as root");
        assert_eq!(asked(client.as_fd(), client_port), Some(true));
        assert_eq!(asked(server.as_fd(), local.port()), Some(false));
    }

    #[test]
    fn attributes_of_no_length_are_passed_over() {
        assert!(!has_attribute(&[0, 0, 1, 0, 0, 0], 18));
        assert!(has_attribute(&[5, 0, 1, 0, 9, 0, 0, 0, 4, 0, 18, 0], 18));
    }
}
