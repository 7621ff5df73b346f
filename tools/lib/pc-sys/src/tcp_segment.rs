//! One TCP segment as if the peer of a connection had sent it to this machine, through a raw socket (raw(7)).

use std::io;
use std::net::SocketAddr;

use crate::packet;

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
    /// The window that it announces, already shifted.
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
    packet::deliver(segment.from, segment.to, libc::IPPROTO_TCP as u8, TCP_HEADER, |pseudo| {
        tcp(segment, pseudo)
    })
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
    let sum = packet::checksum(&[pseudo, &header].concat());
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
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
