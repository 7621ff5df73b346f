//! The grammar: records in any order, their counts and digest made right. Whatever is taken to its end was committed or
//! cancelled, and is taken again in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pc_image::{Item, Reader, Record, Source};

fuzz_target!(|data: &[u8]| {
    let stream = pc_fuzz::stream(data);
    let mut reader = Reader::new(stream.as_slice());
    let mut last = None;
    loop {
        match reader.next() {
            Ok(Some(item)) => last = Some(item),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let Some(Item::Record(last)) = last else { panic!("a stream without a record was taken") };
    assert!(matches!(*last, Record::Commit(_) | Record::Cancel(_)), "{last:?} closes a stream");
});
