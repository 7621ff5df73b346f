//! TCP connections that go on: built under repair, with their packets held back, and let go right before the process runs.
//!
//! A socket under repair is connected without a word to its peer, and closed without one, so that a restore that fails
//! leaves the connection as it was.
//!
//! What was sent and not acknowledged is queued under repair, so that the kernel takes an acknowledgement of it for one:
//! the peer may have received it all. Without any measured round trip the kernel would wait for seconds before it sends
//! that again; so one byte goes before it that the peer has surely acknowledged already. When repair ends, the peer is
//! asked for its window, and whatever it answers acknowledges that byte: that is a measurement, and tail loss probes
//! follow it within milliseconds. What was never sent is sent after that.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pc_image::{Inet, SockOpt, TcpConnection, TcpState, sockopt};
use pc_sys::nftables::{Ends, NetworkLock};
use pc_sys::sockopt::{getsockopt_int, setsockopt};
use pc_sys::tcp_repair::{self, Agreed, Queue, Repair, Window};
use pc_sys::tcp_segment::{Segment, deliver};
use socket2::{SockAddr, SockRef, Socket};

use crate::error::{Context, RebuildError};
use crate::inet::new;
use crate::settings::{self, Settings};
use crate::socket::set_option;

/// How long the addresses may come after the process.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the kernel may take to deliver a segment to this very machine.
const DELIVERY: Duration = Duration::from_secs(1);
/// The largest segment that `TCP_MAXSEG` takes (include/net/tcp.h); loopback's are larger.
const MAX_TCP_WINDOW: u32 = 32767;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_CLOSING: u8 = 11;

/// The connections of the process, and what holds their packets back.
#[derive(Debug, Default)]
pub struct Connections {
    lock: Option<NetworkLock>,
    all: Vec<Connection>,
    /// Addresses that are to be this machine's before the process runs.
    addresses: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    tcp: TcpConnection,
    /// Options that are to be set when all else is done.
    last: Vec<SockOpt>,
    /// The size of its send buffer, before there had to be room in it.
    send_buffer: i32,
    /// It is transparent in its own right (ip(7)).
    transparent: bool,
    /// Not its process's yet: closing it says nothing.
    ours: bool,
}

