//! What a socket has beside what its [`crate::OpenFile`] says: written only where there is such a thing.

use std::net::SocketAddr;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::inet::Addr;
use crate::{OpenFileId, SockOpt};

/// More about a socket. It stands after its OpenFile.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SocketState {
    /// The socket.
    pub file: OpenFileId,
    /// Options that hold only while it is bound and begins to listen: what it has kept its address by, and cleared since
    /// (`SO_REUSEPORT`, `IP_FREEBIND`). After that it has those of its OpenFile, or a new socket's.
    pub binding: Vec<SockOpt>,
    /// Options whose value is the number of a network device.
    pub devices: Vec<DeviceOption>,
    /// Multicast groups that it is a member of.
    pub memberships: Vec<Membership>,
    /// Its classic filter (`SO_ATTACH_FILTER`); empty = none.
    pub filter: Vec<FilterStep>,
    /// Shut down for reading (bit 0) and writing (bit 1): a UDP socket, or a TCP socket that is not connected.
    pub shutdown: u8,
    /// A TCP connection ([`crate::InetState::Closed`]) that ended in order: the bytes that are still to be read before its
    /// end. Without this it was reset.
    pub ended: Option<Vec<u8>>,
    /// Where the file of a Unix socket is, if not at its name.
    pub socket_file: Option<SocketFile>,
}

impl SocketState {
    /// Nothing beside the OpenFile.
    pub fn none(file: OpenFileId) -> Self {
        Self {
            file,
            binding: Vec::new(),
            devices: Vec::new(),
            memberships: Vec::new(),
            filter: Vec::new(),
            shutdown: 0,
            ended: None,
            socket_file: None,
        }
    }

    /// Whether it says something.
    pub fn says_something(&self) -> bool {
        *self != Self::none(self.file)
    }
}

/// An option whose value is the number of a network device: another on each machine.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceOption {
    /// `IPPROTO_IP` or `IPPROTO_IPV6`.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// The device's name.
    pub device: Vec<u8>,
}

/// Membership in a multicast group, on one device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Membership {
    /// The device's name.
    pub device: Vec<u8>,
    /// The group's address: 4 or 16 bytes.
    pub group: Vec<u8>,
    /// Only datagrams from `sources` are taken; else all but those.
    pub include: bool,
    /// Addresses of the group's family.
    pub sources: Vec<Vec<u8>>,
}

/// `struct sock_filter`: an instruction of classic BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
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

/// What became of a Unix socket's file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum SocketFile {
    /// It was removed: the socket lives on without it.
    Removed,
    /// It was renamed to this path.
    At(Vec<u8>),
}

/// Datagrams that wait to be read from a socket that has no [`crate::UnixState::Pair`]. It stands after its OpenFile.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Queue {
    /// The socket.
    pub file: OpenFileId,
    /// How many were said before: 0 begins anew, any other number goes on.
    pub first: u32,
    /// The datagrams, in order.
    pub datagrams: Vec<Datagram>,
}

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it: none for a Unix socket without a name.
    pub from: Option<SocketAddr>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Encode for Datagram {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.from.map(Addr::from).encode(encoder)?;
        self.bytes.encode(encoder)
    }
}

impl<Context> Decode<Context> for Datagram {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let from = Option::<Addr>::decode(decoder)?.map(Into::into);
        Ok(Self { from, bytes: Vec::decode(decoder)? })
    }
}

bincode::impl_borrow_decode!(Datagram);
