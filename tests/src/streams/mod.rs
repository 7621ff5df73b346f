//! The golden streams: made here, kept under tests/golden, and compared byte for byte by `tests/golden.rs`.

pub mod everything;

use std::path::PathBuf;

use pc_frame::{Flags, FrameReader, FrameWriter, Limits};
use pc_image::*;

use everything::{clocks, file, machine, states, task, thread, vma};

/// A stream with the name of its file, without `.pcs`.
pub type Named = (&'static str, Vec<u8>);

/// Where the golden streams are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// All golden streams. Each is complete and right.
pub fn golden() -> Vec<Named> {
    vec![
        ("small", small()),
        ("everything", everything::stream()),
        ("rounds", rounds()),
        ("tree", tree()),
        ("cancelled", cancelled()),
        ("skippable", skippable()),
        ("segments", [small(), cancelled()].concat()),
    ]
}

/// Says the counts that the round has come to.
pub fn end_round(w: &mut Writer<Vec<u8>>, number: u32) {
    let counts = w.round_counts();
    w.record(&Record::RoundEnd(RoundEnd { number, counts })).expect("a Vec takes everything");
}

/// Reads a stream to its end.
pub fn read(bytes: &[u8]) -> Result<Vec<Item>, ImageError> {
    let mut reader = Reader::new(bytes);
    let mut items = Vec::new();
    while let Some(item) = reader.next()? {
        items.push(item);
    }
    Ok(items)
}

fn begin(id: &[u8; 16]) -> Writer<Vec<u8>> {
    let mut w = Writer::new(Vec::new(), *id).expect("a Vec takes everything");
    put(&mut w, Record::Machine(machine()));
    w
}

fn put(w: &mut Writer<Vec<u8>>, record: Record) {
    w.record(&record).expect("a Vec takes everything");
}

fn begin_round(w: &mut Writer<Vec<u8>>, number: u32, last: bool) {
    let clocks = clocks(2_000_000_000 + 500_000_000 * i64::from(number));
    put(w, Record::RoundBegin(RoundBegin { number, last, clocks }));
}

fn pages(w: &mut Writer<Vec<u8>>, space: u32, addr: u64, bytes: &[u8]) {
    let pages = bytes.len().div_ceil(PAGE_SIZE as usize);
    let mut data = bytes.to_vec();
    data.resize(pages * PAGE_SIZE as usize, 0);
    let runs = [PageRun { addr, pages: pages as u64 }];
    w.pages(SpaceId(space), &runs, &[&data]).expect("a Vec takes everything");
}

fn finish(mut w: Writer<Vec<u8>>) -> Vec<u8> {
    w.commit().expect("a Vec takes everything");
    w.finish().expect("a Vec takes everything")
}

/// A space, a task in it, the files that it needs, and a mapping.
fn births(w: &mut Writer<Vec<u8>>) {
    put(w, Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm }));
    put(w, Record::Task(task()));
    put(w, file(0, "/bin/guest", FileNeed::Same));
    put(w, file(1, "/tmp", FileNeed::Kind));
    map(w, 0, vec![vma(0x1000, 0x9000, Backing::Anonymous)]);
}

fn map(w: &mut Writer<Vec<u8>>, space: u32, map: Vec<Vma>) {
    let change = MapChange { space: SpaceId(space), unmap: vec![], map, modify: vec![] };
    put(w, Record::MapChange(change));
}

/// What exists only at the stop, with no descriptors.
fn state(w: &mut Writer<Vec<u8>>) {
    for record in states() {
        let record = match record {
            Record::FdTable(table) => Record::FdTable(FdTable { fds: vec![], ..table }),
            other => other,
        };
        put(w, record);
    }
}

/// One process in one round with one page.
fn small() -> Vec<u8> {
    let mut w = begin(b"a small stream!!");
    begin_round(&mut w, 0, true);
    births(&mut w);
    pages(&mut w, 0, 0x1000, b"hello, world");
    state(&mut w);
    end_round(&mut w, 0);
    finish(w)
}

