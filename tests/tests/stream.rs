//! Records survive the trip; whatever is wrong is found and blamed rightly.

#![forbid(unsafe_code)]

use pc_image::*;
use pc_tests::streams::everything::{clocks, machine, open_files, stream, task, thread};
use pc_tests::streams::{end_round, read};

#[test]
fn every_record_comes_back_as_it_was() {
    let items = read(&stream()).unwrap();
    let names: std::collections::BTreeSet<_> = items.iter().map(Item::name).collect();
    let known = (0..=u16::MAX).filter_map(record_name).filter(|name| !["Cancel", "End"].contains(name));
    assert_eq!(names, known.collect(), "all records but Cancel");
    assert!(items.contains(&Item::Record(Box::new(Record::Machine(machine())))));
    assert!(items.contains(&Item::Record(Box::new(Record::Thread(thread(101))))));
    for file in open_files() {
        assert!(items.contains(&Item::Record(Box::new(file))));
    }
    let pages =
        items.iter().find_map(|item| if let Item::Pages(pages) = item { Some(pages) } else { None }).unwrap();
    assert_eq!(pages.data(), vec![0xab; 8192]);
}

#[test]
fn a_stream_of_another_architecture_or_page_size_is_refused_by_name() {
    let mut bytes = stream();
    let mut preamble = pc_frame::Preamble::x86_64([0; 16]);
    preamble.arch = 183;
    bytes[..64].copy_from_slice(&preamble.encode());
    let err = read(&bytes).unwrap_err();
    assert!(err.blame() == Blame::Unsupported && err.to_string().contains("architecture"), "{err}");
    preamble.arch = pc_frame::ARCH_X86_64;
    preamble.page_size = 65536;
    bytes[..64].copy_from_slice(&preamble.encode());
    let err = read(&bytes).unwrap_err();
    assert!(err.blame() == Blame::Unsupported && err.to_string().contains("65536"), "{err}");
}

/// A writer in the middle of its only round.
fn begun(last: bool) -> Writer<Vec<u8>> {
    let mut w = Writer::new(Vec::new(), [1; 16]).unwrap();
    w.record(&Record::Machine(machine())).unwrap();
    w.record(&Record::RoundBegin(RoundBegin { number: 0, last, clocks: clocks(0) })).unwrap();
    w.record(&Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm })).unwrap();
    w
}

/// Why a stream is refused.
fn refused(mut w: Writer<Vec<u8>>) -> String {
    w.commit().unwrap();
    let err = read(&w.finish().unwrap()).unwrap_err();
    assert_eq!(err.blame(), Blame::Stream, "{err}");
    err.to_string()
}

#[test]
fn a_page_twice_in_one_round_is_refused() {
    let mut w = begun(true);
    let page = [1; 4096];
    w.pages(SpaceId(0), &[PageRun { addr: 0x2000, pages: 1 }], &[&page]).unwrap();
    w.pages(SpaceId(0), &[PageRun { addr: 0x1000, pages: 1 }], &[&page]).unwrap();
    w.record(&Record::ZeroPages(ZeroPages { space: SpaceId(0), ranges: vec![(0x1000, 0x3000)] })).unwrap();
    end_round(&mut w, 0);
    assert!(refused(w).contains("twice in one round"));
}

/// What is said of patches of a page after some records, in a round of their own.
fn patched(before: impl FnOnce(&mut Writer<Vec<u8>>), addr: u64) -> String {
    let mut w = begun(false);
    w.pages(SpaceId(0), &[PageRun { addr: 0x1000, pages: 2 }], &[&[1; 8192]]).unwrap();
    end_round(&mut w, 0);
    w.record(&Record::RoundBegin(RoundBegin { number: 1, last: false, clocks: clocks(0) })).unwrap();
    before(&mut w);
    w.patches(SpaceId(0), &[Patch { addr, len: 3 }], b"abc").unwrap();
    end_round(&mut w, 1);
    w.record(&Record::Cancel(Cancel { reason: String::new() })).unwrap();
    read(&w.finish().unwrap()).err().map_or(String::new(), |err| {
        assert_eq!(err.blame(), Blame::Stream, "{err}");
        err.to_string()
    })
}

