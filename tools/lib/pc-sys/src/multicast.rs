//! Memberships in multicast groups, as one socket has them (ip(7), RFC 3678).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::sockopt::{getsockopt_into, setsockopt, sockaddr};

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_MSFILTER: i32 = 48;
/// Bytes of `struct sockaddr_storage`.
const STORAGE: usize = 128;
/// Bytes of `struct group_filter` before its sources: device, group, mode, how many.
const HEAD: usize = 8 + STORAGE + 8;
const MCAST_INCLUDE: u32 = 1;

/// Whose datagrams a member takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only those from `sources`; else all but those.
    pub include: bool,
    /// Addresses of the group's family.
    pub sources: Vec<IpAddr>,
}

/// The filter with which a socket is a member of a group on a device; `None` if it is none.
pub fn membership(fd: BorrowedFd<'_>, device: u32, group: IpAddr) -> io::Result<Option<Filter>> {
    let mut room = 8;
    loop {
        let mut value = vec![0u8; HEAD + room * STORAGE];
        value[..4].copy_from_slice(&device.to_ne_bytes());
        put(&mut value, 8, group);
        value[8 + STORAGE + 4..HEAD].copy_from_slice(&(room as u32).to_ne_bytes());
        match getsockopt_into(fd, level(group), MCAST_MSFILTER, &mut value) {
            Err(err) if err.raw_os_error() == Some(libc::EADDRNOTAVAIL) => return Ok(None),
            done => drop(done?),
        }
        let word = |at: usize| u32::from_ne_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        let count = word(8 + STORAGE + 4) as usize;
        if count > room {
            room = count;
            continue;
        }
        let include = word(8 + STORAGE) == MCAST_INCLUDE;
        let sources = value[HEAD..].chunks_exact(STORAGE).take(count).map(|source| address(source, group));
        return Ok(Some(Filter { include, sources: sources.collect() }));
    }
}

/// Makes a socket a member of a group on a device.
pub fn join(fd: BorrowedFd<'_>, device: u32, group: IpAddr, filter: &Filter) -> io::Result<()> {
    if !filter.include {
        let mut request = vec![0u8; 8 + STORAGE];
        request[..4].copy_from_slice(&device.to_ne_bytes());
        put(&mut request, 8, group);
        setsockopt(fd, level(group), MCAST_JOIN_GROUP, &request)?;
    }
    let name = if filter.include { MCAST_JOIN_SOURCE_GROUP } else { MCAST_BLOCK_SOURCE };
    for source in &filter.sources {
        let mut request = vec![0u8; 8 + 2 * STORAGE];
        request[..4].copy_from_slice(&device.to_ne_bytes());
        put(&mut request, 8, group);
        put(&mut request, 8 + STORAGE, *source);
        setsockopt(fd, level(group), name, &request)?;
    }
    Ok(())
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn put(value: &mut [u8], at: usize, address: IpAddr) {
    let bytes = sockaddr(&SocketAddr::new(address, 0));
    value[at..at + bytes.len()].copy_from_slice(&bytes);
}

/// The address in a `sockaddr_storage` of the family of `like`.
fn address(storage: &[u8], like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([storage[4], storage[5], storage[6], storage[7]]),
        IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(&storage[8..24]).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_member_is_told_with_its_sources_and_a_socket_that_is_none_is_not() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let (lo, group) = (1, IpAddr::from([239, 1, 2, 3]));
        assert_eq!(membership(socket.as_fd(), lo, group).unwrap(), None);
        let sources: Vec<IpAddr> = (1..=11).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        for include in [false, true] {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            // The kernel takes 10 sources (net.ipv4.igmp_max_msf).
            let filter = Filter { include, sources: sources[..10].to_vec() };
            join(socket.as_fd(), lo, group, &filter).unwrap();
            let mut found = membership(socket.as_fd(), lo, group).unwrap().unwrap();
            found.sources.sort_unstable();
            assert_eq!(found, filter);
        }
    }
}
