//! Spans of any length in batches that fit a buffer.

use pc_sys::mem::IOV_MAX;

use crate::memory::Span;
use crate::pages::chunk::CHUNK;

/// Cuts spans into batches that fit a chunk.
#[derive(Debug)]
pub struct Cutter<'a> {
    spans: &'a [Span],
    at: usize,
    done: u64,
}

impl<'a> Cutter<'a> {
    pub fn new(spans: &'a [Span]) -> Self {
        Self { spans, at: 0, done: 0 }
    }

    /// The next spans of the same readability, of at most [`CHUNK`] bytes.
    pub fn next(&mut self, out: &mut Vec<Span>) {
        out.clear();
        let mut room = CHUNK as u64;
        while let Some(span) = self.spans.get(self.at) {
            if room == 0 || out.len() == IOV_MAX || out.first().is_some_and(|f| f.readable != span.readable) {
                return;
            }
            let start = span.start + self.done;
            let len = room.min(span.end - start);
            out.push(Span { start, end: start + len, ..*span });
            room -= len;
            self.done += len;
            if start + len == span.end {
                self.at += 1;
                self.done = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::How;

    #[test]
    fn spans_are_cut_at_the_chunk_and_where_readability_changes() {
        let span = |start: u64, end: u64, readable| Span { start, end, readable, how: How::Send };
        let mib = 1 << 20;
        let spans = [
            span(0, 3 * mib / 2, true),
            span(2 * mib, 2 * mib + 4096, true),
            span(4 * mib, 4 * mib + 4096, false),
        ];
        let mut cut = Cutter::new(&spans);
        let mut out = Vec::new();
        cut.next(&mut out);
        assert_eq!(out, [span(0, mib, true)]);
        cut.next(&mut out);
        assert_eq!(out, [span(mib, 3 * mib / 2, true), span(2 * mib, 2 * mib + 4096, true)]);
        cut.next(&mut out);
        assert_eq!(out, [span(4 * mib, 4 * mib + 4096, false)]);
        cut.next(&mut out);
        assert!(out.is_empty());
    }
}
