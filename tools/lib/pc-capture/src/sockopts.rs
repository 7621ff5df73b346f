//! Options of sockets, as far as they differ from what a new socket has: by the table of [`pc_image::sockopt`].

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pc_image::sockopt::{self, ByteOrder, Fate, SocketOption, Stage};
use pc_image::{DeviceOption, SockOpt};
use pc_sys::netlink;
use pc_sys::sockopt::{device_name, getsockopt_into};

/// Room for any option: a header of IPv6 extensions is 2048 bytes long at most.
const ROOM: usize = 2048;

/// What a socket is, as far as its options go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Class {
    /// `AF_INET` …
    pub family: i32,
    /// `SOCK_STREAM` …
    pub kind: i32,
    /// `IPPROTO_TCP` …, 0 for a Unix socket.
    pub protocol: i32,
}

/// The options of a socket.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub options: Vec<SockOpt>,
    pub devices: Vec<DeviceOption>,
    /// Names of those with which it cannot be moved.
    pub refused: Vec<&'static str>,
}

type Value = Option<Vec<u8>>;

/// What new sockets of a network namespace have, read once of each class.
#[derive(Debug)]
pub(crate) struct Usual {
    /// The namespace, where it is not ours.
    namespace: Option<File>,
    classes: Mutex<HashMap<Class, Arc<[Value]>>>,
}

/// The options of a socket that are not as those of a new one, by their place in the table.
#[derive(Debug)]
pub(crate) struct Unusual {
    pub class: Class,
    values: Vec<(usize, Vec<u8>)>,
}

impl Usual {
    pub fn of(namespace: Option<File>) -> Self {
        Self { namespace, classes: Mutex::default() }
    }

    /// Reads what differs; any number of threads may do so.
    pub fn differing(&self, fd: BorrowedFd<'_>, class: Class) -> Unusual {
        let mut room = [0; ROOM];
        let mut values = Vec::new();
        for (at, (option, usual)) in sockopt::TABLE.iter().zip(self.values(class).iter()).enumerate() {
            if !is_read(option, class) {
                continue;
            }
            let Ok(len) = getsockopt_into(fd, option.level, option.name, &mut room) else { continue };
            if usual.as_deref() != Some(&room[..len]) {
                values.push((at, room[..len].to_vec()));
            }
        }
        Unusual { class, values }
    }

    fn values(&self, class: Class) -> Arc<[Value]> {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        classes.entry(class).or_insert_with(|| self.learn(class)).clone()
    }

    fn learn(&self, class: Class) -> Arc<[Value]> {
        let fresh =
            netlink::within(self.namespace.as_ref().map(AsFd::as_fd), || Ok(fresh(class))).ok().flatten();
        let value = |option: &SocketOption| {
            let fresh = fresh.as_ref().filter(|_| is_read(option, class))?;
            read(fresh.as_fd(), option)
        };
        sockopt::TABLE.iter().map(value).collect()
    }
}

impl Unusual {
    /// What is to be sent of them. `connected`: it is a TCP socket that is or was connected.
    pub fn told(&self, fd: BorrowedFd<'_>, connected: bool) -> Options {
        let class = self.class;
        let mut reading = Reading { fd, connected, class, found: Options::default() };
        let mut values = self.values.iter().peekable();
        for (at, option) in sockopt::TABLE.iter().enumerate() {
            let value = values.next_if(|(own, _)| *own == at).map(|(_, value)| value);
            if !is_read(option, class) || option.fate == Fate::Carried(Stage::Unconnected) && connected {
                continue;
            }
            match value {
                Some(value) => reading.take(option, value, true),
                None if reading.goes_with_others(option) => {
                    read(fd, option).into_iter().for_each(|value| reading.take(option, &value, false));
                }
                None => {}
            }
        }
        reading.found
    }
}

fn read(fd: BorrowedFd<'_>, option: &SocketOption) -> Value {
    let mut room = [0; ROOM];
    let len = getsockopt_into(fd, option.level, option.name, &mut room).ok()?;
    Some(room[..len].to_vec())
}

fn fresh(class: Class) -> Option<OwnedFd> {
    let family = match class.family {
        libc::AF_INET6 => AddressFamily::Inet6,
        libc::AF_INET => AddressFamily::Inet,
        _ => AddressFamily::Unix,
    };
    let kind = match class.kind {
        libc::SOCK_STREAM => SockType::Stream,
        libc::SOCK_DGRAM => SockType::Datagram,
        _ => SockType::SeqPacket,
    };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).ok()
}

fn is_read(option: &SocketOption, class: Class) -> bool {
    matches!(option.fate, Fate::Carried(_) | Fate::Device(_) | Fate::Refused)
        && option.of.include(class.family, class.protocol)
}

