//! What a socket has beside its address and options, whatever its family: filters, groups, what waits in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pc_image::{Datagram, DeviceOption, Membership, SockOpt, SocketState, sockopt};
use pc_sys::multicast::{self, Filter};
use pc_sys::sockopt::{FilterStep, attach_filter, device_index, getsockopt, getsockopt_int, setsockopt};
use pc_sys::udp_datagram;
use socket2::Socket;

use crate::error::{Context, RebuildError};

/// How long the kernel may take to deliver a datagram to this very machine.
const DELIVERY: Duration = Duration::from_secs(1);

/// Sets options in their order; those before an address is there, or those that are set when all else is done.
pub fn set_options(socket: &impl AsFd, options: &[SockOpt], last: bool) -> Result<(), RebuildError> {
    let of_stage = |option: &&SockOpt| sockopt::is_last(option.level, option.name) == last;
    options.iter().filter(of_stage).try_for_each(|option| set_option(socket, option))
}

/// Sets an option. Sizes of buffers are set beyond what the machine allows others: the original had them.
pub fn set_option(socket: &impl AsFd, option: &SockOpt) -> Result<(), RebuildError> {
    let SockOpt { level, name, value } = option;
    let what = || match sockopt::option(*level, *name) {
        Some(known) => format!("setting the socket option {}", known.label),
        None => format!("setting socket option {name} of level {level}"),
    };
    let force = match (*level, *name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => Some(libc::SO_SNDBUFFORCE),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => Some(libc::SO_RCVBUFFORCE),
        _ => None,
    };
    if let (Some(force), Ok(size)) = (force, <[u8; 4]>::try_from(value.as_slice())) {
        // The kernel doubles a buffer's size that it is asked for, and reports the doubled one (socket(7)).
        let half = (i32::from_ne_bytes(size) / 2).to_ne_bytes();
        return setsockopt(socket.as_fd(), *level, force, &half)
            .or_else(|_| setsockopt(socket.as_fd(), *level, *name, &half))
            .what_of(what);
    }
    setsockopt(socket.as_fd(), *level, *name, value).what_of(what)
}

/// Groups and devices: as soon as the socket has its address.
pub fn join(socket: &impl AsFd, more: &SocketState) -> Result<(), RebuildError> {
    more.devices.iter().try_for_each(|option| set_device(socket, option))?;
    more.memberships.iter().try_for_each(|membership| be_member(socket, membership))
}

fn device(socket: &impl AsFd, name: &[u8]) -> Result<u32, RebuildError> {
    device_index(socket.as_fd(), name).map_err(|_| {
        let name = String::from_utf8_lossy(name);
        RebuildError::Unsupported(format!("there is no network device {name} here, which a socket needs"))
    })
}

fn set_device(socket: &impl AsFd, option: &DeviceOption) -> Result<(), RebuildError> {
    let index = device(socket, &option.device)?;
    let known = sockopt::option(option.level, option.name);
    let value = match known.map(|known| known.fate) {
        Some(sockopt::Fate::Device(sockopt::ByteOrder::Network)) => index.to_be_bytes(),
        _ => index.to_ne_bytes(),
    };
    set_option(socket, &SockOpt { level: option.level, name: option.name, value: value.to_vec() })
}

fn be_member(socket: &impl AsFd, membership: &Membership) -> Result<(), RebuildError> {
    let address = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => Ok(IpAddr::from([a, b, c, d])),
        _ => <[u8; 16]>::try_from(bytes)
            .map(IpAddr::from)
            .map_err(|_| RebuildError::Contradiction("a multicast group that is no address".into())),
    };
    let group = address(&membership.group)?;
    let sources = membership.sources.iter().map(|source| address(source)).collect::<Result<_, _>>()?;
    let filter = Filter { include: membership.include, sources };
    let index = device(socket, &membership.device)?;
    multicast::join(socket.as_fd(), index, group, &filter).what_of(|| format!("joining the group {group}"))
}

/// What is done to a socket when all else is done.
pub fn finish(socket: &Socket, more: &SocketState, options: &[SockOpt]) -> Result<(), RebuildError> {
    shut(socket, more.shutdown)?;
    filter(socket, more)?;
    set_options(socket, options, true)
}

