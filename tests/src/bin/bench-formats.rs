//! How fast the formats are on one core: `just bench-formats`.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::{self, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pc_frame::{Event, Flags, FrameReader, FrameWriter, Limits, Preamble};
use pc_image::{
    Item, PAGE_SIZE, PageRun, Reader, Record, RoundBegin, RoundEnd, Sink, Source, Space, SpaceId, SpaceKind,
    Writer,
};
use pc_tests::streams::everything::{clocks, machine, thread};

const PAGE: usize = PAGE_SIZE as usize;
/// Bytes of page data in a record, as pc-dump has it.
const RECORD: usize = 1 << 20;
/// Records in a stream: more than any cache holds.
const RECORDS: usize = 64;
/// Each figure is the best of this many.
const TRIES: usize = 40;

fn main() -> ExitCode {
    pc_cli::main("bench-formats", run)
}

fn run() -> anyhow::Result<ExitCode> {
    let data: Vec<u8> = (0..RECORD).map(|i| (i * 31 + i / PAGE) as u8).collect();
    let frames = frames(&data)?;
    let image = image(&data)?;
    let size = frames.len() as f64;
    rate("encode frames with page data", size, || encode(&data));
    rate("decode frames with page data, from memory", size, || decode_frames(frames.as_slice()));
    let from_file = Scratch::new(&frames)?;
    rate("decode frames with page data, from a file", size, || decode_frames(from_file.open()));
    rate("read records with page data, from memory", image.len() as f64, || decode_image(&image));
    rate("CRC-32C of a mebibyte", RECORD as f64, || pc_frame::crc32c(black_box(&data)));
    zero_pages();
    records()?;
    Ok(ExitCode::SUCCESS)
}

/// Says how many GB/s the best of some tries was.
fn rate<T>(what: &str, bytes: f64, work: impl FnMut() -> T) {
    println!("{what:<45} {:>8.2} GB/s", bytes / best(work).as_secs_f64() / 1e9);
}

fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    let time = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        began.elapsed()
    };
    let mut work = || drop(black_box(work()));
    (0..TRIES).map(|_| time(&mut work)).min().unwrap_or_default()
}

fn frames(data: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut writer = FrameWriter::new(Vec::with_capacity(RECORDS * (RECORD + 64)), Limits::default());
    writer.preamble(&Preamble::x86_64([0; 16]))?;
    for _ in 0..RECORDS {
        writer.frame(1, 0, Flags::default(), &[data])?;
    }
    writer.end()?;
    Ok(writer.into_inner())
}

fn encode(data: &[u8]) -> u64 {
    let mut writer = FrameWriter::new(io::sink(), Limits::default());
    for _ in 0..RECORDS {
        writer.frame(1, 0, Flags::default(), &[black_box(data)]).expect("a sink takes everything");
    }
    writer.offset()
}

fn decode_frames(input: impl Read) -> u64 {
    let mut reader = FrameReader::new(input, Limits::default());
    let mut bytes = 0;
    while let Some(event) = reader.read().expect("a good stream") {
        if let Event::Frame(frame) = event {
            bytes += frame.payload.len() as u64;
            reader.recycle(frame.payload);
        }
    }
    bytes
}

/// A stream with a space and page data, cancelled at its end.
fn image(data: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::with_capacity(RECORDS * (RECORD + 64)), [0; 16])?;
    writer.record(&Record::Machine(machine()))?;
    writer.record(&Record::RoundBegin(RoundBegin { number: 0, last: false, clocks: clocks(0) }))?;
    writer.record(&Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm }))?;
    for i in 0..RECORDS {
        let runs = [PageRun { addr: (i * RECORD) as u64, pages: (RECORD / PAGE) as u64 }];
        writer.pages(SpaceId(0), &runs, &[data])?;
    }
    let counts = writer.round_counts();
    writer.record(&Record::RoundEnd(RoundEnd { number: 0, counts }))?;
    writer.record(&Record::Cancel(pc_image::Cancel { reason: "enough".into() }))?;
    Ok(writer.finish()?)
}

fn decode_image(bytes: &[u8]) -> u64 {
    let mut reader = Reader::new(bytes);
    let mut pages = 0;
    while let Some(item) = reader.next().expect("a good stream") {
        if let Item::Pages(item) = item {
            pages += item.runs.iter().map(|run| run.pages).sum::<u64>();
            reader.recycle(item.payload);
        }
    }
    pages
}

/// Comparing with a page of zeroes: pages that are, and pages that differ in their last byte.
fn zero_pages() {
    static ZERO: [u8; PAGE] = [0; PAGE];
    let mut pages = vec![0_u8; 64 << 20];
    let count = |pages: &[u8]| pages.chunks_exact(PAGE).filter(|page| **page == ZERO).count();
    rate("tell zero pages", pages.len() as f64, || count(black_box(&pages)));
    pages.chunks_exact_mut(PAGE).for_each(|page| page[PAGE - 1] = 1);
    rate("tell pages that are zero but for the last byte", pages.len() as f64, || count(black_box(&pages)));
}

fn records() -> anyhow::Result<()> {
    const MANY: usize = 100_000;
    let thread = Record::Thread(thread(1));
    let body = thread.encode().map_err(anyhow::Error::msg)?;
    let each = |time: Duration| time.as_nanos() as f64 / MANY as f64;
    let encode =
        best(|| (0..MANY).map(|_| black_box(&thread).encode().map_or(0, |body| body.len())).sum::<usize>());
    let decode = best(|| {
        let record = || Record::decode(thread.number(), thread.version(), black_box(&body));
        (0..MANY).filter(|_| matches!(record(), Some(Ok(_)))).count()
    });
    println!("{:<45} {:>8.0} ns each ({} bytes)", "encode a Thread record", each(encode), body.len());
    println!("{:<45} {:>8.0} ns each", "decode a Thread record", each(decode));
    Ok(())
}

/// A file that goes with its guard.
struct Scratch(pc_tests::Folder);

impl Scratch {
    fn new(bytes: &[u8]) -> io::Result<Self> {
        let folder = pc_tests::Folder::new();
        std::fs::write(folder.file("stream"), bytes)?;
        Ok(Self(folder))
    }

    fn open(&self) -> std::fs::File {
        std::fs::File::open(self.0.file("stream")).expect("it was written before")
    }
}
