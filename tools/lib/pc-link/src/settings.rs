//! What a transfer is given, and what it gives back.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How a transfer is to be done.
#[derive(Clone)]
pub struct Settings {
    /// The key that both sides hold.
    pub key: Option<crate::Key>,
    /// Speak to others than this machine without a key.
    pub plaintext: bool,
    /// Connections; of the sender only.
    pub streams: usize,
    /// Compress what goes out, with this zstd level.
    pub compress: Option<i32>,
    /// Most bytes of the stream that go out in a second.
    pub rate: Option<u64>,
    /// For how long a broken connection is waited for; zero for not at all.
    pub reconnect: Duration,
    /// Silence for so long means that the other side is gone.
    pub timeout: Duration,
    /// Becomes readable when all is to be given up; only polled.
    pub cancel: Option<Arc<OwnedFd>>,
    /// Told what people should know.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
    /// Told now and then how many bytes went out and came in.
    pub moved: Arc<dyn Fn(u64, u64) + Send + Sync>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            key: None,
            plaintext: false,
            streams: 1,
            compress: None,
            rate: None,
            reconnect: Duration::ZERO,
            timeout: Duration::from_secs(30),
            cancel: None,
            log: Arc::new(|_| ()),
            moved: Arc::new(|_, _| ()),
        }
    }
}

/// What is joined to this side of the link.
pub struct Ends {
    /// Where bytes for the other side come from; nothing without it.
    pub source: Option<OwnedFd>,
    /// Where bytes from the other side go. Without it none are taken.
    pub sink: Option<OwnedFd>,
    /// Called when both directions are through, or all is lost: waits for a command, if any, and gives its exit status.
    pub status: Box<dyn FnOnce() -> io::Result<u8> + Send>,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").field("source", &self.source).field("sink", &self.sink).finish_non_exhaustive()
    }
}

/// How a transfer ended that came to its end in order.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Status of what is joined here; 0 without a command.
    pub status: u8,
    /// Status that the other side reports.
    pub peer_status: u8,
    /// The other side took only part of what there was.
    pub stopped_by_peer: bool,
    /// The sink here took only part of what there was, for this reason.
    pub sink_failed: Option<String>,
    /// Figures.
    pub figures: Figures,
}

/// Figures of a transfer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Bytes of the stream that went out.
    pub sent: u64,
    /// Bytes of the stream that came in and were written.
    pub received: u64,
    /// Bytes that went out on the wire, all together.
    pub wire_sent: u64,
    /// Connections that broke and were made again.
    pub reconnects: u64,
    /// From the first connection to the end.
    pub elapsed: Duration,
}