/// Gives a socket its filter.
pub fn filter(socket: &impl AsFd, more: &SocketState) -> Result<(), RebuildError> {
    let step =
        |step: &pc_image::FilterStep| FilterStep { code: step.code, jt: step.jt, jf: step.jf, k: step.k };
    let steps: Vec<FilterStep> = more.filter.iter().map(step).collect();
    if steps.is_empty() {
        return Ok(());
    }
    attach_filter(socket.as_fd(), &steps).what("giving a socket its filter")
}

/// Shuts a socket down: for reading (bit 0) and writing (bit 1).
pub fn shut(socket: &Socket, shutdown: u8) -> Result<(), RebuildError> {
    let how = match shutdown & 3 {
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        3 => Shutdown::Both,
        _ => return Ok(()),
    };
    match socket.shutdown(how) {
        // It is done all the same (net/ipv4/af_inet.c).
        Err(err) if err.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        done => done.what("shutting a socket down"),
    }
}

/// A UDP socket that is finished when its address is there: datagrams wait for it.
#[derive(Debug)]
pub struct Delivery {
    pub socket: Socket,
    pub local: SocketAddr,
    pub datagrams: Vec<Datagram>,
    pub more: SocketState,
    pub options: Vec<SockOpt>,
}

impl Delivery {
    /// Sends what waited, in the names of its senders.
    pub fn finish(&self) -> Result<(), RebuildError> {
        let fd = self.socket.as_fd();
        let what = "queueing the datagrams of a UDP socket again";
        let before = self.socket.recv_buffer_size().what(what)?;
        let needed: usize = self.datagrams.iter().map(|datagram| datagram.bytes.len() + 4096).sum();
        let needed = i32::try_from(needed).unwrap_or(i32::MAX / 2).to_ne_bytes();
        setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &needed).what(what)?;
        for datagram in &self.datagrams {
            self.deliver(datagram)?;
        }
        let before = (before as i32 / 2).to_ne_bytes();
        setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &before).what(what)?;
        setsockopt(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, &0i32.to_ne_bytes()).what(what)?;
        finish(&self.socket, &self.more, &self.options)
    }

    fn deliver(&self, datagram: &Datagram) -> Result<(), RebuildError> {
        let from = datagram.from.ok_or_else(|| {
            RebuildError::Contradiction("a datagram of a UDP socket that nobody sent".into())
        })?;
        let what = "queueing a datagram of a UDP socket again";
        let (filled, began) = (self.filled()?, Instant::now());
        udp_datagram::deliver(from, self.reached_by(from), &datagram.bytes).what(what)?;
        while self.filled()? <= filled {
            if began.elapsed() > DELIVERY {
                return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).what(what);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Memory that its queue takes (`SO_MEMINFO`).
    fn filled(&self) -> Result<u32, RebuildError> {
        let what = "asking how much waits in a socket";
        let info = getsockopt(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, 36).what(what)?;
        Ok(info.first_chunk::<4>().map_or(0, |first| u32::from_ne_bytes(*first)))
    }

    /// Its address, for a sender of one family.
    fn reached_by(&self, from: SocketAddr) -> SocketAddr {
        let mut to = self.local;
        if to.ip().is_unspecified() {
            match from.ip().to_canonical() {
                IpAddr::V4(_) => to = (Ipv4Addr::LOCALHOST, to.port()).into(),
                IpAddr::V6(_) => to.set_ip(Ipv6Addr::LOCALHOST.into()),
            }
        }
        to
    }
}

/// Options that hold only while a socket is bound and begins to listen, with the values that it has otherwise.
pub fn unbinding(
    socket: &impl AsFd,
    binding: &[SockOpt],
    options: &[SockOpt],
) -> Result<Vec<SockOpt>, RebuildError> {
    let own = |bound: &SockOpt| {
        let own = options.iter().find(|own| (own.level, own.name) == (bound.level, bound.name));
        own.cloned().map_or_else(
            || {
                let value = getsockopt_int(socket.as_fd(), bound.level, bound.name);
                let value = value.what("asking for a socket option")?.to_ne_bytes().to_vec();
                Ok(SockOpt { value, ..bound.clone() })
            },
            Ok,
        )
    };
    binding.iter().map(own).collect()
}
