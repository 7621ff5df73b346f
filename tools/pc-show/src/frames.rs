//! `--frames`.

use std::io::{self, Write};

use pc_frame::PREAMBLE_LEN;
use pc_image::{FrameInfo, Step, record_name};

/// One line for a preamble or frame. `offset` is how much has been read.
pub fn line(out: &mut impl Write, step: &Step, offset: u64, last: Option<FrameInfo>) -> io::Result<()> {
    if let Step::Preamble(preamble) = step {
        let at = offset - PREAMBLE_LEN as u64;
        let id: String = preamble.stream_id.iter().map(|b| format!("{b:02x}")).collect();
        return writeln!(out, "{at:>12} preamble v{} {id}", preamble.version);
    }
    let Some(FrameInfo { offset, header }) = last else { return Ok(()) };
    let name = record_name(header.kind).unwrap_or("unknown");
    writeln!(
        out,
        "{offset:>12} {:>8} {:#06x} {name:<10} v{} {:>9} crc {:08x}",
        header.number, header.kind, header.version, header.len, header.payload_crc
    )
}
