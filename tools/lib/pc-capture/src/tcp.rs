//! TCP connections that are taken along: their packets are held back, and they are read under repair.
//!
//! The packets are held back from just before the freeze until it is clear what becomes of the original, by rules that go
//! with this process however it ends. A connection is under repair only while it is read, as the process could not use
//! it meanwhile; when the original is ended it is put under repair once more, so that its end says nothing to the peer.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pc_image::{SockOpt, SocketState, TcpConnection, TcpOptions, TcpQueue, TcpState, TcpWindow};
use pc_sys::nftables::{Ends, NetworkLock};
use pc_sys::tcp_repair::{self, Info, Queue, Repair};
use pc_sys::{inet_diag, netlink, nftables, pidfd, sockopt};

use crate::Settings;
use crate::error::{CaptureError, Context, Result, Unsupported, unsupported};
use crate::inet;
use crate::openfile::{self, Descriptor, Fds, by_shares};
use crate::resolve::Fate;
use crate::settings;
use crate::socket::{PeekAt, foreign_namespace};

/// States of TCP (`include/net/tcp_states.h`).
pub(crate) const TCP_SYN_SENT: u8 = 2;
pub(crate) const TCP_SYN_RECV: u8 = 3;
pub(crate) const TCP_CLOSE: u8 = 7;
pub(crate) const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;
/// Bytes that may wait in the queues of a connection: they share a record with all else of it.
pub(crate) const MOST: usize = 15 << 20;

/// What becomes of connected TCP sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connected {
    /// They cannot be moved.
    Refused,
    /// They are found at their end by the copy.
    Closed,
    /// They go on.
    Taken,
}

impl Connected {
    pub fn of(settings: &Settings) -> Self {
        match (settings.tcp_established, settings.tcp_close) {
            (true, _) => Self::Taken,
            (_, true) => Self::Closed,
            _ => Self::Refused,
        }
    }
}

/// The connections of a process that are taken along. Dropped, their packets pass again.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    lock: Option<NetworkLock>,
    /// The network namespace of the process where it is not ours.
    namespace: Option<File>,
    /// Own addresses of those that were read.
    addresses: BTreeSet<IpAddr>,
    /// The sockets of those that were read.
    sockets: Vec<OwnedFd>,
    taken: bool,
    /// How many of them can be kept.
    room: u64,
    /// They are not taken along, and end with the process.
    closed: bool,
}

impl Connections {
    /// Makes the rules, which hold nothing back yet.
    pub fn prepare(settings: &Settings) -> Result<Self> {
        let mut all = Self::default();
        all.closed = Connected::of(settings) == Connected::Closed;
        if !settings.tcp_established {
            return Ok(all);
        }
        let pid = settings.pid;
        all.room = make_room_for_sockets().of(pid, "raising the limit of open files")?;
        let namespace = foreign_namespace(pid).of(pid, "opening its network namespace")?;
        let lock = match settings.network_lock {
            settings::NetworkLock::Skip => None,
            settings::NetworkLock::Nftables => {
                let name = format!("pc-dump-{}-{pid}", std::process::id());
                let made = NetworkLock::prepare(&name, namespace.as_ref().map(AsFd::as_fd));
                Some(made.or_else(|err| no_lock(pid, err))?)
            }
        };
        (all.lock, all.namespace, all.taken) = (lock, namespace, true);
        Ok(all)
    }

