//! The side that listens.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::conn::Conn;
use crate::handshake::welcome;
use crate::port::Stop;
use crate::session::{Session, Side};
use crate::settings::{Ends, Outcome, Settings};
use crate::stale::Own;
use crate::wire::{Header, Join, Kind};
use crate::{Addr, Failure, LinkError, MAX_STREAMS, addr, links};

/// Each step of a handshake may take so long, and all of it twice that.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that may be in their handshake at once; one more drops the oldest.
const MAX_PENDING: usize = 64;

/// Makes what a transfer is joined to; called once for each, when its sender is authenticated.
pub type MakeEnds = Arc<dyn Fn() -> Result<Ends, LinkError> + Send + Sync>;

/// A socket that transfers come to.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    local: String,
    /// The file of a Unix socket.
    _file: Option<Own>,
    settings: Settings,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// An address that cannot be listened on; one beyond this machine without a key ([`LinkError::Usage`]).
    pub fn bind(addr: &Addr, settings: &Settings) -> Result<Self, LinkError> {
        addr.judge(true, settings.key.is_some(), settings.plaintext)?;
        let socket = addr.listen()?;
        let failed = |error: std::io::Error| LinkError::connect("listening", error);
        socket.set_nonblocking(true).map_err(failed)?;
        let local = addr::show(&socket.local_addr().map_err(failed)?);
        let file = if let Addr::Unix(path) = addr { Own::at(path) } else { None };
        Ok(Listener { socket, local, _file: file, settings: settings.clone() })
    }

    /// The address, with the port that was found for port 0.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// Takes one transfer; whoever comes before, beside and without the key changes nothing.
    ///
    /// # Errors
    /// A transfer that failed; cancellation.
    pub fn take_one(self, ends: MakeEnds) -> Result<Outcome, Failure> {
        let hub = self.serve(None, ends, Arc::new(|_, _| ()))?;
        let result = hub.lock().result.take();
        result.unwrap_or_else(|| Err(LinkError::Cancelled.into()))
    }

    /// Takes transfers, `most` at once, until cancelled; then waits for those under way to end. `ended` is called for each.
    ///
    /// # Errors
    /// The listening socket failed.
    pub fn take_many(self, most: usize, ends: MakeEnds, ended: Ended) -> Result<(), LinkError> {
        self.serve(Some(most), ends, ended).map(drop)
    }

    fn serve(self, most: Option<usize>, ends: MakeEnds, ended: Ended) -> Result<Arc<Hub>, LinkError> {
        let over = Stop::new().map_err(|error| LinkError::local("a pipe", &error))?;
        let settings = self.settings.clone();
        let hub = Arc::new(Hub { settings, most, ends, ended, over, table: Mutex::default() });
        let served = self.accept(&hub);
        drop(self);
        loop {
            let Some(thread) = hub.lock().threads.pop() else { break };
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
        served.map(|()| hub)
    }

    /// Accepts until cancelled or, with one transfer to take, that has ended.
    fn accept(&self, hub: &Arc<Hub>) -> Result<(), LinkError> {
        let mut pending = Pending::default();
        loop {
            let timeout = if pending.0.is_empty() { PollTimeout::NONE } else { PollTimeout::from(500_u16) };
            let over = hub.over.as_fd();
            let mut fds = vec![
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(over, PollFlags::POLLIN),
            ];
            if let Some(cancel) = &self.settings.cancel {
                fds.push(PollFd::new(cancel.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(LinkError::connect("listening", error)),
            }
            if fds[1..].iter().any(|fd| fd.any() == Some(true)) {
                return Ok(());
            }
            pending.tidy();
            match self.socket.accept() {
                Ok((socket, peer)) => pending.begin(hub, socket, addr::show(&peer)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // Out of descriptors, or a connection that was gone again: neither is the end.
                Err(error) => {
                    (self.settings.log)(&format!("accepting a connection: {error}"));
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// Connections in their handshake.
#[derive(Default)]
struct Pending(VecDeque<(Instant, Arc<Socket>, JoinHandle<()>)>);

impl Pending {
    fn begin(&mut self, hub: &Arc<Hub>, socket: Socket, peer: String) {
        let hub = hub.clone();
        let Ok(kept) = socket.try_clone().map(Arc::new) else { return };
        let thread = thread::Builder::new().spawn(move || {
            let _ = socket.set_nonblocking(false);
            if let Err(error) = hub.admit(socket) {
                (hub.settings.log)(&format!("dropped {peer}: {error}"));
            }
        });
        if let Ok(thread) = thread {
            self.0.push_back((Instant::now(), kept, thread));
        }
    }

    /// Forgets those that are through, cuts off those that take too long or are too many.
    fn tidy(&mut self) {
        self.0.retain(|(_, _, thread)| !thread.is_finished());
        let too_many = self.0.len().saturating_sub(MAX_PENDING - 1);
        for (at, (since, socket, _)) in self.0.iter().enumerate() {
            if at < too_many || since.elapsed() > HANDSHAKE * 2 {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

/// Told of each transfer that ended, with the other side's number of it.
pub(crate) type Ended = Arc<dyn Fn(&str, &Result<Outcome, Failure>) + Send + Sync>;

/// The transfers.
struct Hub {
    settings: Settings,
    most: Option<usize>,
    ends: MakeEnds,
    ended: Ended,
    over: Stop,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<[u8; 16], Arc<Session>>,
    /// Transfers begun, of which one may be all there is to take.
    begun: u64,
    running: usize,
    threads: Vec<JoinHandle<()>>,
    result: Option<Result<Outcome, Failure>>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From a fresh socket to a connection of a transfer.
    fn admit(self: &Arc<Self>, socket: Socket) -> Result<(), LinkError> {
        let key = self.settings.key.as_ref();
        let mut conn = welcome(socket, key, HANDSHAKE)?;
        let (header, body) = conn.reader.frame().map_err(|error| match (key, error) {
            (Some(_), LinkError::Protocol(_)) => LinkError::Handshake(
                "what followed the handshake is not sealed with its key (a replay?)".into(),
            ),
            (_, LinkError::Lost(why)) => LinkError::Handshake(format!("it did not say what it wants: {why}")),
            (_, other) => other,
        })?;
        if header.kind != Kind::Join {
            return Err(LinkError::Protocol("something else than Join"));
        }
        let join = Join::decode(&body)?;
        match self.find(&header, &join) {
            Ok(session) => {
                let index = usize::try_from(header.second).unwrap_or(usize::MAX);
                conn.writer.frame(Header::new(Kind::Welcome, session.patience.as_secs(), 0), &[])?;
                let lost = |error: std::io::Error| LinkError::Lost(error.to_string());
                addr::prepare(&conn.socket, self.settings.timeout).map_err(lost)?;
                session.attach(index, conn);
                Ok(())
            }
            Err(why) => {
                let refused = refuse(&mut conn, &why);
                // There was one transfer to take, and its command could not be started: the sender knows now.
                if self.most.is_none() && self.lock().result.is_some() {
                    self.over.set();
                }
                refused
            }
        }
    }

    /// The transfer that a connection belongs to, begun if need be; or why there is none.
    fn find(self: &Arc<Self>, header: &Header, join: &Join) -> Result<Arc<Session>, String> {
        let streams = usize::try_from(header.number).unwrap_or(usize::MAX);
        if streams == 0 || streams > MAX_STREAMS || header.second >= header.number {
            return Err(format!("1 to {MAX_STREAMS} connections are possible"));
        }
        let mut table = self.lock();
        if let Some(session) = table.sessions.get(&join.session) {
            let fits = session.lock().conns.len() == streams;
            return if fits { Ok(session.clone()) } else { Err("another number of connections".into()) };
        }
        if !join.first {
            return Err("this transfer is not known here (any more)".into());
        }
        match self.most {
            None if table.begun > 0 => return Err("there is one transfer to take, and it has begun".into()),
            Some(most) if table.running >= most => {
                return Err(format!("{most} transfers take place already"));
            }
            _ => {}
        }
        // Under the lock, so that no second one begins meanwhile.
        let ends = (self.ends)().map_err(|error| {
            if self.most.is_none() {
                table.result = Some(Err(error.clone().into()));
            }
            error.to_string()
        })?;
        let patience = Duration::from_secs(join.patience.into()).min(self.settings.reconnect);
        let session = Session::new(join.session, &self.settings, Side::Listening, streams, patience)
            .map_err(|e| e.to_string())?;
        table.begun += 1;
        table.running += 1;
        table.sessions.insert(join.session, session.clone());
        let (hub, own) = (self.clone(), session.clone());
        table.threads.retain(|thread| !thread.is_finished());
        table.threads.push(thread::spawn(move || hub.run(&own, ends)));
        Ok(session)
    }

    fn run(&self, session: &Arc<Session>, ends: Ends) {
        let result = session.run(ends);
        let name: String = session.id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        (self.ended)(&name, &result);
        let mut table = self.lock();
        table.sessions.remove(&session.id);
        table.running -= 1;
        if self.most.is_none() {
            table.result = Some(result);
            self.over.set();
        }
    }
}

fn refuse(conn: &mut Conn, why: &str) -> Result<(), LinkError> {
    let _ = conn.writer.frame(Header::new(Kind::Refuse, 0, 0), why.as_bytes());
    Err(LinkError::Handshake(format!("refused: {}", links::printable(why.as_bytes()))))
}
