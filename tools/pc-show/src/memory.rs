//! `--pages`: what the pages hold.

use std::io::{self, Write};

use pc_image::{Item, PAGE_SIZE, Record};

use crate::args::Span;

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
            Item::Patches(patches) => {
                for (patch, bytes) in patches.iter() {
                    let range = (patch.addr, patch.addr + bytes.len() as u64);
                    self.fill(range, |at| Some(bytes[at as usize]));
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
    use pc_image::{PageRun, Pages, Patch, Patches, SpaceId};

    fn pages(addr: u64, data: &[u8]) -> Item {
        let runs = vec![PageRun { addr, pages: data.len() as u64 / PAGE_SIZE }];
        Item::Pages(Pages { space: SpaceId(0), runs, payload: data.to_vec(), data_offset: 0 })
    }

    #[test]
    fn the_dump_shows_what_was_sent_last() {
        let mut dump = Dump::new(Span { addr: 0x1ff8, len: 16 });
        dump.item(&pages(0x1000, &[b'a'; 8192]));
        dump.item(&pages(0x2000, &[b'b'; 4096]));
        let patches = vec![Patch { addr: 0x1ffe, len: 2 }, Patch { addr: 0x2007, len: 9 }];
        let payload = b"cdefghijklm".to_vec();
        dump.item(&Item::Patches(Patches { space: SpaceId(0), patches, payload, data_offset: 0 }));
        let mut out = Vec::new();
        dump.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("61 61 61 61 61 61 63 64 62 62") && text.ends_with("aaaaaacdbbbbbbbe\n"),
            "{text}"
        );
    }
}
