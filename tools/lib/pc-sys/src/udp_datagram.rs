//! A UDP datagram as if somebody else had sent it to a socket of this machine.

use std::io;
use std::net::SocketAddr;

use crate::packet;

const UDP_HEADER: usize = 8;

/// Sends a datagram in the name of `from` to `to`, an address of this machine.
pub fn deliver(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let len = UDP_HEADER + bytes.len();
    let whole = u16::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    packet::deliver(from, to, libc::IPPROTO_UDP as u8, len, |pseudo| {
        let head = [from.port().to_be_bytes(), to.port().to_be_bytes(), whole.to_be_bytes(), [0; 2]];
        let mut datagram = [head.as_flattened(), bytes].concat();
        // A sum of 0 means that there is none.
        let sum = match packet::checksum(&[pseudo, &datagram].concat()) {
            0 => u16::MAX,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        datagram
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn a_datagram_arrives_with_its_bytes_from_whom_it_names() {
        for (from, here) in [("198.51.100.7:99", "127.0.0.1:0"), ("[2001:db8::7]:99", "[::1]:0")] {
            let (from, socket) = (from.parse().unwrap(), UdpSocket::bind(here).unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            for bytes in [&b"odd"[..], b"", &[7; 9000]] {
                deliver(from, socket.local_addr().unwrap(), bytes).expect("as root");
                let mut got = [0; 10_000];
                let (len, by) = socket.recv_from(&mut got).unwrap();
                assert_eq!((&got[..len], by), (bytes, from));
            }
        }
    }
}
