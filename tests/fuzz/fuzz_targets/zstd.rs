//! The zstd layer with the reader on top: no panic, bounded memory, whatever the compressed bytes claim.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use pc_cli::Input;
use pc_image::{Reader, Source};

/// More than this of a bomb is not waited for.
const ENOUGH: u64 = 1 << 24;

fuzz_target!(|data: &[u8]| {
    let mut file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(data).expect("a memfd takes everything");
    file.rewind().expect("a memfd can be rewound");
    let Ok(input) = Input::new(file) else { return };
    let mut reader = Reader::new(input);
    while let Ok(Some(_)) = reader.next() {
        if reader.offset() > ENOUGH {
            return;
        }
    }
});