    /// Holds back the packets of all that the process has now. Names what is on its way to be a connection.
    pub fn hold(&mut self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<Option<Unsupported>> {
        if !self.taken {
            return Ok(None);
        }
        let (mut ends, mut listeners, mut unready) = (Vec::new(), Vec::new(), None);
        for found in sockets(pid, pidfd)? {
            match found.kind {
                Kind::Connected(both) => ends.push(both),
                Kind::Listening { local, waiting } => {
                    listeners.push(local);
                    if waiting {
                        unready = Some(unready_listener(pid, found.fd, local));
                    }
                }
                Kind::Beginning(peer) => unready = Some(unready_connection(pid, found.fd, peer)),
            }
        }
        if ends.len() as u64 > self.room {
            let what = format!(
                "{} TCP connections, more than pc-dump may have open files here ({})",
                ends.len(),
                self.room
            );
            return unsupported(pid, None, what);
        }
        if let Some(lock) = &mut self.lock {
            lock.hold(ends, listeners).of(pid, "holding back its packets")?;
        }
        Ok(unready)
    }

    /// Keeps the sockets that were read.
    pub fn keep(&mut self, taken: Vec<(OwnedFd, IpAddr)>) {
        for (socket, address) in taken {
            self.sockets.push(socket);
            self.addresses.insert(address.to_canonical());
        }
    }

    /// The end of the original will say nothing to the peers of connections that are taken along. What is left of others
    /// for a while (TIME-WAIT) will not keep a copy on this machine from having their addresses.
    pub fn silence(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Result<Silenced<'_>> {
        let silenced = self.sockets.iter().map(|socket| UnderRepair::begin(socket.as_fd()));
        let repaired = silenced.collect::<io::Result<_>>().of(pid, "silencing its connections")?;
        let left = if self.closed { let_addresses_be_used_again(pid, pidfd) } else { Vec::new() };
        Ok(Silenced { repaired, left })
    }

    /// Goes on to hold the packets back where they still reach this machine, when we are gone: whatever answered them
    /// would end the connections of the copy. Gives the name of the table.
    pub fn leave_held(&self, pid: i32) -> Result<Option<String>> {
        let Some(lock) = &self.lock else { return Ok(None) };
        if lock.connections() == 0 || !self.still_here() {
            return Ok(None);
        }
        lock.leave().of(pid, "holding back its packets").map(Some)
    }

    /// Whether any own address of the connections is still one of this machine.
    fn still_here(&self) -> bool {
        let here = |address: &IpAddr| {
            let namespace = self.namespace.as_ref().map(AsFd::as_fd);
            let bound = netlink::within(namespace, || UdpSocket::bind((*address, 0)));
            !bound.is_err_and(|err| err.kind() == io::ErrorKind::AddrNotAvailable)
        };
        self.addresses.iter().any(here)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            // The rules go with the lock, but that takes a while.
            let _ = lock.pass();
        }
    }
}

/// Connections whose end is as it should be for the peers and for a copy. Dropped, they are as they were.
pub(crate) struct Silenced<'a> {
    repaired: Vec<UnderRepair<'a>>,
    left: Vec<Reusable>,
}

impl Silenced<'_> {
    /// Their process is dying.
    pub fn for_good(mut self) {
        self.repaired.into_iter().for_each(std::mem::forget);
        self.left.iter_mut().for_each(|socket| socket.for_good = true);
    }
}

/// A connection that was given `SO_REUSEADDR`, which is for what is left of it, too: a socket with that option, as
/// pc-restore's is while it is bound, may have its address (net/ipv4/inet_connection_sock.c). On drop it has it no more.
struct Reusable {
    socket: OwnedFd,
    for_good: bool,
}

impl Reusable {
    fn set(socket: &OwnedFd, on: bool) -> io::Result<()> {
        let value = i32::from(on).to_ne_bytes();
        sockopt::setsockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &value)
    }
}

impl Drop for Reusable {
    fn drop(&mut self) {
        if !self.for_good {
            // What was set can be cleared.
            let _ = Self::set(&self.socket, false);
        }
    }
}

/// Gives the connections of a process `SO_REUSEADDR` that do not have it. One that cannot be given it ends as it would have.
fn let_addresses_be_used_again(pid: i32, pidfd: BorrowedFd<'_>) -> Vec<Reusable> {
    let mut given = Vec::new();
    for found in sockets(pid, pidfd).unwrap_or_default() {
        let Kind::Connected(_) = found.kind else { continue };
        let Ok(socket) = pidfd::pidfd_getfd(pidfd, found.fd) else { continue };
        let has = sockopt::getsockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR);
        if has.is_ok_and(|has| has == 0) && Reusable::set(&socket, true).is_ok() {
            given.push(Reusable { socket, for_good: false });
        }
    }
    given
}

/// What becomes of the connections of an original in doubt: held back no longer, or ended without a word.
pub(crate) fn settle(pid: i32, pidfd: BorrowedFd<'_>, fate: Fate) -> Result<()> {
    let mut ends = Vec::new();
    if fate == Fate::Running {
        mend(pid, pidfd);
    }
    for found in sockets(pid, pidfd)? {
        let Kind::Connected(both) = found.kind else { continue };
        ends.push(both);
        if fate == Fate::Gone {
            let socket = pidfd::pidfd_getfd(pidfd, found.fd).of(pid, "silencing its connections")?;
            // Where that is not permitted, none has been taken along.
            let _ = tcp_repair::repair(socket.as_fd(), Repair::On);
        }
    }
    if fate == Fate::Gone || ends.is_empty() {
        return Ok(());
    }
    let namespace = foreign_namespace(pid).of(pid, "opening its network namespace")?;
    // Nor has any where the kernel has no rules.
    let _ = nftables::remove_left(&ends, namespace.as_ref().map(AsFd::as_fd));
    Ok(())
}