#[test]
fn patches_are_of_pages_that_were_sent_in_another_round_and_still_are() {
    let change = |unmap, map| Record::MapChange(MapChange { space: SpaceId(0), unmap, map, modify: vec![] });
    let zero = |range| Record::ZeroPages(ZeroPages { space: SpaceId(0), ranges: vec![range] });
    let page = (0x2000, 0x3000);
    assert_eq!(patched(|_| {}, 0x2000), "");
    assert_eq!(patched(|w| w.record(&zero((0x1000, 0x2000))).unwrap(), 0x2ffd), "");
    assert!(patched(|_| {}, 0x3000).contains("not sent or are gone"));
    assert!(patched(|w| w.record(&zero(page)).unwrap(), 0x2000).contains("twice in one round"));
    let zeroed = |w: &mut Writer<Vec<u8>>| {
        w.record(&zero(page)).unwrap();
        end_round(w, 1);
        w.record(&Record::RoundBegin(RoundBegin { number: 2, last: false, clocks: clocks(0) })).unwrap();
    };
    assert!(patched(zeroed, 0x2000).contains("not sent or are gone"));
    let zap = Record::Zap(Zap { space: SpaceId(0), ranges: vec![page] });
    assert!(patched(|w| w.record(&zap).unwrap(), 0x2000).contains("not sent or are gone"));
    assert!(patched(|w| w.record(&change(vec![page], vec![])).unwrap(), 0x2000).contains("or are gone"));
    let gone = Record::SpaceGone(SpaceId(0));
    assert!(patched(|w| w.record(&gone).unwrap(), 0x2000).contains("nobody announced"));
}

#[test]
fn patches_are_counted_by_pages() {
    let mut w = begun(false);
    w.pages(SpaceId(0), &[PageRun { addr: 0x1000, pages: 3 }], &[&[1; 12288]]).unwrap();
    end_round(&mut w, 0);
    w.record(&Record::RoundBegin(RoundBegin { number: 1, last: false, clocks: clocks(0) })).unwrap();
    let patch = |addr| Patch { addr, len: 1 };
    let patches = [0x1000, 0x1001, 0x1fff, 0x3000].map(patch);
    w.patches(SpaceId(0), &patches, b"abcd").unwrap();
    assert_eq!(w.round_counts(), Counts { patched_pages: 2, ..Counts::default() });
    assert_eq!(w.totals(), Counts { pages: 3, patched_pages: 2, ..Counts::default() });
}

#[test]
fn patches_that_are_not_within_pages_or_do_not_ascend_are_refused_by_writer_and_reader() {
    let lay = |patches: &[(u64, u16)], data: usize| {
        let mut body = [0u32.to_le_bytes(), (patches.len() as u32).to_le_bytes()].concat();
        for (addr, len) in patches {
            body.extend(addr.to_le_bytes().iter().chain(&len.to_le_bytes()));
        }
        body.resize(body.len() + data, 7);
        body
    };
    let refused = |body: &[u8]| {
        use pc_frame::{Flags, FrameWriter, Limits, Preamble};
        let mut w = FrameWriter::new(Vec::new(), Limits::default());
        w.preamble(&Preamble::x86_64([0; 16])).unwrap();
        w.frame(PATCHES, VERSION, Flags::default(), &[body]).unwrap();
        w.end().unwrap();
        let err = read(&w.into_inner()).unwrap_err();
        assert!(matches!(err, ImageError::Body { record: "Patches", .. }), "{err}");
        err.to_string()
    };
    let cases = [
        (&[][..], 0, "patches of 0 bytes"),
        (&[(0x1000, 0)], 0, "not within a page"),
        (&[(0x1fff, 2)], 2, "not within a page"),
        (&[(0x1000, 4097)], 4097, "not within a page"),
        (&[(0x1004, 4), (0x1000, 4)], 8, "do not ascend"),
        (&[(0x1000, 4), (0x1003, 4)], 8, "do not ascend"),
        (&[(0x1000, 4)], 3, "3 bytes of data"),
        (&[(u64::MAX - 1, 2)], 2, "end of the address space"),
    ];
    for (patches, data, word) in cases {
        let said = refused(&lay(patches, data));
        assert!(said.contains(word), "{said}");
        let patches: Vec<Patch> = patches.iter().map(|&(addr, len)| Patch { addr, len }).collect();
        let err = begun(false).patches(SpaceId(0), &patches, &vec![7; data]).unwrap_err();
        assert!(matches!(err, ImageError::Caller(_)) && err.to_string().contains(word), "{err}");
    }
    let mut claims = lay(&[(0x1000, 4)], 4);
    claims[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refused(&claims).contains("4294967295 patches in 22 bytes"));
    assert!(refused(b"1234567").contains("too short"));
}

