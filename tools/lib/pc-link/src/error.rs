//! What can go wrong on a link.

use std::io;
use std::path::PathBuf;

/// Errors of links. All but the first four are the transport's.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// What was asked for is not sensible or not safe.
    #[error("{0}")]
    Usage(String),
    /// The caller's cancel descriptor became readable.
    #[error("cancelled by a signal")]
    Cancelled,
    /// Reading or writing on this side of the link failed.
    #[error("{what}: {why}")]
    Local {
        /// What was being done.
        what: String,
        /// What the system said.
        why: String,
    },
    /// A key file that cannot be used.
    #[error("key file {}: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No connection could be made, or no listening socket.
    #[error("{what}: {why}")]
    Connect {
        /// What was being done.
        what: String,
        /// What the system said.
        why: String,
        /// Nobody listens there.
        nobody: bool,
    },
    /// The other side is not what it has to be: no key or another one, no pc-tools link at all.
    #[error("{0}")]
    Handshake(String),
    /// The other side does not take this transfer.
    #[error("refused by the other side: {0}")]
    Refused(String),
    /// The connection broke, and did not come back in time.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The other side gave up.
    #[error("the other side gave up: {0}")]
    Aborted(String),
    /// The other side broke the rules of the link, or bytes were damaged on the way.
    #[error("the link is corrupt: {0}")]
    Protocol(&'static str),
}

impl LinkError {
    pub(crate) fn connect(what: impl Into<String>, why: impl Into<io::Error>) -> Self {
        let why = why.into();
        let nobody = matches!(why.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        LinkError::Connect { what: what.into(), why: why.to_string(), nobody }
    }

    pub(crate) fn local(what: impl Into<String>, why: &io::Error) -> Self {
        LinkError::Local { what: what.into(), why: why.to_string() }
    }

    /// Whether the network or the other side is to blame.
    pub fn is_transport(&self) -> bool {
        use LinkError as E;
        !matches!(self, E::Usage(_) | E::Cancelled | E::Local { .. } | E::Key { .. })
    }
}

/// How a transfer ended that did not come to its end in order.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What went wrong.
    pub error: LinkError,
    /// Status of what is joined here, which has ended too.
    pub status: u8,
    /// Figures up to there.
    pub figures: crate::Figures,
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Failure { error, status: 0, figures: crate::Figures::default() }
    }
}
