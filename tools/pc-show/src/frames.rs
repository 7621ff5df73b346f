//! `--frames`.

use std::io::{self, Write};

use pc_image::{FrameInfo, record_name};

/// One line for a frame.
pub fn line(out: &mut impl Write, info: FrameInfo) -> io::Result<()> {
    let header = info.header;
    let name = record_name(header.kind).unwrap_or("unknown");
    writeln!(
        out,
        "{:>12} {:>8} {:#06x} {:<10} v{} {:>9} crc {:08x}",
        info.offset, header.number, header.kind, name, header.version, header.len, header.payload_crc
    )
}
