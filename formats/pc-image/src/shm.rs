//! Shared memory objects: memfds and shared anonymous memory, and descriptors of them.

use bincode::{Decode, Encode};

use crate::SpaceId;

/// What a shared memory object is besides its content. Said of each of them once it is born, and again when it has
/// changed: the latest word counts.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ShmState {
    /// The object.
    pub space: SpaceId,
    /// Length in bytes. What lies behind it is gone.
    pub size: u64,
    /// `F_GET_SEALS` of fcntl(2).
    pub seals: u32,
    /// Permissions: the bits of `st_mode` below the file type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An open file description of a shared memory object.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ShmFile {
    /// The object.
    pub space: SpaceId,
    /// Offset in bytes.
    pub offset: u64,
}