/// One socket being read.
struct Reading<'a> {
    fd: BorrowedFd<'a>,
    connected: bool,
    class: Class,
    found: Options,
}

impl Reading<'_> {
    fn take(&mut self, option: &SocketOption, value: &[u8], differs: bool) {
        match option.fate {
            Fate::Refused if differs && value.iter().any(|byte| *byte != 0) => {
                self.found.refused.push(option.label);
            }
            Fate::Device(order) => self.device(option, order, value),
            Fate::Carried(_) if self.is_told(option, value, differs) => {
                if self.counts(option, value) {
                    self.found.refused.push(option.label);
                }
                let (level, name, value) = (option.level, option.name, value.to_vec());
                self.found.options.push(SockOpt { level, name, value });
            }
            _ => {}
        }
    }

    fn has(&self, level: i32, name: i32) -> bool {
        self.found.options.iter().any(|option| (option.level, option.name) == (level, name))
    }

    /// Whether an option is sent along with others, even where it is as usual.
    fn goes_with_others(&self, option: &SocketOption) -> bool {
        matches!(option.fate, Fate::Carried(_)) && self.is_told(option, &[], false)
    }

    /// Whether an option is worth sending. (Those that depend on others stand after them in the table.)
    fn is_told(&self, option: &SocketOption, value: &[u8], differs: bool) -> bool {
        const SNDBUF: i32 = libc::SO_SNDBUF;
        const RCVBUF: i32 = libc::SO_RCVBUF;
        const SO_TXREHASH: i32 = 74;
        match (option.level, option.name) {
            // The kernel tunes the buffers of a connection, unless they were set (SO_BUF_LOCK: 1 for sending, 2 for
            // receiving).
            (libc::SOL_SOCKET, SNDBUF) => differs && (!self.connected || self.lock() & 1 != 0),
            (libc::SOL_SOCKET, RCVBUF) => differs && (!self.connected || self.lock() & 2 != 0),
            // Setting a size sets the lock.
            (libc::SOL_SOCKET, libc::SO_BUF_LOCK) => {
                differs || self.has(libc::SOL_SOCKET, SNDBUF) || self.has(libc::SOL_SOCKET, RCVBUF)
            }
            // IP_TOS changes it.
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => differs || self.has(libc::IPPROTO_IP, libc::IP_TOS),
            // Not chosen yet, which nobody can ask for by that number.
            (libc::SOL_SOCKET, SO_TXREHASH) => differs && value.first() != Some(&u8::MAX),
            _ => differs,
        }
    }

    fn lock(&self) -> i32 {
        pc_sys::sockopt::getsockopt_int(self.fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK).unwrap_or(0)
    }

    /// Whether a socket with this option numbers what it sends, by a counter that nothing shows.
    fn counts(&self, option: &SocketOption, value: &[u8]) -> bool {
        const SO_TIMESTAMPING_NEW: i32 = 65;
        const SOF_TIMESTAMPING_OPT_ID: u8 = 1 << 7;
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPING | SO_TIMESTAMPING_NEW) => {
                value.first().is_some_and(|flags| flags & SOF_TIMESTAMPING_OPT_ID != 0)
            }
            (libc::SOL_SOCKET, libc::SO_ZEROCOPY) => {
                self.connected || self.class.protocol == libc::IPPROTO_UDP
            }
            _ => false,
        }
    }

    fn device(&mut self, option: &SocketOption, order: ByteOrder, value: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(value) else { return };
        let index = match order {
            ByteOrder::Host => u32::from_ne_bytes(value),
            ByteOrder::Network => u32::from_be_bytes(value),
        };
        if index == 0 {
            return;
        }
        match device_name(self.fd, index) {
            Ok(device) => {
                self.found.devices.push(DeviceOption { level: option.level, name: option.name, device });
            }
            // The device is gone.
            Err(_) => self.found.refused.push(option.label),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn what_was_set_is_told_and_nothing_else() {
        let class = Class { family: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_UDP };
        let usual = Usual::of(None);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = usual.differing(socket.as_fd(), class).told(socket.as_fd(), false);
        assert!(
            found.options.is_empty() && found.refused.is_empty() && found.devices.is_empty(),
            "{found:?}"
        );
        socket.set_ttl(7).unwrap();
        let lo = 1u32.to_be_bytes();
        pc_sys::sockopt::setsockopt(socket.as_fd(), libc::IPPROTO_IP, 50, &lo).unwrap();
        let found = usual.differing(socket.as_fd(), class).told(socket.as_fd(), false);
        let option = SockOpt { level: libc::IPPROTO_IP, name: libc::IP_TTL, value: vec![7, 0, 0, 0] };
        assert_eq!(found.options, [option]);
        assert_eq!(found.devices, [DeviceOption { level: 0, name: 50, device: b"lo".to_vec() }]);
    }
}
