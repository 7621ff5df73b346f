//! Record bodies (`u16` number, body): no panic, no allocation beyond the limit; a body that is taken has one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pc_image::Record;

fuzz_target!(|data: &[u8]| {
    let Some((number, body)) = data.split_first_chunk::<2>() else { return };
    let number = u16::from_le_bytes(*number);
    for version in 0..=pc_image::record_version(number).unwrap_or(0) {
        let Some(Ok(record)) = Record::decode(number, version, body) else { continue };
        assert_eq!(record.number(), number);
        if record.version() == version {
            assert_eq!(record.encode().as_deref(), Ok(body));
        }
    }
});
