//! `TCP_REPAIR`: what a TCP connection knows, read and set without a packet on the wire (net/ipv4/tcp.c).
//!
//! While a socket is under repair the process itself gets `EPERM` from reading it, and closing it says nothing to the
//! peer. It needs CAP_NET_ADMIN over the network namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sockopt::{getsockopt, getsockopt_int, setsockopt};
use crate::{check, fcntl};

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = libc::TCP_REPAIR;
const TCP_REPAIR_QUEUE: i32 = libc::TCP_REPAIR_QUEUE;
const TCP_QUEUE_SEQ: i32 = libc::TCP_QUEUE_SEQ;
const TCP_REPAIR_OPTIONS: i32 = libc::TCP_REPAIR_OPTIONS;
const TCP_REPAIR_WINDOW: i32 = libc::TCP_REPAIR_WINDOW;
const TCP_TIMESTAMP: i32 = libc::TCP_TIMESTAMP;
/// Bytes of `struct tcp_repair_window`.
const WINDOW: usize = 20;

/// What becomes of repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It begins.
    On,
    /// It ends, and the peer is asked for its window.
    Off,
    /// It ends without a packet.
    OffSilently,
}

/// One of the two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What was received and not read.
    Receive = 1,
    /// What was written and not acknowledged.
    Send = 2,
}

/// Windows: `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Sequence number of the segment that announced the peer's window.
    pub snd_wl1: u32,
    /// The peer's window, in bytes.
    pub snd_wnd: u32,
    /// The largest that it ever announced.
    pub max_window: u32,
    /// Our window.
    pub rcv_wnd: u32,
    /// What was to be received next when we last announced it.
    pub rcv_wup: u32,
}

/// An option that the two ends agreed on: `TCPOPT_*` and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreed {
    /// The largest segment that the peer takes.
    Mss(u32),
    /// Shifts of the windows: the peer's, and ours.
    Scale {
        /// Of what the peer announces.
        send: u8,
        /// Of what we announce.
        receive: u8,
    },
    /// Selective acknowledgements.
    Sack,
    /// Timestamps.
    Timestamps,
}

/// Begins or ends repair.
pub fn repair(fd: BorrowedFd<'_>, what: Repair) -> io::Result<()> {
    let value: i32 = match what {
        Repair::On => 1,
        Repair::Off => 0,
        Repair::OffSilently => -1,
    };
    setsockopt(fd, TCP, TCP_REPAIR, &value.to_ne_bytes())
}

/// Whether a socket is under repair.
pub fn is_under_repair(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(getsockopt_int(fd, TCP, TCP_REPAIR)? != 0)
}

/// Chooses the queue that reading, writing and sequence numbers are about.
pub fn choose(fd: BorrowedFd<'_>, queue: Queue) -> io::Result<()> {
    setsockopt(fd, TCP, TCP_REPAIR_QUEUE, &(queue as i32).to_ne_bytes())
}

/// The number of the byte after the end of the chosen queue.
pub fn sequence(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt_int(fd, TCP, TCP_QUEUE_SEQ)? as u32)
}

/// Sets the number of the next byte of the chosen queue, of a socket that is not connected yet.
pub fn set_sequence(fd: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    setsockopt(fd, TCP, TCP_QUEUE_SEQ, &number.to_ne_bytes())
}

/// The first `len` bytes of the chosen queue, which keeps them; fewer if there are fewer.
pub fn peek(fd: BorrowedFd<'_>, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    if len == 0 {
        return Ok(bytes);
    }
    let (at, flags) = (bytes.as_mut_ptr().cast(), libc::MSG_PEEK | libc::MSG_DONTWAIT);
    // SAFETY: the kernel writes at most `len` bytes to `bytes`.
    let got = check(unsafe { libc::recv(fd.as_raw_fd(), at, len, flags) } as libc::c_long)?;
    bytes.truncate(got as usize);
    Ok(bytes)
}

/// Writes to a socket, without waiting and without a signal: to the chosen queue under repair, else to the peer. Gives
/// how many bytes were taken.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most `bytes.len()` bytes.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    check(sent as libc::c_long).map(|sent| sent as usize)
}

/// The windows.
pub fn window(fd: BorrowedFd<'_>) -> io::Result<Window> {
    let value = getsockopt(fd, TCP, TCP_REPAIR_WINDOW, WINDOW)?;
    let words: Vec<u32> =
        value.chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap_or_default())).collect();
    match words[..] {
        [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] => {
            Ok(Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup })
        }
        _ => Err(io::Error::other("windows of another length")),
    }
}

