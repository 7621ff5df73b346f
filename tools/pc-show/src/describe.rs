//! Things in a few words.

use std::net::{IpAddr, SocketAddr};

use pc_image::*;

use crate::model::Model;
use crate::text::plain;

/// An open file description in a few words.
pub fn describe(model: &Model, file: &OpenFile) -> String {
    let beside = model.sockets.get(&file.id).map(describe_beside).unwrap_or_default();
    let waiting = match model.queues.get(&file.id) {
        None | Some(0) => String::new(),
        Some(waiting) => format!(", {waiting} datagrams to be read"),
    };
    format!("{}{beside}{waiting}", describe_kind(model, &file.kind))
}

/// What a socket has beside.
fn describe_beside(state: &SocketState) -> String {
    let mut text = String::new();
    let groups = state.memberships.iter().map(|member| {
        let group = <[u8; 4]>::try_from(&member.group[..]).map(IpAddr::from);
        let group = group.or_else(|_| <[u8; 16]>::try_from(&member.group[..]).map(IpAddr::from));
        group.map_or("?".to_owned(), |group| group.to_string())
    });
    let groups: Vec<String> = groups.collect();
    if !groups.is_empty() {
        text += &format!(", member of {}", groups.join(", "));
    }
    if !state.filter.is_empty() {
        text += &format!(", filter of {} steps", state.filter.len());
    }
    text += match state.shutdown & 3 {
        0 => "",
        1 => ", shut down for reading",
        2 => ", shut down for writing",
        _ => ", shut down",
    };
    if let Some(unread) = &state.ended {
        text += &format!(", ended with {} bytes to be read", unread.len());
    }
    match &state.socket_file {
        None => {}
        Some(SocketFile::Removed) => text += ", its file removed",
        Some(SocketFile::At(path)) => text += &format!(", its file now {}", plain(path)),
    }
    text
}

fn describe_kind(model: &Model, kind: &OpenFileKind) -> String {
    match kind {
        OpenFileKind::Regular(file) => format!("{} at {}", model.path(file.file), file.offset),
        OpenFileKind::Pipe(pipe) => {
            let waiting: usize = pipe.content.iter().map(Vec::len).sum();
            format!("pipe {} ({} bytes of {})", pipe.pipe, waiting, pipe.capacity)
        }
        OpenFileKind::Event(event) => format!("eventfd at {}", event.count),
        OpenFileKind::Epoll(epoll) => format!("epoll of {} descriptors", epoll.targets.len()),
        OpenFileKind::Timer(timer) => format!("timerfd of clock {}, {} ns left", timer.clock, timer.value),
        OpenFileKind::Signal(signal) => format!("signalfd of {:#x}", signal.mask),
        OpenFileKind::Inet(inet) => describe_inet(inet),
        OpenFileKind::Unix(socket) => describe_unix(socket),
        OpenFileKind::Shm(shm) => format!("{} at {}", model.object(shm.space), shm.offset),
        OpenFileKind::Proc(file) => {
            let thread = file.thread.map_or(String::new(), |tid| format!("task/{tid}/"));
            format!("{thread}{} of task {} in /proc, at {}", plain(&file.path), file.task.0, file.offset)
        }
        OpenFileKind::External(external) => format!("outside: {}", plain(&external.id)),
    }
}

fn describe_inet(inet: &Inet) -> String {
    let protocol = match inet.protocol {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        other => format!("protocol {other}"),
    };
    let show = |addr: &Option<SocketAddr>| addr.map_or("?".to_owned(), |addr| addr.to_string());
    match &inet.state {
        InetState::New => format!("{protocol} socket, new"),
        InetState::Bound(local) => format!("{protocol} socket bound to {local}"),
        InetState::Listen { local, backlog } => {
            format!("{protocol} socket listening on {local} (backlog {backlog})")
        }
        InetState::ConnectedUdp { local, peer } => format!("{protocol} socket {local} connected to {peer}"),
        InetState::Closed { local, peer } => {
            format!("{protocol} connection {} to {}, closed by the move", show(local), show(peer))
        }
        InetState::Connected(tcp) => describe_connection(tcp),
    }
}

fn describe_connection(tcp: &TcpConnection) -> String {
    let state = match tcp.state {
        TcpState::Established => "established",
        TcpState::FinWait1 => "FIN-WAIT-1",
        TcpState::FinWait2 => "FIN-WAIT-2",
        TcpState::Closing => "CLOSING",
        TcpState::CloseWait => "CLOSE-WAIT",
        TcpState::LastAck => "LAST-ACK",
    };
    let TcpConnection { local, peer, receive, send, .. } = tcp;
    let (unread, unacknowledged) = (receive.bytes.len(), send.bytes.len());
    format!(
        "TCP connection {local} to {peer}, {state}, {unread} bytes to be read, {unacknowledged} to be acknowledged"
    )
}

fn describe_unix(socket: &UnixSocket) -> String {
    let name = match socket.name.split_first() {
        None => String::new(),
        Some((0, rest)) => format!(" @{}", plain(rest)),
        Some(_) => format!(" {}", plain(&socket.name)),
    };
    match &socket.state {
        UnixState::Unconnected => format!("Unix socket{name}"),
        UnixState::Listen { backlog } => format!("Unix socket{name} listening (backlog {backlog})"),
        UnixState::Pair { pair, queue, .. } => {
            format!("Unix socket{name}, half of pair {pair}, {} waiting", queue.len())
        }
    }
}