/// Ends the repair under which a tool that was killed may have left connections of a process that goes on.
pub(crate) fn mend(pid: i32, pidfd: BorrowedFd<'_>) {
    // One that has ended needs nothing, and neither does what cannot be reached: no tool had it under repair.
    for found in sockets(pid, pidfd).unwrap_or_default() {
        if let Ok(socket) = pidfd::pidfd_getfd(pidfd, found.fd)
            && tcp_repair::is_under_repair(socket.as_fd()).unwrap_or(false)
        {
            let _ = tcp_repair::repair(socket.as_fd(), Repair::Off);
        }
    }
}

/// Raises our soft limit of open files to the hard one, as each connection stays open here until the move is decided. Returns
/// how many can be kept beside all else.
fn make_room_for_sockets() -> io::Result<u64> {
    const OTHERS: u64 = 200;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard.saturating_sub(OTHERS))
}

fn no_lock<T>(pid: i32, err: io::Error) -> Result<T> {
    match err.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT) => unsupported(
            pid,
            None,
            "holding back the packets of its TCP connections needs nf_tables, which this kernel lacks (or \
             --network-lock skip, and some other way)",
        ),
        _ => Err(err).of(pid, "preparing to hold back the packets of its TCP connections"),
    }
}

/// A TCP socket of a process.
struct Found {
    fd: i32,
    kind: Kind,
}

enum Kind {
    Connected(Ends),
    Listening { local: SocketAddr, waiting: bool },
    Beginning(Option<SocketAddr>),
}

/// The TCP sockets of a process that have to do with others.
fn sockets(pid: i32, pidfd: BorrowedFd<'_>) -> Result<Vec<Found>> {
    let links = File::open(format!("/proc/{pid}/fd")).of(pid, "listing its descriptors")?;
    let numbers = openfile::numbers(pid)?;
    // Each may be closed at any time.
    let socket = |fd: &i32| {
        let link = nix::fcntl::readlinkat(&links, fd.to_string().as_str()).ok()?;
        link.as_bytes().starts_with(b"socket:[").then_some((*fd, link))
    };
    let sockets =
        by_shares(numbers.len(), |share| numbers[share].iter().filter_map(socket).collect::<Vec<_>>());
    let mut seen = BTreeSet::new();
    let sockets: Vec<(i32, OsString)> =
        sockets.into_iter().flatten().filter(|(_, link)| seen.insert(link.clone())).collect();
    let look = |(fd, _): &(i32, OsString)| {
        let socket = pidfd::pidfd_getfd(pidfd, *fd).ok()?;
        kind(socket.as_fd()).map(|kind| Found { fd: *fd, kind })
    };
    let found = by_shares(sockets.len(), |share| sockets[share].iter().filter_map(look).collect::<Vec<_>>());
    Ok(found.into_iter().flatten().collect())
}

fn kind(socket: BorrowedFd<'_>) -> Option<Kind> {
    let option = |name| sockopt::getsockopt_int(socket, libc::SOL_SOCKET, name).ok();
    if option(libc::SO_PROTOCOL) != Some(libc::IPPROTO_TCP) {
        return None;
    }
    let (info, peer) = (tcp_repair::info(socket).ok()?, inet::peer(socket));
    match info.state {
        TCP_LISTEN => Some(Kind::Listening { local: inet::local(socket)?, waiting: inet::readable(socket) }),
        state if is_beginning(state) => Some(Kind::Beginning(peer)),
        _ => Some(Kind::Connected(Ends { local: inet::local(socket)?, peer: peer? })),
    }
}

/// Whether a connection has not come to be yet.
pub(crate) fn is_beginning(state: u8) -> bool {
    matches!(state, TCP_SYN_SENT | TCP_SYN_RECV | TCP_NEW_SYN_RECV)
}

fn unready_listener(pid: i32, fd: i32, local: SocketAddr) -> Unsupported {
    let what = format!("listening on {local} with connections that wait to be accepted");
    Unsupported::new(pid, Some(fd), what)
}

fn unready_connection(pid: i32, fd: i32, peer: Option<SocketAddr>) -> Unsupported {
    let peer = peer.map_or("its peer".to_owned(), |peer| peer.to_string());
    let what = format!("a TCP socket whose connection to {peer} is still being made");
    Unsupported::new(pid, Some(fd), what)
}

