//! The threads at the ends of a transfer: the source's, the sink's, those that watch, and the packers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::poll::PollFlags;

use crate::LinkError;
use crate::flow::{Buf, Next};
use crate::pack::Packer;
use crate::port::{Sink, Source};
use crate::session::Session;

/// For so long a source that says nothing may still come to its end when the other side wants no more.
const LAST_LOOK: Duration = Duration::from_secs(1);

impl Session {
    pub(crate) fn read_source(&self, source: Option<Source>) {
        let mut source = source;
        let piece = self.pace.piece();
        loop {
            let mut state = self.lock();
            while !state.outgoing.has_room() && !state.outgoing.stopped && state.failed.is_none() {
                state = self.wait(&self.room, state);
            }
            if state.failed.is_some() || state.finished {
                return;
            }
            // One more look tells whether there would have been more: a reader that has had all may end before its writer has.
            let last = state.outgoing.stopped;
            let mut bytes = state.pool.take();
            drop(state);
            let read = match &mut source {
                Some(source) if last => source.read(&mut bytes[..piece], &self.stop, Some(LAST_LOOK)),
                Some(source) => source.read(&mut bytes[..piece], &self.source_stop, None),
                None => Ok(Some(0)),
            };
            match read {
                Ok(Some(0)) => return self.end_source(),
                Ok(_) if last => return,
                Ok(Some(len)) => self.take_in(bytes, len),
                // The other side wants no more, or all is over: the next turn tells.
                Ok(None) => {}
                Err(error) => return self.fail(LinkError::local("reading what is to be sent", &error)),
            }
        }
    }

    pub(crate) fn end_source(&self) {
        let mut state = self.lock();
        state.outgoing.ended = true;
        state.due.fin = true;
        drop(state);
        self.to_send.notify_one();
    }

    pub(crate) fn take_in(&self, bytes: Vec<u8>, len: usize) {
        let (buf, spare) = Buf::fit(bytes, len);
        let mut state = self.lock();
        if let Some(spare) = spare {
            state.pool.give(spare);
        }
        let chunk = state.outgoing.number(buf);
        if state.outgoing.stopped {
            return;
        }
        if self.settings.compress.is_some() {
            state.outgoing.raw.push_back(chunk);
            drop(state);
            self.to_pack.notify_one();
        } else {
            state.outgoing.ready(chunk);
            drop(state);
        }
        self.to_send.notify_one();
    }

    pub(crate) fn pack(&self, level: i32) {
        let mut packer = match Packer::new(level) {
            Ok(packer) => packer,
            Err(error) => return self.fail(LinkError::local("compression", &error)),
        };
        let mut out = Vec::new();
        loop {
            let mut state = self.lock();
            let mut chunk = loop {
                if state.failed.is_some() || state.finished || state.outgoing.done() {
                    return;
                }
                match state.outgoing.raw.pop_front() {
                    Some(chunk) => break chunk,
                    None => state = self.wait(&self.to_pack, state),
                }
            };
            drop(state);
            if let Some(len) = packer.pack(&chunk.buf, &mut out) {
                let (buf, spare) = Buf::fit(std::mem::take(&mut out), len);
                out = spare.unwrap_or_default();
                let old = std::mem::replace(&mut chunk.buf, buf);
                chunk.packed = true;
                self.lock().pool.give(old.bytes);
            }
            self.lock().outgoing.ready(chunk);
            self.to_send.notify_one();
        }
    }

    pub(crate) fn write_sink(&self, sink: Option<Sink>) {
        let mut sink = sink;
        loop {
            let mut state = self.lock();
            let next = loop {
                if state.failed.is_some() || state.finished || state.incoming.stopped {
                    return;
                }
                match state.incoming.take() {
                    Next::Nothing => state = self.wait(&self.arrived, state),
                    next => break next,
                }
            };
            drop(state);
            let Next::Bytes(buf) = next else {
                drop(sink.take());
                self.sink_stop.set();
                let mut state = self.lock();
                state.incoming.close();
                state.due.ack = true;
                drop(state);
                self.to_send.notify_one();
                self.course.notify_all();
                return;
            };
            let Some(open) = &mut sink else { return self.stop_sink("there is nowhere to write it to") };
            match open.write_all(&buf, &self.sink_stop) {
                Ok(true) => self.wrote(buf),
                Ok(false) => return,
                Err(error) => return self.stop_sink(&error.to_string()),
            }
        }
    }

    pub(crate) fn wrote(&self, buf: Buf) {
        let mut state = self.lock();
        // How far it came counts in the end, also when that was while the sink went away.
        let due = state.incoming.wrote(buf.len) || state.incoming.stopped;
        state.due.ack |= due;
        state.pool.give(buf.bytes);
        drop(state);
        if due {
            self.to_send.notify_one();
        }
    }

    /// The sink takes no more: the other side hears of it, so that its source does.
    pub(crate) fn stop_sink(&self, why: &str) {
        let mut state = self.lock();
        if state.incoming.done() {
            return;
        }
        state.incoming.stop();
        // How far it came is reported along with it.
        (state.due.ack, state.due.stop) = (true, true);
        state.sink_failed = Some(why.to_owned());
        drop(state);
        self.sink_stop.set();
        self.to_send.notify_one();
        self.arrived.notify_all();
        self.course.notify_all();
    }

    /// A reader that goes away is noticed while there is nothing to write, too.
    pub(crate) fn watch_sink(&self, sink: &OwnedFd) {
        if let Ok(true) = self.sink_stop.wait(sink.as_fd(), PollFlags::empty()) {
            self.stop_sink("its reader is gone");
        }
    }

    pub(crate) fn watch_cancel(&self, cancel: &OwnedFd) {
        if let Ok(true) = self.stop.wait(cancel.as_fd(), PollFlags::POLLIN) {
            self.fail(LinkError::Cancelled);
        }
    }
}