#[test]
fn a_commit_without_a_last_round_or_without_all_state_is_refused() {
    let mut w = begun(false);
    end_round(&mut w, 0);
    assert!(refused(w).contains("without a last round"));
    let mut w = begun(true);
    w.record(&Record::Task(task())).unwrap();
    end_round(&mut w, 0);
    assert!(refused(w).contains("has no MmState"));
}

#[test]
fn counts_that_do_not_agree_are_refused() {
    let mut w = begun(true);
    w.record(&Record::RoundEnd(RoundEnd { number: 0, counts: Counts { pages: 1, ..Counts::default() } }))
        .unwrap();
    assert!(refused(w).contains("counts"));
}

#[test]
fn records_out_of_place_are_refused() {
    let mut w = Writer::new(Vec::new(), [1; 16]).unwrap();
    w.record(&Record::TaskGone(TaskId(0))).unwrap();
    assert!(refused(w).contains("Machine was due"));
    let mut w = begun(true);
    w.record(&Record::TaskGone(TaskId(9))).unwrap();
    assert!(refused(w).contains("nobody announced"));
    let mut w = begun(true);
    w.record(&Record::SpaceGone(SpaceId(0))).unwrap();
    w.record(&Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm })).unwrap();
    assert!(refused(w).contains("used again"));
    let mut w = begun(true);
    w.pages(SpaceId(0), &[PageRun { addr: 0, pages: 1 }], &[&[0; 4096]]).unwrap();
    w.record(&Record::Zap(Zap { space: SpaceId(0), ranges: vec![(0, 4096)] })).unwrap();
    assert!(refused(w).contains("Zaps behind Pages"));
}

#[test]
fn a_task_that_is_its_own_ancestor_is_refused() {
    let id = |id, parent| Record::Task(Task { id: TaskId(id), parent, ..task() });
    let mut w = begun(true);
    w.record(&id(0, None)).unwrap();
    w.record(&id(1, Some(TaskId(0)))).unwrap();
    w.record(&id(2, Some(TaskId(1)))).unwrap();
    w.record(&id(0, Some(TaskId(2)))).unwrap();
    assert!(refused(w).contains("its own ancestor"));
}

#[test]
fn mappings_of_a_space_that_is_gone_are_refused() {
    let mut w = begun(true);
    w.record(&Record::SpaceGone(SpaceId(0))).unwrap();
    let change = MapChange { space: SpaceId(0), unmap: vec![(0, 4096)], map: vec![], modify: vec![] };
    w.record(&Record::MapChange(change)).unwrap();
    assert!(refused(w).contains("no address space"));
}

#[test]
fn counts_beyond_what_can_be_counted_are_refused_and_do_not_overflow() {
    let all = Record::Zap(Zap { space: SpaceId(0), ranges: vec![(0, u64::MAX - 4095)] });
    let mut validator = Validator::default();
    validator.begin_segment();
    validator.record(&Record::Machine(machine())).unwrap();
    let begin = RoundBegin { number: 0, last: false, clocks: clocks(0) };
    validator.record(&Record::RoundBegin(begin)).unwrap();
    validator.record(&Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm })).unwrap();
    let refused = (0..5000).find_map(|_| validator.record(&all).err());
    assert_eq!(refused.as_deref(), Some("more pages than can be counted"));
}

#[test]
fn shared_memory_has_to_be_announced_and_no_page_lies_behind_its_end() {
    let object = SpaceId(1);
    let kind = SpaceKind::Shm { size: 5000, name: "/memfd:x (deleted)".into() };
    let born = Record::Space(Space { id: object, kind });
    let state = |size| Record::ShmState(ShmState { space: object, size, seals: 0, mode: 0, uid: 0, gid: 0 });
    let zero = |end| Record::ZeroPages(ZeroPages { space: object, ranges: vec![(end - 4096, end)] });
    let refused = |records: &[Record]| {
        let mut validator = Validator::default();
        validator.begin_segment();
        validator.record(&Record::Machine(machine())).unwrap();
        let begin = RoundBegin { number: 0, last: false, clocks: clocks(0) };
        validator.record(&Record::RoundBegin(begin)).unwrap();
        records.iter().find_map(|record| validator.record(record).err()).unwrap_or_default()
    };
    assert_eq!(refused(&[born.clone(), state(5000), zero(4096), zero(8192)]), "");
    assert!(refused(&[born.clone(), state(5000), state(4096), zero(8192)]).contains("0x1000 bytes"));
    assert!(refused(&[born.clone(), zero(4096)]).contains("unknown length"));
    assert!(refused(&[state(5000)]).contains("nobody announced"));
    assert!(refused(&[born.clone(), state(8192), zero(4096), state(5000)]).contains("Births behind Pages"));
    let file = |space| {
        let kind = OpenFileKind::Shm(ShmFile { space, offset: 0 });
        Record::OpenFile(OpenFile { id: OpenFileId(0), flags: 2, owner: None, kind })
    };
    assert_eq!(refused(&[born.clone(), state(1), file(object)]), "");
    let mm = Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm });
    assert!(refused(&[mm, file(SpaceId(0))]).contains("nobody announced"));
}