/// Reads a connection of a process that stands still and whose packets are held back.
pub(crate) fn read(
    fds: &mut Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    info: Info,
    ends: Ends,
) -> Result<TcpConnection> {
    let Some(state) = state(info.state) else {
        let what =
            format!("a TCP connection to {} in state {}, which cannot be moved yet", ends.peer, info.state);
        return fds.refuse(d, what);
    };
    judge(fds, d, socket)?;
    let pid = fds.pid;
    let (unread, unacknowledged) = (tcp_repair::received(socket), tcp_repair::unacknowledged(socket));
    let unread = unread.of(pid, "asking what a connection has received")? as usize;
    let mut unacknowledged = unacknowledged.of(pid, "asking what a connection has sent")?;
    let unsent = tcp_repair::unsent(socket).of(pid, "asking what a connection has not sent")?;
    // The end counts as one, until it is acknowledged.
    if state.end_sent() && state != TcpState::FinWait2 {
        unacknowledged = unacknowledged.saturating_sub(1);
    }
    if unread + unacknowledged as usize > MOST {
        let what = format!("a TCP connection to {} with too much in its queues to be moved", ends.peer);
        return fds.refuse(d, what);
    }
    let shut_read = !state.end_received() && tcp_repair::is_hung_up(socket).unwrap_or(false);
    let repaired = UnderRepair::begin(socket).of(pid, "putting a TCP connection under repair")?;
    let read = repaired.read(info, state, (unread, unacknowledged as usize));
    drop(repaired);
    let (receive, send, window, options) = read.of(pid, "reading a TCP connection")?;
    let kept = socket.try_clone_to_owned().of(pid, "keeping a TCP connection")?;
    fds.taken.push((kept, ends.local.ip()));
    let Ends { local, peer } = ends;
    Ok(TcpConnection { local, peer, state, receive, send, unsent, window, options, shut_read })
}

fn state(state: u8) -> Option<TcpState> {
    Some(match state {
        1 => TcpState::Established,
        4 => TcpState::FinWait1,
        5 => TcpState::FinWait2,
        8 => TcpState::CloseWait,
        9 => TcpState::LastAck,
        11 => TcpState::Closing,
        _ => return None,
    })
}

/// What a TCP socket may have that getsockopt(2) does not give as an option.
pub(crate) fn judge_options(
    fds: &Fds<'_>,
    d: &Descriptor,
    socket: BorrowedFd<'_>,
    family: i32,
    (options, more): (&[SockOpt], &SocketState),
) -> Result<()> {
    const TCP_SAVED_SYN: i32 = 28;
    const TCP_AO_INFO: i32 = 40;
    // Without room for it a saved SYN is not given away, and there is an error only if there is one.
    let saved = sockopt::getsockopt(socket, libc::IPPROTO_TCP, TCP_SAVED_SYN, 0);
    if saved.is_err_and(|err| err.raw_os_error() == Some(libc::EINVAL)) {
        let what = "a TCP connection with the SYN of its peer saved (TCP_SAVE_SYN) and not fetched";
        return fds.refuse(d, what.to_owned());
    }
    // 64 bytes are more than struct tcp_ao_info_opt has, all zero as it wants them.
    if sockopt::getsockopt(socket, libc::IPPROTO_TCP, TCP_AO_INFO, 64).is_ok() {
        return fds.refuse(d, "a TCP socket with keys (TCP-AO), which cannot be moved yet".to_owned());
    }
    if sockopt::option_memory(socket).of(fds.pid, "asking for a socket's memory")? == 0 {
        return Ok(());
    }
    // Keys of TCP-MD5 take such memory, as other things do.
    let port = inet::local(socket).map_or(0, |local| local.port());
    match inet_diag::has_md5_keys(socket, family as u8, port) {
        Ok(Some(true)) => {
            fds.refuse(d, "a TCP socket with keys (TCP-MD5), which cannot be moved yet".to_owned())
        }
        Ok(Some(false)) => Ok(()),
        _ if takes_option_memory(options, more) => Ok(()),
        _ => {
            let what = "a TCP socket with options that nothing tells of, as keys of TCP-MD5 are, which cannot be moved yet";
            fds.refuse(d, what.to_owned())
        }
    }
}

/// Whether something that is carried takes memory that the kernel counts as that of options: a filter, a multicast group, a
/// header of IPv6 extensions.
fn takes_option_memory(options: &[SockOpt], more: &SocketState) -> bool {
    const HEADERS: [i32; 4] =
        [libc::IPV6_HOPOPTS, libc::IPV6_RTHDRDSTOPTS, libc::IPV6_RTHDR, libc::IPV6_DSTOPTS];
    let is_header = |option: &SockOpt| option.level == libc::IPPROTO_IPV6 && HEADERS.contains(&option.name);
    !more.filter.is_empty() || !more.memberships.is_empty() || options.iter().any(is_header)
}

