//! Descriptors and the open file descriptions that they refer to. A kind a file: `regular`, `pipe`, `eventfd`, …

use bincode::{Decode, Encode};

use crate::{
    EpollState, EventFd, ExternalFile, FdTableId, Inet, OpenFileId, PipeEnd, ProcFile, RegularFile, ShmFile,
    SignalFd, TimerFd, UnixSocket,
};

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Fd {
    /// Its number.
    pub fd: u32,
    /// What it refers to.
    pub file: OpenFileId,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
}

/// All descriptors of a table, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FdTable {
    /// Its number.
    pub id: FdTableId,
    /// Its descriptors.
    pub fds: Vec<Fd>,
}

/// Owner for signal-driven I/O: fcntl(2) `F_SETOWN_EX` and `F_SETSIG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: i32,
    /// The id.
    pub pid: u32,
    /// The signal, 0 = SIGIO.
    pub signal: i32,
}

/// An open file description. Sent again under the same number, it replaces what was said before.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OpenFile {
    /// Its number.
    pub id: OpenFileId,
    /// Access mode and status flags as `F_GETFL` gives them (`O_RDWR`, `O_APPEND`, `O_NONBLOCK`, `O_ASYNC`, …).
    pub flags: u32,
    /// Signal-driven I/O.
    pub owner: Option<Owner>,
    /// What it is.
    pub kind: OpenFileKind,
}

impl OpenFile {
    /// The lowest version of the record that can express this one: 1 for the kinds up to [`OpenFileKind::Shm`].
    pub(crate) fn lowest_version(&self) -> u16 {
        match self.kind {
            OpenFileKind::Regular(_)
            | OpenFileKind::Pipe(_)
            | OpenFileKind::Event(_)
            | OpenFileKind::Epoll(_)
            | OpenFileKind::Timer(_)
            | OpenFileKind::Signal(_)
            | OpenFileKind::Inet(_)
            | OpenFileKind::Unix(_)
            | OpenFileKind::External(_)
            | OpenFileKind::Shm(_) => 1,
            OpenFileKind::Proc(_) => 2,
        }
    }
}

/// Kinds of open file descriptions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum OpenFileKind {
    /// A file, directory or device with a path.
    Regular(RegularFile),
    /// One end of a pipe both of whose ends are in the image.
    Pipe(PipeEnd),
    /// eventfd(2).
    Event(EventFd),
    /// epoll(7).
    Epoll(EpollState),
    /// timerfd_create(2).
    Timer(TimerFd),
    /// signalfd(2).
    Signal(SignalFd),
    /// TCP or UDP over IPv4 or IPv6.
    Inet(Inet),
    /// A Unix socket.
    Unix(UnixSocket),
    /// Something whose other end is outside: a terminal, or a pipe to somebody else.
    External(ExternalFile),
    /// A memfd.
    Shm(ShmFile),
    /// A file of /proc that means a process. Since version 2 of the record.
    Proc(ProcFile),
}
