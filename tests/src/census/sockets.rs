//! Sockets: their addresses and every option of every level.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use pc_sys::sockopt::{getsockopt, getsockopt_int};

use super::Sample;
use super::options::{IP, IPV6, Level, NETLINK, SOCKET, TCP, UDP};
use super::who::Who;

const SO_TYPE: i32 = 3;
const SO_PROTOCOL: i32 = 38;
const SO_DOMAIN: i32 = 39;
/// The reading of a connection's state and of what was agreed on.
pub const TCP_STATE: &str = "socket/tcp state";
/// The process that SO_PEERCRED names.
const PEER_PROCESS: &str = "socket/peer process";
/// Level and number of SO_PEERCRED.
const PEERCRED: (i32, i32) = (1, 17);
const TCP_INFO: i32 = 11;
/// Room for the value of an option.
const ROOM: usize = 256;

/// Reads a socket through a duplicate of its descriptor.
pub fn read(fd: BorrowedFd<'_>, of: &str, who: &Who, sample: &mut Sample) {
    let ask = |option| getsockopt_int(fd, SOCKET.number, option).unwrap_or(-1);
    let (domain, kind, protocol) = (ask(SO_DOMAIN), ask(SO_TYPE), ask(SO_PROTOCOL));
    for level in levels(domain, kind, protocol) {
        options(fd, level, of, who, sample);
    }
    let name = |address: nix::Result<SockaddrStorage>| {
        address.map_or_else(|err| err.to_string(), |address| address.to_string())
    };
    sample.note("socket/name", of, name(getsockname(fd.as_raw_fd())));
    sample.note("socket/peer", of, name(getpeername(fd.as_raw_fd())));
    if protocol == TCP.number
        && let Ok(info) = getsockopt(fd, TCP.number, TCP_INFO, ROOM)
    {
        // tcpi_state, tcpi_options, and the scales of the windows: what was agreed on.
        let agreed: Vec<u8> = [0, 5, 6].iter().filter_map(|at| info.get(*at).copied()).collect();
        sample.note(TCP_STATE, of, hex(&agreed));
    }
}

fn levels(domain: i32, kind: i32, protocol: i32) -> Vec<&'static Level> {
    let mut levels = vec![&SOCKET];
    match domain {
        libc::AF_INET => levels.push(&IP),
        libc::AF_INET6 => levels.extend([&IP, &IPV6]),
        libc::AF_NETLINK => levels.push(&NETLINK),
        _ => {}
    }
    if [libc::AF_INET, libc::AF_INET6].contains(&domain) && kind != libc::SOCK_RAW {
        levels.extend([&TCP, &UDP].into_iter().filter(|level| level.number == protocol));
    }
    levels
}

fn options(fd: BorrowedFd<'_>, level: &Level, of: &str, who: &Who, sample: &mut Sample) {
    for number in level.asked.clone().filter(|number| !level.never.contains(number)) {
        if let Ok(value) = getsockopt(fd, level.number, number, ROOM) {
            // `struct ucred`: the process, then user and group.
            let (process, rest) = match (level.number, number) == PEERCRED {
                true => value.split_at(value.len().min(4)),
                false => (&[][..], &value[..]),
            };
            if let Ok(pid) = process.try_into() {
                sample.note(PEER_PROCESS, of, who.id(i32::from_ne_bytes(pid)));
            }
            sample.note(level.name_of(number), of, hex(rest));
        }
    }
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