/// Pages that are sent again, patched, dropped, and unmapped, in four rounds; a text that reaches from page to page.
fn rounds() -> Vec<u8> {
    let mut w = begin(b"a rounds stream!");
    begin_round(&mut w, 0, false);
    births(&mut w);
    let mut first = vec![0x11; 3 * PAGE_SIZE as usize];
    first[0x0ffa..0x1000].copy_from_slice(b"needle");
    first[0x1000..0x1004].copy_from_slice(b"work");
    pages(&mut w, 0, 0x1000, &first);
    put(&mut w, Record::ZeroPages(ZeroPages { space: SpaceId(0), ranges: vec![(0x5000, 0x8000)] }));
    end_round(&mut w, 0);
    begin_round(&mut w, 1, false);
    pages(&mut w, 0, 0x2000, b"workshop, written between rounds");
    end_round(&mut w, 1);
    begin_round(&mut w, 2, false);
    let unmap = vec![(0x8000, 0x9000)];
    put(&mut w, Record::MapChange(MapChange { space: SpaceId(0), unmap, map: vec![], modify: vec![] }));
    put(&mut w, Record::Zap(Zap { space: SpaceId(0), ranges: vec![(0x3000, 0x4000)] }));
    let patches = [Patch { addr: 0x200a, len: 7 }, Patch { addr: 0x2ffe, len: 2 }];
    w.patches(SpaceId(0), &patches, b"patchedwo").expect("a Vec takes everything");
    pages(&mut w, 0, 0x5000, b"not zero any more");
    end_round(&mut w, 2);
    begin_round(&mut w, 3, true);
    pages(&mut w, 0, 0x2000, b"work, at the stop");
    state(&mut w);
    end_round(&mut w, 3);
    finish(w)
}

/// A process, its child in an address space of its own, a grandchild that shares the child's, and a zombie.
fn tree() -> Vec<u8> {
    let mut w = begin(b"a tree of tasks!");
    begin_round(&mut w, 0, true);
    births(&mut w);
    put(&mut w, Record::Space(Space { id: SpaceId(1), kind: SpaceKind::Mm }));
    let child = |id: u32, parent: u32, space: Option<u32>, comm: &str| Task {
        id: TaskId(id),
        pid: 200 + id,
        parent: Some(TaskId(parent)),
        space: space.map(SpaceId),
        tids: vec![200 + id],
        comm: comm.into(),
        ..task()
    };
    put(&mut w, Record::Task(child(1, 0, Some(1), "child")));
    put(&mut w, Record::Task(child(2, 1, Some(1), "grandchild")));
    put(&mut w, Record::Task(child(3, 0, None, "zombie")));
    map(&mut w, 1, vec![vma(0x1000, 0x2000, Backing::File { file: FileId(0), offset: 0 })]);
    pages(&mut w, 0, 0x1000, b"of the parent");
    pages(&mut w, 1, 0x1000, b"of the child");
    state(&mut w);
    for record in states() {
        match record {
            Record::MmState(mm) => put(&mut w, Record::MmState(MmState { space: SpaceId(1), ..mm })),
            Record::TaskState(state) => {
                for id in [1, 2] {
                    put(&mut w, Record::TaskState(TaskState { task: TaskId(id), ..state.clone() }));
                }
            }
            _ => {}
        }
    }
    for id in [1, 2] {
        put(&mut w, Record::Thread(Thread { task: TaskId(id), ..thread(200 + id) }));
    }
    end_round(&mut w, 0);
    finish(w)
}

/// A stream that was given up after a round.
fn cancelled() -> Vec<u8> {
    let mut w = begin(b"a cancelled one!");
    begin_round(&mut w, 0, false);
    put(&mut w, Record::Space(Space { id: SpaceId(7), kind: SpaceKind::Mm }));
    end_round(&mut w, 0);
    put(&mut w, Record::Cancel(Cancel { reason: "the disk is full".into() }));
    w.finish().expect("a Vec takes everything")
}

/// A cancelled stream with a frame that its reader does not know but may pass over.
fn skippable() -> Vec<u8> {
    let mut out = FrameWriter::new(Vec::new(), Limits::default());
    let bytes = cancelled();
    let mut reader = FrameReader::new(bytes.as_slice(), Limits::default());
    while let Some(event) = reader.read().expect("a good stream") {
        match event {
            pc_frame::Event::Preamble(preamble) => out.preamble(&preamble).expect("a Vec"),
            pc_frame::Event::Frame(frame) => {
                if record_name(frame.header.kind) == Some("Cancel") {
                    out.frame(0x7777, 3, Flags::SKIPPABLE, &[b"from the future"]).expect("a Vec");
                }
                let header = frame.header;
                out.frame(header.kind, header.version, header.flags, &[&frame.payload]).expect("a Vec");
            }
        }
    }
    out.flush().expect("a Vec");
    out.into_inner()
}