/// What a connection may have beside what is read.
fn judge(fds: &Fds<'_>, d: &Descriptor, socket: BorrowedFd<'_>) -> Result<()> {
    let own =
        fs::metadata(format!("/proc/{}/ns/net", fds.pid)).of(fds.pid, "looking at its network namespace")?;
    let of = sockopt::network_namespace(socket).of(fds.pid, "asking for a socket's network namespace")?;
    if File::from(of).metadata().is_ok_and(|of| of.ino() != own.ino()) {
        return fds.refuse(d, "a TCP connection in another network namespace than its own".to_owned());
    }
    Ok(())
}

/// The first bytes that a socket has received, which it keeps.
pub(crate) fn peek(socket: BorrowedFd<'_>, len: usize) -> io::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let _front = PeekAt::begin(socket, -1)?;
    tcp_repair::peek(socket, len)
}

/// A socket under repair; on drop no more.
struct UnderRepair<'a> {
    socket: BorrowedFd<'a>,
    /// `SO_REUSEADDR`, which repair changes.
    reuse: i32,
}

type Read = (TcpQueue, TcpQueue, TcpWindow, TcpOptions);

impl<'a> UnderRepair<'a> {
    fn begin(socket: BorrowedFd<'a>) -> io::Result<Self> {
        let reuse = sockopt::getsockopt_int(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        tcp_repair::repair(socket, Repair::On)?;
        Ok(Self { socket, reuse })
    }

    /// All but what can be told without repair; `(unread, unacknowledged)` are bytes.
    fn read(
        &self,
        info: Info,
        state: TcpState,
        (unread, unacknowledged): (usize, usize),
    ) -> io::Result<Read> {
        let receive = self.queue(Queue::Receive, unread, state.end_received())?;
        let send = self.queue(Queue::Send, unacknowledged, state.end_sent())?;
        let window = tcp_repair::window(self.socket)?;
        let window = TcpWindow {
            snd_wl1: window.snd_wl1,
            snd_wnd: window.snd_wnd,
            max_window: window.max_window,
            rcv_wnd: window.rcv_wnd,
            rcv_wup: window.rcv_wup,
        };
        const TCPI_OPT_TIMESTAMPS: u8 = 1;
        const TCPI_OPT_SACK: u8 = 2;
        const TCPI_OPT_WSCALE: u8 = 4;
        let has = |option| info.options & option != 0;
        let timestamp = has(TCPI_OPT_TIMESTAMPS).then(|| tcp_repair::timestamp(self.socket)).transpose()?;
        let options = TcpOptions {
            mss: tcp_repair::mss(self.socket)?,
            scale: has(TCPI_OPT_WSCALE).then_some((info.snd_wscale, info.rcv_wscale)),
            sack: has(TCPI_OPT_SACK),
            timestamp,
        };
        Ok((receive, send, window, options))
    }

    fn queue(&self, queue: Queue, len: usize, ended: bool) -> io::Result<TcpQueue> {
        tcp_repair::choose(self.socket, queue)?;
        let behind = tcp_repair::sequence(self.socket)?;
        let bytes = peek(self.socket, len)?;
        if bytes.len() != len {
            return Err(io::Error::other(format!("{} bytes in a queue of {len}", bytes.len())));
        }
        let sequence = behind.wrapping_sub(len as u32).wrapping_sub(u32::from(ended));
        Ok(TcpQueue { sequence, bytes })
    }
}

impl Drop for UnderRepair<'_> {
    fn drop(&mut self) {
        // Both cannot fail for a socket that has just been put under repair.
        let _ = tcp_repair::repair(self.socket, Repair::OffSilently);
        let reuse = self.reuse.to_ne_bytes();
        let _ = sockopt::setsockopt(self.socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse);
    }
}

/// Whether something is on its way to be a connection for longer than a moment. For the look before anything is touched.
pub(crate) fn unready(settings: &Settings, pidfd: BorrowedFd<'_>) -> Result<Option<Unsupported>> {
    if !settings.tcp_established {
        return Ok(None);
    }
    let beginning = |found: Found| match found.kind {
        Kind::Beginning(peer) => Some(unready_connection(settings.pid, found.fd, peer)),
        _ => None,
    };
    let look = || Ok::<_, CaptureError>(sockets(settings.pid, pidfd)?.into_iter().find_map(beginning));
    if look()?.is_none() {
        return Ok(None);
    }
    std::thread::sleep(PATIENCE);
    look()
}

/// How long a connection may take to come to be, before that counts.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);
