//! `--pages`, `--search`, `--search-text`: what the pages hold.

use std::io::{self, Write};

use memchr::memmem::Finder;
use pc_image::{Item, PAGE_SIZE, Record, SpaceId};

use crate::args::{Needle, Span};
use crate::model::Model;

/// Looks for bytes in page data as it goes by, across the borders of pages that follow each other.
#[derive(Debug)]
pub struct Search {
    finder: Finder<'static>,
    /// Where the bytes kept from before end, and those bytes: up to one less than the needle has.
    tail: Option<(SpaceId, u64, Vec<u8>)>,
}

impl Search {
    pub fn new(needle: &Needle) -> Self {
        Self { finder: Finder::new(&needle.0).into_owned(), tail: None }
    }

    /// Searches an item; prints each place with the round in which it was sent.
    pub fn item(&mut self, item: &Item, model: &Model, out: &mut impl Write) -> io::Result<()> {
        let Item::Pages(pages) = item else { return Ok(()) };
        let round = model.rounds.last().map_or(0, |round| round.number);
        let mut data = pages.data();
        for run in &pages.runs {
            let (bytes, rest) = data.split_at(((run.pages * PAGE_SIZE) as usize).min(data.len()));
            data = rest;
            self.border(pages.space, run.addr, bytes, round, out)?;
            for at in self.finder.find_iter(bytes) {
                report(out, pages.space, run.addr + at as u64, round)?;
            }
            let keep = (self.finder.needle().len() - 1).min(bytes.len());
            self.tail =
                Some((pages.space, run.addr + bytes.len() as u64, bytes[bytes.len() - keep..].to_vec()));
        }
        Ok(())
    }

    /// Matches that begin in the bytes before a run and end in it.
    fn border(
        &self,
        space: SpaceId,
        addr: u64,
        bytes: &[u8],
        round: u32,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let Some((_, _, tail)) = self.tail.as_ref().filter(|(s, end, _)| *s == space && *end == addr) else {
            return Ok(());
        };
        let reach = (self.finder.needle().len() - 1).min(bytes.len());
        let joined = [tail.as_slice(), &bytes[..reach]].concat();
        for at in self.finder.find_iter(&joined).filter(|at| *at < tail.len()) {
            report(out, space, addr - (tail.len() - at) as u64, round)?;
        }
        Ok(())
    }
}

fn report(out: &mut impl Write, space: SpaceId, addr: u64, round: u32) -> io::Result<()> {
    writeln!(out, "space {} {addr:#014x} round {round}", space.0)
}

/// Keeps the final content of a range.
#[derive(Debug)]
pub struct Dump {
    span: Span,
    bytes: Vec<Option<u8>>,
}

impl Dump {
    pub fn new(span: Span) -> Self {
        Self { span, bytes: vec![None; span.len as usize] }
    }

    /// Takes what an item says of the range.
    pub fn item(&mut self, item: &Item) {
        match item {
            Item::Pages(pages) => {
                let mut data = pages.data();
                for run in &pages.runs {
                    let (bytes, rest) = data.split_at(((run.pages * PAGE_SIZE) as usize).min(data.len()));
                    data = rest;
                    self.fill((run.addr, run.addr + bytes.len() as u64), |at| Some(bytes[at as usize]));
                }
            }
            Item::Record(record) => match &**record {
                Record::ZeroPages(zero) => {
                    zero.ranges.iter().for_each(|range| self.fill(*range, |_| Some(0)))
                }
                Record::Zap(zap) => zap.ranges.iter().for_each(|range| self.fill(*range, |_| None)),
                Record::MapChange(change) => {
                    change.unmap.iter().for_each(|range| self.fill(*range, |_| None))
                }
                _ => {}
            },
        }
    }

    fn fill(&mut self, (start, end): (u64, u64), byte: impl Fn(u64) -> Option<u8>) {
        let from = start.max(self.span.addr);
        let to = end.min(self.span.addr + self.span.len);
        for addr in from..to.max(from) {
            self.bytes[(addr - self.span.addr) as usize] = byte(addr - start);
        }
    }

    /// A hex dump; bytes that the stream does not carry (zero, or the file's) are `..`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (i, row) in self.bytes.chunks(16).enumerate() {
            let hex: Vec<String> =
                row.iter().map(|b| b.map_or("..".to_owned(), |b| format!("{b:02x}"))).collect();
            let text: String = row
                .iter()
                .map(|b| b.filter(|b| b.is_ascii_graphic() || *b == b' ').map_or('.', char::from))
                .collect();
            writeln!(out, "{:012x}  {:<47}  {text}", self.span.addr + 16 * i as u64, hex.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pc_image::{PageRun, Pages};

    fn pages(addr: u64, data: &[u8]) -> Item {
        let runs = vec![PageRun { addr, pages: data.len() as u64 / PAGE_SIZE }];
        Item::Pages(Pages { space: SpaceId(0), runs, payload: data.to_vec(), data_offset: 0 })
    }

    #[test]
    fn a_text_across_the_border_of_two_pages_is_found_once() {
        let mut first = vec![0; 4096];
        first[4090..].copy_from_slice(b"needle");
        let mut second = vec![0; 4096];
        second[..4].copy_from_slice(b"work");
        let mut search = Search::new(&Needle(b"needlework".to_vec()));
        let mut out = Vec::new();
        let model = Model::default();
        search.item(&pages(0x1000, &first), &model, &mut out).unwrap();
        search.item(&pages(0x2000, &second), &model, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "space 0 0x000000001ffa round 0\n");
    }

    #[test]
    fn the_dump_shows_what_was_sent_last() {
        let mut dump = Dump::new(Span { addr: 0x1ff8, len: 16 });
        dump.item(&pages(0x1000, &[b'a'; 8192]));
        dump.item(&pages(0x2000, &[b'b'; 4096]));
        let mut out = Vec::new();
        dump.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("61 61 61 61 61 61 61 61 62 62") && text.ends_with("aaaaaaaabbbbbbbb\n"),
            "{text}"
        );
    }
}
