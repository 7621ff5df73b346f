//! The whole reader on bytes whose checksums are right: one byte at a time is the same as all at once.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use pc_frame::Limits;
use pc_image::{Item, Reader, Source};

fuzz_target!(|data: &[u8]| {
    let mut sealed = data.to_vec();
    pc_fuzz::seal(&mut sealed);
    assert_eq!(read(sealed.as_slice()), read(OneByOne(&sealed)));
});

/// The items, and what was wrong in the end.
fn read(input: impl Read) -> (Vec<Item>, Option<String>) {
    let mut reader = Reader::with_limits(input, Limits { payload: 1 << 20 });
    let mut items = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return (items, None),
            Err(err) => return (items, Some(err.to_string())),
        }
    }
}

struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = out.len().min(1);
        self.0.read(&mut out[..n])
    }
}
