//! The two threads of a connection.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::LinkError;
use crate::conn::{Reader, Writer};
use crate::flow::{Buf, Chunk, recycle};
use crate::pack::unpack;
use crate::session::{Due, Session, State};
use crate::wire::{CHUNK, Header, Heard, Kind};

/// A connection that has nothing else to say gives a sign of life so often.
const BEAT: Duration = Duration::from_secs(1);
/// A chunk that did not arrive for so long goes over another connection, where there is one.
const OVERTAKE: Duration = Duration::from_secs(2);

/// Reads frames until the connection ends; gives why it did.
pub(crate) fn read(session: &Session, reader: &mut Reader) -> LinkError {
    match read_frames(session, reader) {
        Ok(()) => LinkError::Lost("the other side closed it".into()),
        Err(error) => error,
    }
}

fn read_frames(session: &Session, reader: &mut Reader) -> Result<(), LinkError> {
    let failed = |error: std::io::Error| LinkError::local("decompression", &error);
    let mut zstd = zstd::bulk::Decompressor::new().map_err(failed)?;
    let mut packed = Vec::new();
    while let Some(header) = reader.header()? {
        match header.kind {
            Kind::Data => data(session, reader, &header, &mut zstd, &mut packed)?,
            Kind::Abort => {
                let mut why = vec![0; header.len as usize];
                reader.payload(&header, &mut why)?;
                return Err(LinkError::Aborted(printable(&why)));
            }
            _ if header.len > 0 => return Err(LinkError::Protocol("a payload where none belongs")),
            _ => statement(session, &header)?,
        }
    }
    Ok(())
}

/// What a peer says, fit to be shown.
pub(crate) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(500).collect()
}

fn data(
    session: &Session,
    reader: &mut Reader,
    header: &Header,
    zstd: &mut zstd::bulk::Decompressor<'static>,
    packed: &mut Vec<u8>,
) -> Result<(), LinkError> {
    let len = header.second as usize;
    if len == 0 {
        return Err(LinkError::Protocol("an empty chunk"));
    }
    // Little content gets a buffer of its size.
    let mut bytes = if len >= CHUNK / 2 { session.lock().pool.take() } else { vec![0; len] };
    if header.packed {
        packed.resize(header.len as usize, 0);
        reader.payload(header, packed)?;
        unpack(zstd, packed, &mut bytes[..len])?;
    } else {
        reader.payload(header, &mut bytes[..len])?;
    }
    let mut state = session.lock();
    if let Some(unused) = state.incoming.put(header.number, Buf { bytes, len })? {
        state.pool.give(unused.bytes);
    }
    drop(state);
    session.arrived.notify_one();
    Ok(())
}

fn statement(session: &Session, header: &Header) -> Result<(), LinkError> {
    let mut state = session.lock();
    let State { outgoing, incoming, pool, .. } = &mut *state;
    match header.kind {
        Kind::Ack => {
            outgoing.acknowledged(header.number, header.second, pool)?;
            session.room.notify_one();
        }
        Kind::Fin => {
            incoming.end_at(header.number)?;
            session.arrived.notify_one();
        }
        Kind::Stop => {
            outgoing.stop();
            session.wake_source();
        }
        Kind::Bye => session.goodbye(&mut state, header.number, Heard::of(header.second)),
        _ => return Err(LinkError::Protocol("a frame that belongs to the handshake")),
    }
    if state.outgoing.done() || state.their_bye.is_some() {
        session.course.notify_all();
        session.to_pack.notify_all();
    }
    Ok(())
}