#[test]
fn a_compressed_record_is_refused_by_name() {
    use pc_frame::{Flags, FrameWriter, Limits, Preamble};
    let mut w = FrameWriter::new(Vec::new(), Limits::default());
    w.preamble(&Preamble::x86_64([0; 16])).unwrap();
    w.frame(1, VERSION, Flags::COMPRESSED, &[b"?"]).unwrap();
    w.end().unwrap();
    let err = read(&w.into_inner()).unwrap_err();
    assert!(err.blame() == Blame::Unsupported && err.to_string().contains("compressed Machine"), "{err}");
}

#[test]
fn a_cancelled_stream_ends_in_order_and_commits_nothing() {
    let mut w = begun(false);
    w.record(&Record::Cancel(Cancel { reason: "the disk is full".into() })).unwrap();
    let items = read(&w.finish().unwrap()).unwrap();
    let Some(Item::Record(last)) = items.last() else { panic!("no record") };
    assert_eq!(**last, Record::Cancel(Cancel { reason: "the disk is full".into() }));
}

#[test]
fn an_unknown_record_is_refused_by_number_unless_it_may_be_skipped() {
    use pc_frame::{Flags, FrameWriter, Limits, Preamble};
    let with = |flags| {
        let mut w = FrameWriter::new(Vec::new(), Limits::default());
        w.preamble(&Preamble::x86_64([0; 16])).unwrap();
        w.frame(0x0999, 0, flags, &[b"?"]).unwrap();
        w.end().unwrap();
        read(&w.into_inner()).unwrap_err()
    };
    let err = with(Flags::default());
    assert!(err.blame() == Blame::Unsupported && err.to_string().contains("0x0999"), "{err}");
    let err = with(Flags::SKIPPABLE);
    assert!(matches!(err, ImageError::Grammar { .. }), "only the missing Commit is wrong: {err}");
}

#[test]
fn a_version_before_the_first_firm_one_or_from_the_future_is_refused_by_name() {
    use pc_frame::{Flags, FrameWriter, Limits, Preamble};
    for version in [0, VERSION + 1] {
        for number in [1, PAGES, PATCHES, pc_frame::END] {
            let version = if number == pc_frame::END { version + 1 } else { version };
            let mut w = FrameWriter::new(Vec::new(), Limits::default());
            w.preamble(&Preamble::x86_64([0; 16])).unwrap();
            w.frame(number, version, Flags::default(), &[]).unwrap();
            w.flush().unwrap();
            let err = read(&w.into_inner()).unwrap_err();
            let said = format!(
                "({}) version {version}, which this version does not know",
                record_name(number).unwrap()
            );
            assert!(err.blame() == Blame::Unsupported && err.to_string().contains(&said), "{err}");
        }
    }
}

#[test]
fn a_link_local_address_keeps_its_scope() {
    let local: std::net::SocketAddr = "[fe80::1%7]:80".parse().unwrap();
    let state = InetState::Bound(local);
    let kind = OpenFileKind::Inet(Inet { family: 10, kind: 1, protocol: 6, state, options: vec![] });
    let record = Record::OpenFile(OpenFile { id: OpenFileId(0), flags: 2, owner: None, kind });
    let body = record.encode().unwrap();
    assert_eq!(Record::decode(record.number(), record.version(), &body), Some(Ok(record)));
}

#[test]
fn lengths_inside_a_body_cannot_make_us_allocate() {
    use pc_frame::{Flags, FrameWriter, Limits, Preamble};
    let mut w = FrameWriter::new(Vec::new(), Limits::default());
    w.preamble(&Preamble::x86_64([0; 16])).unwrap();
    w.frame(1, VERSION, Flags::default(), &[&(1u64 << 60).to_le_bytes(), &[0; 64]]).unwrap();
    w.end().unwrap();
    let err = read(&w.into_inner()).unwrap_err();
    assert!(matches!(err, ImageError::Body { record: "Machine", .. }), "{err}");
}
