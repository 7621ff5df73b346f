//! getsockopt(2) and setsockopt(2) with values as bytes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// `SO_GET_FILTER`, whose length counts steps of eight bytes.
const SO_GET_FILTER: i32 = libc::SO_ATTACH_FILTER;

/// The value of an option; `max` bytes of room are offered to the kernel.
pub fn getsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, max: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; max];
    let len = getsockopt_into(fd, level, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// Puts the value of an option into `room`, which some options read first, and gives its length.
pub fn getsockopt_into(fd: BorrowedFd<'_>, level: i32, name: i32, room: &mut [u8]) -> io::Result<usize> {
    if level == libc::SOL_SOCKET && name == SO_GET_FILTER {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)); // see `filter`
    }
    let mut len = room.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes of `room` and returns how many; the one option whose length is
    // not in bytes is not asked for.
    let ret = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, room.as_mut_ptr().cast(), &mut len) };
    check(ret.into())?;
    Ok((len as usize).min(room.len()))
}

/// A step of a classic filter: `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilterStep {
    /// Operation.
    pub code: u16,
    /// Steps to skip if true.
    pub jt: u8,
    /// Steps to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<FilterStep>() == 8);

/// The classic filter of a socket; empty if it has none. `EACCES` if its filter is eBPF.
pub fn filter(fd: BorrowedFd<'_>) -> io::Result<Vec<FilterStep>> {
    let mut len: libc::socklen_t = 0;
    let (fd, null) = (fd.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: with a length of 0 the kernel only returns how many steps there are (net/core/filter.c, sk_get_filter).
    let told = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, null, &mut len) };
    check(told.into())?;
    let mut steps = vec![FilterStep::default(); len as usize];
    if steps.is_empty() {
        return Ok(steps);
    }
    let at = steps.as_mut_ptr().cast();
    // SAFETY: room for `len` steps of eight bytes; where there are more by now, the kernel writes none.
    let told = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, at, &mut len) };
    check(told.into())?;
    steps.truncate(len as usize);
    Ok(steps)
}

/// Gives a socket a classic filter.
pub fn attach_filter(fd: BorrowedFd<'_>, steps: &[FilterStep]) -> io::Result<()> {
    let len = u16::try_from(steps.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: steps.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    let (at, size) = (std::ptr::from_ref(&program).cast(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: the kernel reads the program and its `len` steps.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_GET_FILTER, at, size) }.into())
        .map(drop)
}

/// What poll(2) reports of a socket at once: `POLLIN`, `POLLRDHUP`, `POLLHUP`, `POLLERR`.
pub fn events(fd: BorrowedFd<'_>) -> io::Result<i16> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: the kernel writes to one `pollfd`, and does not wait.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) }.into())?;
    Ok(poll.revents)
}

/// The name of the network device of a number, in a socket's network namespace (`SIOCGIFNAME`).
pub fn device_name(fd: BorrowedFd<'_>, index: u32) -> io::Result<Vec<u8>> {
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index as i32;
    // SAFETY: the request reads a number and writes a name of `IFNAMSIZ` bytes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) }.into())?;
    Ok(request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect())
}

/// The number of the network device of a name (`SIOCGIFINDEX`).
pub fn device_index(fd: BorrowedFd<'_>, name: &[u8]) -> io::Result<u32> {
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request reads a name that ends within its field, and writes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) }.into())?;
    // SAFETY: the kernel has just written it.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// The file of a Unix socket that is bound to a path, as an `O_PATH` descriptor (`SIOCUNIXFILE`). Needs CAP_NET_ADMIN.
pub fn unix_file(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: the request takes no argument, and gives a new descriptor.
    let file = check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) }.into())?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(file as i32) })
}

/// Bytes that a socket has sent and that are still on their way (`SIOCOUTQ`), with the memory that they take.
pub fn sending(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value = 0i32;
    // SAFETY: the request writes one integer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut value) }.into())?;
    Ok(value as u32)
}

/// Whether a bound datagram socket was shut down for writing (shutdown(2)), which nothing shows but sending: a datagram
/// is sent to `to` whose bytes cannot be read (`EFAULT`), so that none goes out. Takes a pending error away.
pub fn is_write_shut(fd: BorrowedFd<'_>, to: &SocketAddr) -> bool {
    let to = sockaddr(to);
    let (flags, nowhere) = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, std::ptr::dangling::<libc::c_void>());
    // SAFETY: the kernel reads an address of the given length; nothing is mapped where the datagram's byte would be, which
    // it finds out by itself.
    let sent = unsafe {
        libc::sendto(fd.as_raw_fd(), nowhere, 1, flags, to.as_ptr().cast(), to.len() as libc::socklen_t)
    };
    check(sent as libc::c_long).is_err_and(|err| err.raw_os_error() == Some(libc::EPIPE))
}

/// The value of an option that is an integer.
pub fn getsockopt_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let value = getsockopt(fd, level, name, 4)?;
    let bytes = value.try_into().map_err(|_| io::Error::other("a socket option of another length"))?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Bytes that the options of a socket take, as the kernel counts them (`SK_MEMINFO_OPTMEM` of `SO_MEMINFO`).
pub fn option_memory(fd: BorrowedFd<'_>) -> io::Result<u32> {
    const SK_MEMINFO_OPTMEM: usize = 6;
    let all = getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, 36)?;
    let counted = all.chunks_exact(4).nth(SK_MEMINFO_OPTMEM).and_then(|bytes| bytes.try_into().ok());
    counted
        .map(u32::from_ne_bytes)
        .ok_or_else(|| io::Error::other("figures of a socket's memory that end early"))
}

/// The network namespace of a socket (`SIOCGSKNS`).
pub fn network_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: the request takes no argument, and gives a new descriptor.
    let namespace = check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS) }.into())?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace as i32) })
}

/// Sets an option.
pub fn setsockopt(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `value`.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) }.into())
        .map(drop)
}

/// An address as system calls take it: the bytes of a `struct sockaddr_in` or `sockaddr_in6`.
pub fn sockaddr(addr: &SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match addr {
        SocketAddr::V4(v4) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

const _: () = assert!(size_of::<libc::sockaddr_in>() == 16 && size_of::<libc::sockaddr_in6>() == 28);
