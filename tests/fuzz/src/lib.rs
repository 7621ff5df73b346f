//! What the fuzz targets share: bytes made into streams whose checksums are right, so that what lies behind the
//! checksums is reached.

#![forbid(unsafe_code)]

use pc_frame::{END, Event, FrameError, FrameReader, HEADER_LEN, Limits, PREAMBLE_LEN};
use pc_image::{PageRun, Patch, Record, RoundEnd, Sink, SpaceId, Writer};

/// Makes the checksums of preambles, headers and payloads right, as far as the bytes can be followed.
pub fn seal(bytes: &mut [u8]) {
    let mut rest = bytes;
    loop {
        let Some((preamble, frames)) = rest.split_first_chunk_mut::<PREAMBLE_LEN>() else { return };
        let crc = pc_frame::crc32c(&preamble[..60]);
        preamble[60..].copy_from_slice(&crc.to_le_bytes());
        let Some(behind) = seal_frames(frames) else { return };
        rest = behind;
    }
}

/// Seals the frames of a segment; gives what stands after its End.
fn seal_frames(mut rest: &mut [u8]) -> Option<&mut [u8]> {
    for number in 0u64.. {
        let (header, behind) = rest.split_first_chunk_mut::<HEADER_LEN>()?;
        header[16..24].copy_from_slice(&number.to_le_bytes());
        let len = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
        let payload_len = usize::try_from(len).ok().filter(|len| *len <= behind.len());
        if let Some(len) = payload_len {
            let crc = pc_frame::crc32c(&behind[..len]);
            header[24..28].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = pc_frame::crc32c(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        let kind = u16::from_le_bytes([header[0], header[1]]);
        rest = &mut behind[payload_len?..];
        if kind == END {
            return Some(rest);
        }
    }
    None
}

/// All events of a stream, and how it ended.
pub fn events(bytes: &[u8], limits: Limits) -> (Vec<Event>, Result<(), FrameError>) {
    let mut reader = FrameReader::new(bytes, limits);
    let mut events = Vec::new();
    loop {
        match reader.read() {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, Ok(())),
            Err(err) => return (events, Err(err)),
        }
    }
}

/// A stream out of pieces `u16 number, u16 length, body`, each a record (or, with the number of Pages, `u32` space and
/// runs of `u64` address and `u64` pages, with that of Patches, `u32` space and patches of `u64` address and `u16` length; their
/// data are made up). Counts and the digest are made right, so that no
/// luck is needed to get behind a RoundEnd or a Commit.
pub fn stream(mut pieces: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), [7; 16]).expect("a Vec takes everything");
    while let Some((head, rest)) = pieces.split_first_chunk::<4>() {
        let number = u16::from_le_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        let (body, behind) = rest.split_at(len);
        pieces = behind;
        if number == pc_image::PAGES {
            pages(&mut writer, body);
            continue;
        }
        if number == pc_image::PATCHES {
            patches(&mut writer, body);
            continue;
        }
        let version = pc_image::record_version(number).unwrap_or(pc_image::VERSION);
        let record = match Record::decode(number, version, body) {
            Some(Ok(Record::Commit(_))) => {
                writer.commit().expect("a Vec takes everything");
                continue;
            }
            Some(Ok(Record::RoundEnd(end))) => {
                Record::RoundEnd(RoundEnd { counts: writer.round_counts(), ..end })
            }
            Some(Ok(record)) => record,
            _ => continue,
        };
        writer.record(&record).expect("it was decoded before");
    }
    writer.finish().expect("a Vec takes everything")
}

/// Most pages of one record.
const MOST: u64 = 16;

fn pages(writer: &mut Writer<Vec<u8>>, body: &[u8]) {
    let Some((space, rest)) = body.split_first_chunk::<4>() else { return };
    let runs: Vec<PageRun> = rest
        .chunks_exact(16)
        .take(8)
        .map(|run| PageRun {
            addr: u64::from_le_bytes(std::array::from_fn(|i| run[i])),
            pages: u64::from_le_bytes(std::array::from_fn(|i| run[8 + i])) % MOST,
        })
        .collect();
    let total: u64 = runs.iter().map(|run| run.pages).sum();
    let data = vec![0xa5; (total * pc_image::PAGE_SIZE) as usize];
    // Runs that a writer refuses are the frame targets' business.
    let _ = writer.pages(SpaceId(u32::from_le_bytes(*space)), &runs, &[&data]);
}

fn patches(writer: &mut Writer<Vec<u8>>, body: &[u8]) {
    let Some((space, rest)) = body.split_first_chunk::<4>() else { return };
    let patches: Vec<Patch> = rest
        .chunks_exact(10)
        .take(64)
        .map(|patch| Patch {
            addr: u64::from_le_bytes(std::array::from_fn(|i| patch[i])),
            len: u16::from_le_bytes([patch[8], patch[9]]),
        })
        .collect();
    let total = patches.iter().map(|patch| usize::from(patch.len)).sum();
    // Patches that a writer refuses are the frame targets' business.
    let _ = writer.patches(SpaceId(u32::from_le_bytes(*space)), &patches, &vec![0x5a; total]);
}
