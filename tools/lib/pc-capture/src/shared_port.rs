//! Sockets that have one port together, though an option by which they could was cleared since.

use std::collections::HashMap;
use std::net::SocketAddr;

use pc_image::{Inet, InetState, OpenFile, OpenFileId, OpenFileKind, SocketState};

use crate::socket::{flag, has};

/// A socket that is bound to a port.
struct Bound<'a> {
    file: OpenFileId,
    local: SocketAddr,
    inet: &'a Inet,
}

impl Bound<'_> {
    fn has(&self, name: i32) -> bool {
        has(&self.inet.options, libc::SOL_SOCKET, name)
    }

    fn device(&self) -> Option<&[u8]> {
        let is = |o: &&pc_image::SockOpt| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
        self.inet.options.iter().find(is).map(|option| option.value.as_slice())
    }

    /// Whether both take what comes to one address.
    fn overlaps(&self, other: &Self) -> bool {
        if self.device().zip(other.device()).is_some_and(|(a, b)| a != b) {
            return false;
        }
        let (a, b) = (self.local.ip(), other.local.ip());
        let dual = |bound: &Self| {
            bound.local.is_ipv6()
                && bound.local.ip().is_unspecified()
                && !has(&bound.inet.options, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
        };
        match a.is_ipv4() == b.is_ipv4() {
            true => a == b || a.is_unspecified() || b.is_unspecified(),
            false => dual(self) || dual(other) || a.to_canonical() == b.to_canonical(),
        }
    }
}

/// Adds what lets these sockets share their ports again. Gives those that cannot: of UDP sockets nothing shows whether what
/// comes is spread over them (`SO_REUSEPORT`) or goes to one (`SO_REUSEADDR`).
pub(crate) fn share(files: &[OpenFile], states: &mut Vec<SocketState>) -> Vec<(OpenFileId, SocketAddr)> {
    let mut ports: HashMap<(i32, u16), Vec<Bound<'_>>> = HashMap::new();
    for open in files {
        let OpenFileKind::Inet(inet) = &open.kind else { continue };
        let (InetState::Bound(local)
        | InetState::Listen { local, .. }
        | InetState::ConnectedUdp { local, .. }) = inet.state
        else {
            continue;
        };
        if local.port() != 0 {
            ports.entry((inet.protocol, local.port())).or_default().push(Bound {
                file: open.id,
                local,
                inet,
            });
        }
    }
    let mut unclear = Vec::new();
    for ((protocol, _), bound) in ports.iter().filter(|(_, bound)| bound.len() > 1) {
        for (at, own) in bound.iter().enumerate() {
            let others = bound.iter().enumerate().filter(|(other, b)| *other != at && own.overlaps(b));
            let others: Vec<_> = others.map(|(_, other)| other).collect();
            let all_have = |name: i32| own.has(name) && others.iter().all(|other| other.has(name));
            let udp = *protocol == libc::IPPROTO_UDP;
            let enough = all_have(libc::SO_REUSEPORT) || udp && all_have(libc::SO_REUSEADDR);
            if others.is_empty() || enough {
                continue;
            }
            if udp {
                unclear.push((own.file, own.local));
            } else if !own.has(libc::SO_REUSEPORT) {
                let option = flag(libc::SOL_SOCKET, libc::SO_REUSEPORT);
                match states.iter_mut().find(|state| state.file == own.file) {
                    Some(state) => state.binding.push(option),
                    None => states.push(SocketState { binding: vec![option], ..SocketState::none(own.file) }),
                }
            }
        }
    }
    unclear
}