/// Sets the windows. `EINVAL` where they contradict each other or the sequence numbers.
pub fn set_window(fd: BorrowedFd<'_>, window: Window) -> io::Result<()> {
    let Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = window;
    let words = [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    setsockopt(fd, TCP, TCP_REPAIR_WINDOW, &value)
}

/// Sets what was agreed on, of a socket that is connected and has sent nothing.
pub fn set_agreed(fd: BorrowedFd<'_>, agreed: &[Agreed]) -> io::Result<()> {
    const TCPOPT_MSS: u32 = 2;
    const TCPOPT_WINDOW: u32 = 3;
    const TCPOPT_SACK_PERM: u32 = 4;
    const TCPOPT_TIMESTAMP: u32 = 8;
    let mut value = Vec::with_capacity(agreed.len() * 8);
    for option in agreed {
        let (code, number) = match *option {
            Agreed::Mss(mss) => (TCPOPT_MSS, mss),
            Agreed::Scale { send, receive } => (TCPOPT_WINDOW, u32::from(send) | u32::from(receive) << 16),
            Agreed::Sack => (TCPOPT_SACK_PERM, 0),
            Agreed::Timestamps => (TCPOPT_TIMESTAMP, 0),
        };
        value.extend(code.to_ne_bytes());
        value.extend(number.to_ne_bytes());
    }
    setsockopt(fd, TCP, TCP_REPAIR_OPTIONS, &value)
}

/// The largest segment that the peer takes, of a socket under repair.
pub fn mss(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt_int(fd, TCP, libc::TCP_MAXSEG)? as u32)
}

/// The clock of the connection's timestamps, as it is to be given to [`set_timestamp`].
pub fn timestamp(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt_int(fd, TCP, TCP_TIMESTAMP)? as u32)
}

/// Sets the clock of the connection's timestamps.
pub fn set_timestamp(fd: BorrowedFd<'_>, clock: u32) -> io::Result<()> {
    setsockopt(fd, TCP, TCP_TIMESTAMP, &clock.to_ne_bytes())
}

/// Bytes that can be read (`SIOCINQ`).
pub fn received(fd: BorrowedFd<'_>) -> io::Result<u32> {
    fcntl::unread(fd)
}

/// Sequence numbers from the first unacknowledged to the end (`SIOCOUTQ`): bytes, and the FIN where one was sent.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl_int(fd, libc::TIOCOUTQ)
}

/// How many of [`unacknowledged`] were never sent (`SIOCOUTQNSD`).
pub fn unsent(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    ioctl_int(fd, SIOCOUTQNSD)
}

/// Bounds the size of segments, before a socket is connected; 0 = no bound.
pub fn set_mss(fd: BorrowedFd<'_>, mss: u32) -> io::Result<()> {
    setsockopt(fd, TCP, libc::TCP_MAXSEG, &mss.to_ne_bytes())
}

fn ioctl_int(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u32> {
    let mut value = 0i32;
    // SAFETY: the request writes one integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) }.into())?;
    Ok(value as u32)
}

/// Whether nothing more can be received: the peer has ended, reading was shut down, or the connection is no more.
pub fn is_hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the kernel writes to one `pollfd`, and does not wait.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) }.into())?;
    Ok(poll.revents & libc::POLLRDHUP != 0)
}

/// What is needed of `struct tcp_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// `TCP_ESTABLISHED` (1) to `TCP_CLOSING` (11).
    pub state: u8,
    /// `TCPI_OPT_*`.
    pub options: u8,
    /// Shift of the peer's window.
    pub snd_wscale: u8,
    /// Shift of ours.
    pub rcv_wscale: u8,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listening socket: how many may.
    pub backlog: u32,
}

/// The state of a TCP socket (`TCP_INFO`).
pub fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let value = getsockopt(fd, TCP, libc::TCP_INFO, 104)?;
    if value.len() < 32 {
        return Err(io::Error::other("a tcp_info that is too short"));
    }
    let word = |at: usize| u32::from_ne_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
    Ok(Info {
        state: value[0],
        options: value[5],
        snd_wscale: value[6] & 15,
        rcv_wscale: value[6] >> 4,
        waiting: word(24),
        backlog: word(28),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn both_queues_of_a_connection_are_read_and_it_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"to be read").unwrap();
        let fd = server.as_fd();
        while received(fd).unwrap() < 10 {
            std::thread::yield_now();
        }
        let before = info(fd).unwrap();
        assert_eq!((before.state, before.options & 7), (1, 7));
        repair(fd, Repair::On).expect("as root");
        assert!(is_under_repair(fd).unwrap());
        choose(fd, Queue::Receive).unwrap();
        let end = sequence(fd).unwrap();
        assert_eq!(peek(fd, 100).unwrap(), b"to be read");
        choose(fd, Queue::Send).unwrap();
        assert_eq!((unacknowledged(fd).unwrap(), peek(fd, 0).unwrap()), (0, vec![]));
        let windows = window(fd).unwrap();
        assert!(windows.rcv_wup.wrapping_sub(end) as i32 <= 0 && windows.snd_wnd > 0);
        assert!(mss(fd).unwrap() > 500);
        timestamp(fd).unwrap();
        repair(fd, Repair::OffSilently).unwrap();
        let mut read = [0; 10];
        server.read_exact(&mut read).unwrap();
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}