impl Connections {
    /// Makes the rules that hold packets back, as soon as they know of any.
    pub fn prepare(settings: &Settings) -> Result<Self, RebuildError> {
        if !settings.tcp_established || settings.network_lock == settings::NetworkLock::Skip {
            return Ok(Self::default());
        }
        let made = NetworkLock::prepare(&format!("pc-restore-{}", std::process::id()), None);
        let lock = made.or_else(|err| match err.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT) => {
                Err(RebuildError::Unsupported(
                    "holding back the packets of TCP connections needs nf_tables, which this kernel lacks (or \
                     --network-lock skip, and some other way)"
                        .into(),
                ))
            }
            _ => Err(err).what("preparing to hold back the packets of TCP connections"),
        })?;
        Ok(Self { lock: Some(lock), ..Self::default() })
    }

    /// Holds back the packets of these sockets. To be done before the first of them is made.
    pub fn hold(&mut self, sockets: &[&Inet]) -> Result<(), RebuildError> {
        let Some(lock) = &mut self.lock else { return Ok(()) };
        let connections = sockets.iter().filter_map(|inet| match &inet.state {
            pc_image::InetState::Connected(tcp) => Some(Ends { local: tcp.local, peer: tcp.peer }),
            _ => None,
        });
        let listeners = sockets.iter().filter_map(|inet| match inet.state {
            pc_image::InetState::Listen { local, .. } => Some(local),
            _ => None,
        });
        lock.hold(connections, listeners).what("holding back packets")
    }

    /// An address that may come later.
    pub fn expect(&mut self, address: SocketAddr) {
        if !self.addresses.iter().any(|other| other.ip() == address.ip()) {
            self.addresses.push(address);
        }
    }

    /// A connection under repair; all that is missing is what would be seen by its peer.
    pub fn build(&mut self, inet: &Inet, tcp: &TcpConnection) -> Result<OwnedFd, RebuildError> {
        let socket = new(inet)?;
        let fd = socket.as_fd();
        let between = || format!("the TCP connection from {} to {}", tcp.local, tcp.peer);
        tcp_repair::repair(fd, Repair::On).what_of(|| format!("putting {} under repair", between()))?;
        let (last, first): (Vec<_>, Vec<_>) = inet.options.iter().cloned().partition(is_last);
        first.iter().try_for_each(|option| set_option(&socket, option))?;
        let transparent = is_transparent(&socket)?;
        set_transparent(&socket, true)?;
        socket.bind(&SockAddr::from(tcp.local)).what_of(|| format!("binding {}", between()))?;
        number(fd, Queue::Receive, tcp.receive.sequence).what("numbering what is received")?;
        number(fd, Queue::Send, tcp.send.sequence.wrapping_sub(1)).what("numbering what is sent")?;
        // Without it the kernel would go by the smallest segment that there is. It takes no more than this here, and the
        // true one below.
        tcp_repair::set_mss(fd, tcp.options.mss.min(MAX_TCP_WINDOW))
            .what("bounding the segments of a TCP connection")?;
        socket.connect(&SockAddr::from(tcp.peer)).what_of(|| format!("making {} anew", between()))?;
        tcp_repair::set_agreed(fd, &agreed(tcp)).what("setting the options of a TCP connection")?;
        if let Some(clock) = tcp.options.timestamp {
            tcp_repair::set_timestamp(fd, clock).what("setting the clock of a TCP connection")?;
        }
        tcp_repair::set_mss(fd, 0).what("unbounding the segments of a TCP connection")?;
        fill(fd, Queue::Receive, &[&tcp.receive.bytes])
            .what_of(|| format!("filling the queue of what is received on {}", between()))?;
        tcp_repair::set_window(fd, window(tcp))
            .what_of(|| format!("setting the windows of {}", between()))?;
        let send_buffer = fill(fd, Queue::Send, &[&[0], sent(tcp).0])
            .what_of(|| format!("filling the queue of what is sent on {}", between()))?;
        let again = socket.try_clone().what("duplicating a socket")?.into();
        self.expect(tcp.local);
        let tcp = tcp.clone();
        self.all.push(Connection { socket: again, tcp, last, transparent, send_buffer, ours: true });
        Ok(socket.into())
    }

    /// Waits until all addresses are this machine's.
    pub fn await_addresses(&self) -> Result<(), RebuildError> {
        let began = Instant::now();
        for address in &self.addresses {
            let mut probe = *address;
            probe.set_port(0);
            let absent = || {
                UdpSocket::bind(probe).is_err_and(|err| err.kind() == std::io::ErrorKind::AddrNotAvailable)
            };
            while absent() {
                if began.elapsed() > PATIENCE {
                    let what = format!("the address {} is not one of this machine", address.ip());
                    return Err(RebuildError::Unsupported(what));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Packets pass, and every connection goes on. What the peers see from here on they would see end, too, were we to
    /// fail: so on failure the sockets go back under repair.
    pub fn go_on(&mut self) -> Result<(), RebuildError> {
        if let Some(lock) = &self.lock {
            lock.pass_left().what("letting packets pass")?;
            lock.pass().what("letting packets pass")?;
        }
        self.all.iter_mut().try_for_each(Connection::go_on)
    }

    /// The process runs: the sockets are its own. What is left of the rules takes a while to go.
    pub fn done(&mut self) -> Rules {
        self.all.iter_mut().for_each(|connection| connection.ours = false);
        Rules(self.lock.take())
    }
}

/// Rules that hold nothing back any more.
#[derive(Debug)]
#[must_use]
pub struct Rules(Option<NetworkLock>);

impl Rules {
    /// Takes them away. They are empty: if that fails, they do no harm.
    pub fn remove(self) {
        let _ = self.0.map(NetworkLock::remove);
    }
}

impl Connection {
    fn go_on(&mut self) -> Result<(), RebuildError> {
        let (socket, tcp) = (SockRef::from(&self.socket), &self.tcp);
        let what = || format!("going on with the TCP connection from {} to {}", tcp.local, tcp.peer);
        if !self.transparent {
            set_transparent(&self.socket, false)?;
        }
        if matches!(tcp.state, TcpState::CloseWait | TcpState::LastAck) {
            self.receive_end(TCP_CLOSE_WAIT)?;
        }
        let ended = tcp.state.end_sent();
        let end_was_sent = ended && tcp.unsent == 0;
        if end_was_sent {
            tcp_repair::choose(self.socket.as_fd(), Queue::Send).what_of(what)?;
            socket.shutdown(std::net::Shutdown::Write).what_of(what)?;
        }
        tcp_repair::repair(self.socket.as_fd(), Repair::Off).what_of(what)?;
        self.send_rest().what_of(what)?;
        if ended && !end_was_sent {
            socket.shutdown(std::net::Shutdown::Write).what_of(what)?;
        }
        if tcp.state == TcpState::Closing {
            self.receive_end(TCP_CLOSING)?;
        }
        if tcp.shut_read {
            socket.shutdown(std::net::Shutdown::Read).what_of(what)?;
        }
        self.settle_buffers().what_of(what)?;
        self.last.iter().try_for_each(|option| set_option(&self.socket, option))
    }

    /// What the process had written and nobody has sent.
    fn send_rest(&self) -> std::io::Result<()> {
        let rest = sent(&self.tcp).1;
        make_room_in(self.socket.as_fd(), libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, self.tcp.send.bytes.len())?;
        put(self.socket.as_fd(), rest)
    }

    /// The buffers have the sizes that they had, and the kernel may change them again; those that the process has chosen
    /// are set after this.
    fn settle_buffers(&self) -> std::io::Result<()> {
        let fd = self.socket.as_fd();
        if getsockopt_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF)? > self.send_buffer {
            // The kernel doubles it.
            let size = (self.send_buffer / 2).to_ne_bytes();
            setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size)?;
        }
        setsockopt(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, &0i32.to_ne_bytes())
    }

    /// The end of what the peer had sent: it has seen it acknowledged, and will not send it again.
    fn receive_end(&self, state: u8) -> Result<(), RebuildError> {
        let TcpConnection { local, peer, receive, send, window, options, .. } = &self.tcp;
        let shift = options.scale.map_or(0, |(send, _)| send);
        let segment = Segment {
            from: *peer,
            to: *local,
            sequence: receive.sequence.wrapping_add(receive.bytes.len() as u32),
            acknowledged: send.sequence,
            window: u16::try_from(window.snd_wnd >> shift).unwrap_or(u16::MAX),
            fin: true,
        };
        let what = "giving a TCP connection the end that its peer had sent";
        deliver(&segment).what(what)?;
        let began = Instant::now();
        while tcp_repair::info(self.socket.as_fd()).what(what)?.state != state {
            if began.elapsed() > DELIVERY {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).what(what);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.ours {
            // One that is under repair already stays so; one that has ended needs it no more.
            let _ = tcp_repair::repair(self.socket.as_fd(), Repair::On);
        }
    }
}

/// Whether an option is set last: repair changes it, or it holds bytes back.
fn is_last(option: &SockOpt) -> bool {
    sockopt::is_last(option.level, option.name)
        || (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR)
}

/// Lets a socket have an address that is not this machine's yet, and send from it. (Setting IPv4's option is setting
/// IPv6's: they are one bit.)
fn set_transparent(socket: &impl AsFd, on: bool) -> Result<(), RebuildError> {
    let value = i32::from(on).to_ne_bytes();
    setsockopt(socket.as_fd(), libc::IPPROTO_IP, libc::IP_TRANSPARENT, &value)
        .what("letting a socket have an address that comes later")
}

fn is_transparent(socket: &impl AsFd) -> Result<bool, RebuildError> {
    let value = getsockopt_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_TRANSPARENT);
    Ok(value.what("asking whether a socket is transparent")? != 0)
}

/// Does something with a socket that may have an address that is not this machine's yet.
pub fn early(socket: &Socket, work: impl FnOnce() -> Result<(), RebuildError>) -> Result<(), RebuildError> {
    let own = is_transparent(socket)?;
    set_transparent(socket, true)?;
    work()?;
    if own { Ok(()) } else { set_transparent(socket, false) }
}

fn number(fd: BorrowedFd<'_>, queue: Queue, sequence: u32) -> std::io::Result<()> {
    tcp_repair::choose(fd, queue)?;
    tcp_repair::set_sequence(fd, sequence)
}

fn agreed(tcp: &TcpConnection) -> Vec<Agreed> {
    let options = &tcp.options;
    let mut agreed = vec![Agreed::Mss(options.mss)];
    agreed.extend(options.scale.map(|(send, receive)| Agreed::Scale { send, receive }));
    agreed.extend(options.sack.then_some(Agreed::Sack));
    agreed.extend(options.timestamp.map(|_| Agreed::Timestamps));
    agreed
}

/// The windows, as far as the end that was received is not in yet.
fn window(tcp: &TcpConnection) -> Window {
    let next = tcp.receive.sequence.wrapping_add(tcp.receive.bytes.len() as u32);
    let told = tcp.window.rcv_wup;
    let rcv_wup = if next.wrapping_sub(told) as i32 >= 0 { told } else { next };
    Window {
        snd_wl1: tcp.window.snd_wl1,
        snd_wnd: tcp.window.snd_wnd,
        max_window: tcp.window.max_window,
        rcv_wnd: tcp.window.rcv_wnd,
        rcv_wup,
    }
}

/// What was sent of what is not acknowledged, and what was not.
fn sent(tcp: &TcpConnection) -> (&[u8], &[u8]) {
    let bytes = &tcp.send.bytes;
    let unsent = tcp.unsent.saturating_sub(u32::from(tcp.state.end_sent())) as usize;
    bytes.split_at(bytes.len().saturating_sub(unsent))
}

/// Fills a queue under repair, as if the pieces had been received or sent. Gives the size that its buffer had.
fn fill(fd: BorrowedFd<'_>, queue: Queue, pieces: &[&[u8]]) -> std::io::Result<i32> {
    let (name, force) = match queue {
        Queue::Receive => (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
        Queue::Send => (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
    };
    let before = getsockopt_int(fd, libc::SOL_SOCKET, name)?;
    make_room_in(fd, name, force, pieces.iter().map(|piece| piece.len()).sum())?;
    tcp_repair::choose(fd, queue)?;
    pieces.iter().try_for_each(|piece| put(fd, piece))?;
    Ok(before)
}

/// Puts all bytes into the queue of a socket that has room for them.
fn put(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> std::io::Result<()> {
    const PIECE: usize = 16 << 10;
    while !bytes.is_empty() {
        let sent = tcp_repair::send(fd, &bytes[..bytes.len().min(PIECE)])?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Room for `len` bytes in what a socket receives.
pub fn make_room(fd: BorrowedFd<'_>, len: usize) -> std::io::Result<()> {
    make_room_in(fd, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, len)
}

/// Room for `len` bytes in small pieces, with what the kernel needs to keep them, where a buffer is smaller. It doubles
/// what it is asked for.
fn make_room_in(fd: BorrowedFd<'_>, name: i32, force: i32, len: usize) -> std::io::Result<()> {
    let needed = i32::try_from(len + (64 << 10)).unwrap_or(i32::MAX);
    if len == 0 || getsockopt_int(fd, libc::SOL_SOCKET, name)? / 2 >= needed {
        return Ok(());
    }
    setsockopt(fd, libc::SOL_SOCKET, force, &needed.to_ne_bytes())
}
