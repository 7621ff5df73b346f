//! What a restore would do with a stream that a hostile source put together, without a kernel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pc_image::Reader;

fuzz_target!(|data: &[u8]| {
    let stream = pc_fuzz::stream(data);
    let _ = pc_rebuild::plan(&mut Reader::new(stream.as_slice()));
});
