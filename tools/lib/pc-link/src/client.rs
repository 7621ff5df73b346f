//! The side that connects.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd as _;

use crate::conn::Conn;
use crate::handshake::greet;
use crate::session::{Session, Side};
use crate::settings::{Ends, Outcome, Settings};
use crate::wire::{Header, Join, Kind};
use crate::{Addr, Failure, LinkError, MAX_STREAMS, addr, key, links};

/// A whole connection must stand within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connects and does one transfer. `ends` are asked for once the other side has welcomed it, so that no command is started in vain.
///
/// # Errors
/// No connection, no key, refusal, a connection that broke for good; the status of a command that was started is reported all the same.
pub fn send(
    addr: &Addr,
    settings: &Settings,
    ends: impl FnOnce() -> Result<Ends, LinkError>,
) -> Result<Outcome, Failure> {
    addr.judge(false, settings.key.is_some(), settings.plaintext)?;
    let streams = settings.streams.clamp(1, MAX_STREAMS);
    let id = key::random().map_err(|error| LinkError::local("random numbers", &error))?;
    let dialer = Dialer { addr: addr.clone(), settings: settings.clone(), streams, id };
    let (conn, granted) = dialer.dial_patiently()?;
    if granted < settings.reconnect {
        let seconds = granted.as_secs();
        (settings.log)(&format!(
            "the other side waits for a broken connection for {seconds} s only (its --reconnect)"
        ));
    }
    let session = Session::new(id, settings, Side::Connecting, streams, granted)?;
    session.attach(0, conn);
    let ends = ends()?;
    let keeper = {
        let session = session.clone();
        thread::spawn(move || dialer.keep_connected(&session))
    };
    let outcome = session.run(ends);
    // It sees the end within its pause; a connection attempt under way is not waited for.
    drop(keeper);
    outcome
}

struct Dialer {
    addr: Addr,
    settings: Settings,
    streams: usize,
    id: [u8; 16],
}

impl Dialer {
    /// The first connection, tried for as long as a broken one would be.
    fn dial_patiently(&self) -> Result<(Conn, Duration), LinkError> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.dial(0, true) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let again = matches!(error, LinkError::Connect { .. } | LinkError::Lost(_));
            if !again || began.elapsed() + pause > self.settings.reconnect {
                return Err(error);
            }
            self.pause(pause)?;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Sleeps, unless cancelled.
    fn pause(&self, pause: Duration) -> Result<(), LinkError> {
        let Some(cancel) = &self.settings.cancel else {
            thread::sleep(pause);
            return Ok(());
        };
        let mut fds = [PollFd::new(cancel.as_fd(), PollFlags::POLLIN)];
        let millis = u16::try_from(pause.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(1..) => Err(LinkError::Cancelled),
            _ => Ok(()),
        }
    }

    fn dial(&self, index: usize, first: bool) -> Result<(Conn, Duration), LinkError> {
        let socket = self.addr.connect(HANDSHAKE.min(self.settings.timeout))?;
        let mut conn = greet(socket, self.settings.key.as_ref(), HANDSHAKE.min(self.settings.timeout))?;
        let patience = u32::try_from(self.settings.reconnect.as_secs()).unwrap_or(u32::MAX);
        let join = Join { session: self.id, first, patience };
        conn.writer.frame(Header::new(Kind::Join, self.streams as u64, index as u64), &join.encode())?;
        let (header, text) = conn.reader.frame().map_err(|error| match error {
            LinkError::Lost(why) => LinkError::Lost(format!("no welcome from the other side: {why}")),
            other => other,
        })?;
        match header.kind {
            Kind::Welcome => {}
            Kind::Refuse => return Err(LinkError::Refused(links::printable(&text))),
            _ => return Err(LinkError::Protocol("neither Welcome nor Refuse")),
        }
        let lost = |error: std::io::Error| LinkError::Lost(error.to_string());
        addr::prepare(&conn.socket, self.settings.timeout).map_err(lost)?;
        Ok((conn, Duration::from_secs(header.number).min(self.settings.reconnect)))
    }

    /// Fills empty places for connections until the transfer ends.
    fn keep_connected(&self, session: &Arc<Session>) {
        let mut pause = Duration::from_millis(50);
        while let Some(index) = wait_for_gap(session, self.streams) {
            let error = match self.dial(index, false) {
                Ok((conn, _)) => {
                    session.attach(index, conn);
                    pause = Duration::from_millis(50);
                    continue;
                }
                Err(error) => error,
            };
            if session.needs_no_more(&error) {
                continue;
            }
            // Who refuses, or speaks another language by now, will not change its mind.
            let again =
                matches!(error, LinkError::Connect { .. } | LinkError::Lost(_) | LinkError::Handshake(_));
            if !again || session.patience.is_zero() {
                return session.fail(error);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

/// The index of a connection that is missing; `None` once the transfer is through.
fn wait_for_gap(session: &Session, streams: usize) -> Option<usize> {
    let mut state = session.lock();
    loop {
        if state.finished || state.failed.is_some() || state.bye_heard {
            return None;
        }
        // The statuses are being exchanged: one connection is enough.
        let ending = state.ending();
        if let Some(index) = (0..streams).find(|index| !ending && state.conns[*index].is_none()) {
            return Some(index);
        }
        state = session.wait_for(&session.course, state, Duration::from_millis(200));
    }
}