/// Sends what there is until the transfer ends or the connection is gone.
///
/// # Errors
/// The connection breaks.
pub(crate) fn write(
    session: &Session,
    index: usize,
    generation: u64,
    writer: &mut Writer,
) -> Result<(), LinkError> {
    loop {
        let job = next_job(session, index, generation);
        let done = match &job {
            Job::Statements(tally) => say(writer, tally),
            Job::Chunk(chunk) => send(session, writer, chunk),
            Job::Abort(why) => {
                // Nothing can be done about it if this is not heard.
                let _ = writer.frame(Header::new(Kind::Abort, 0, 0), why.as_bytes());
                return Ok(());
            }
            Job::Gone => {
                // It may have been woken for something that others can do.
                session.to_send.notify_one();
                return Ok(());
            }
            Job::Over(socket, status) => {
                // On every connection, so that its end is not taken for a break.
                let _ = writer.frame(Header::new(Kind::Bye, (*status).into(), Heard::Over as u64), &[]);
                let _ = socket.shutdown(Shutdown::Write);
                return Ok(());
            }
        };
        if let Job::Chunk(chunk) = job {
            recycle(Some(chunk), &mut session.lock().pool);
        }
        done?;
    }
}

enum Job {
    Statements(Tally),
    Chunk(Arc<Chunk>),
    /// The transfer failed on this side.
    Abort(String),
    /// The connection was lost or replaced.
    Gone,
    /// The transfer is through.
    Over(Arc<socket2::Socket>, u8),
}

/// What is to be said, with its numbers.
struct Tally {
    due: Due,
    consumed: u64,
    have: u64,
    chunks: u64,
    status: u8,
    /// Whether the other side has said Bye.
    heard: Heard,
}

fn next_job(session: &Session, index: usize, generation: u64) -> Job {
    let mut state = session.lock();
    let idle_until = Instant::now() + BEAT;
    loop {
        let socket = match &state.conns[index] {
            Some((current, socket)) if *current == generation => socket.clone(),
            _ => return Job::Gone,
        };
        if let Some(error) = &state.failed {
            return match error.is_transport() {
                true => Job::Gone,
                false => Job::Abort(error.to_string()),
            };
        }
        if state.finished {
            return Job::Over(socket, state.my_bye.unwrap_or(0));
        }
        if state.due != Due::default() {
            return Job::Statements(tally(&mut state));
        }
        if let Some(chunk) = state.outgoing.take(index) {
            return Job::Chunk(chunk);
        }
        let left = idle_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if state.outgoing.overtake(index, OVERTAKE) {
                continue;
            }
            state.due.ack = true;
            continue;
        }
        state = session.wait_for(&session.to_send, state, left);
    }
}

/// Takes over what is due. Fin may overtake chunks, as it carries their number; Bye comes when all else is through.
fn tally(state: &mut State) -> Tally {
    Tally {
        due: std::mem::take(&mut state.due),
        consumed: state.incoming.consumed,
        have: state.incoming.have,
        chunks: state.outgoing.next,
        status: state.my_bye.unwrap_or(0),
        heard: state.their_bye.map_or(Heard::No, |_| Heard::Yes),
    }
}

fn say(writer: &mut Writer, tally: &Tally) -> Result<(), LinkError> {
    let Tally { due, .. } = tally;
    // Whoever hears Bye knows by it how far all came.
    if due.ack || due.bye {
        writer.frame(Header::new(Kind::Ack, tally.consumed, tally.have), &[])?;
    }
    if due.fin {
        writer.frame(Header::new(Kind::Fin, tally.chunks, 0), &[])?;
    }
    if due.stop {
        writer.frame(Header::new(Kind::Stop, 0, 0), &[])?;
    }
    if due.bye {
        writer.frame(Header::new(Kind::Bye, tally.status.into(), tally.heard as u64), &[])?;
    }
    Ok(())
}

fn send(session: &Session, writer: &mut Writer, chunk: &Chunk) -> Result<(), LinkError> {
    session.pace.wait(chunk.buf.len);
    let header =
        Header { packed: chunk.packed, ..Header::new(Kind::Data, chunk.number, chunk.raw_len as u64) };
    writer.frame(header, &chunk.buf)
}
