//! A relay between two ends of a connection, with faults.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Each of the first connections is cut in both directions when so many bytes have gone one way.
    CutEach {
        /// Bytes one way.
        after: usize,
        /// Connections.
        times: u32,
    },
    /// A connection passes nothing on any more after so many bytes; it stays open.
    Stall {
        /// Which, from 0.
        connection: u32,
        /// Bytes one way.
        after: usize,
    },
    /// The connection that brings the first Bye in this direction is cut: before it, or after it. Without a key only.
    CutAtBye {
        /// From the connecting side.
        forward: bool,
        /// Whether it arrives.
        arrives: bool,
    },
    /// A bit of the forward byte at this place is turned over.
    Flip {
        /// Which byte.
        at: usize,
    },
    /// The way is long: what goes either way arrives so much later, in its order.
    Late(Duration),
}

/// Where the frames of a connection begin, without a key: after the greeting, a header of 32 bytes before each payload.
struct Frames {
    head: Vec<u8>,
    skip: usize,
}

impl Frames {
    const BYE: u8 = 8;

    fn new(forward: bool) -> Frames {
        Frames { head: Vec::new(), skip: if forward { 8 } else { 0 } }
    }

    /// Where in these bytes, which follow those before, a Bye ends.
    fn bye(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            (self.skip, at) = (self.skip - skipped, at + skipped);
            let more = (32 - self.head.len()).min(bytes.len() - at);
            self.head.extend(&bytes[at..at + more]);
            at += more;
            if self.head.len() == 32 {
                let head = std::mem::take(&mut self.head);
                self.skip = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
                if head[0] == Frames::BYE {
                    return Some(at);
                }
            }
        }
        None
    }
}

/// The relay; it lets nobody in any more when dropped.
pub struct Relay {
    /// Where to connect to.
    pub addr: String,
    shared: Arc<Shared>,
}

struct Shared {
    listener: TcpListener,
    to: String,
    fault: Fault,
    closed: AtomicBool,
    connections: AtomicU32,
    cuts: AtomicU32,
    recorded: Mutex<Vec<u8>>,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Relays to an address.
    pub fn start(to: &str, fault: Fault) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared {
            listener,
            to: to.to_owned(),
            fault,
            closed: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            cuts: AtomicU32::new(0),
            recorded: Mutex::default(),
            sockets: Mutex::default(),
        });
        let own = shared.clone();
        thread::spawn(move || {
            for socket in own.listener.incoming() {
                if own.closed.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(socket) = socket {
                    join(&own, socket);
                }
            }
        });
        Relay { addr, shared }
    }

    /// What the first connection's connecting side has sent.
    pub fn recorded(&self) -> Vec<u8> {
        self.shared.recorded.lock().expect("not poisoned").clone()
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> u32 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Cuts everything and lets nobody in any more.
    pub fn close(&self) {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        // Whoever waits for connections hears of it, in whatever network namespace it does.
        let _ = socket::shutdown(self.shared.listener.as_raw_fd(), socket::Shutdown::Both);
        for socket in self.shared.sockets.lock().expect("not poisoned").iter() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

fn join(shared: &Arc<Shared>, near: TcpStream) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let Ok(far) = TcpStream::connect(&shared.to) else { return };
    let clone = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
    shared.sockets.lock().expect("not poisoned").extend([clone(&near), clone(&far)]);
    for (from, to, forward) in [(clone(&near), clone(&far), true), (far, near, false)] {
        let shared = shared.clone();
        thread::spawn(move || match shared.fault {
            Fault::Late(late) => pass_late(from, to, late),
            _ => pass(&shared, number, from, to, forward),
        });
    }
}

fn pass_late(mut from: TcpStream, mut to: TcpStream, late: Duration) {
    const WAITING: usize = 256;
    let (queue, due) = sync_channel::<(Instant, Vec<u8>)>(WAITING);
    let source = from.try_clone().expect("a descriptor");
    let writer = thread::spawn(move || {
        for (when, bytes) in due {
            thread::sleep(when.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                let _ = source.shutdown(Shutdown::Both);
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut bytes = vec![0; 65_536];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if queue.send((Instant::now() + late, bytes[..n].to_vec())).is_err() {
            break;
        }
    }
    drop(queue);
    writer.join().expect("no panic");
}

fn pass(shared: &Shared, number: u32, mut from: TcpStream, mut to: TcpStream, forward: bool) {
    let mut bytes = vec![0; 65_536];
    let mut done = 0;
    let mut frames = Frames::new(forward);
    loop {
        let n = match from.read(&mut bytes) {
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => n,
        };
        if forward && number == 0 {
            shared.recorded.lock().expect("not poisoned").extend_from_slice(&bytes[..n]);
        }
        match shared.fault {
            Fault::CutEach { after, times } if number < times && done + n > after => {
                shared.cuts.fetch_add(1, Ordering::SeqCst);
                let _ = to.write_all(&bytes[..n / 2]);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            Fault::CutAtBye { forward: way, arrives } if way == forward => {
                let bye = frames.bye(&bytes[..n]);
                if let Some(end) = bye.filter(|_| shared.cuts.fetch_add(1, Ordering::SeqCst) == 0) {
                    let passed = if arrives { end } else { end.saturating_sub(32) };
                    let _ = to.write_all(&bytes[..passed]);
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                    return;
                }
            }
            Fault::Stall { connection, after } if number == connection && done + n > after => {
                while !shared.closed.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
                return;
            }
            Fault::Flip { at } if forward && (done..done + n).contains(&at) => bytes[at - done] ^= 0x10,
            _ => {}
        }
        done += n;
        if to.write_all(&bytes[..n]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}
