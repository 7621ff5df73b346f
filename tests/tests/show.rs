//! pc-show on good, cut, bent and hostile streams.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use clap::Parser as _;
use pc_frame::{Flags, FrameWriter, HEADER_LEN, Header, Limits, Preamble};
use pc_image::Blame;
use pc_tests::streams::{folder, golden};
use pc_tests::{Folder, program, said};

/// pc-show with a stream on its standard input.
fn show(args: &[&str], stream: &[u8]) -> Output {
    let mut tool = Command::new(program("pc-show"));
    let tool = tool.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().expect("the tool runs");
    let mut input = tool.stdin.take().expect("a pipe");
    let stream = stream.to_vec();
    let writer = std::thread::spawn(move || drop(input.write_all(&stream)));
    let output = tool.wait_with_output().expect("the tool ends");
    writer.join().expect("the writer");
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stream(name: &str) -> Vec<u8> {
    fs::read(folder().join(format!("{name}.pcs"))).expect("a golden stream")
}

/// What pc-show makes of a stream, without a process.
fn within(args: &[&str], stream: &[u8]) -> (String, pc_show::Shown) {
    let args = pc_show::Args::parse_from([&["pc-show"], args].concat());
    let mut out = Vec::new();
    let shown = pc_show::show(&args, stream, &mut out).expect("a Vec takes everything");
    (String::from_utf8(out).expect("text"), shown)
}

#[test]
fn every_golden_stream_is_shown_in_every_way_from_file_and_pipe() {
    let ways: [&[&str]; 9] = [
        &[],
        &["--frames"],
        &["--json"],
        &["--maps"],
        &["--ps"],
        &["--fds"],
        &["--threads"],
        &["--pages", "0x1000,32"],
        &["--search-text", "needlework"],
    ];
    for (name, bytes) in golden() {
        let path = folder().join(format!("{name}.pcs"));
        for way in ways {
            let piped = show(way, &bytes);
            assert_eq!(piped.status.code(), Some(0), "{name} {way:?}: {}", said(&piped));
            let args = [way, &[path.to_str().expect("a path")]].concat();
            let from_file = Command::new(program("pc-show")).args(args).output().expect("the tool runs");
            assert_eq!(text(&from_file), text(&piped), "{name} {way:?}");
            if name == "everything" && !way.contains(&"--search-text") {
                assert!(!piped.stdout.is_empty(), "{name} {way:?}");
            }
        }
    }
}

#[test]
fn the_summary_has_tree_memory_rounds_and_descriptors() {
    let tree = text(&show(&[], &stream("tree")));
    for line in [
        "100        2  guest  /bin/guest",
        "201        1    child",
        "202        1      grandchild",
        "(zombie)",
    ] {
        assert!(tree.contains(line), "{line:?} is missing in\n{tree}");
    }
    let rounds = text(&show(&[], &stream("rounds")));
    let row = |number: u32| -> Vec<String> {
        let start = format!("    {number} ");
        let line = rounds.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{rounds}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(row(0)[1..], ["0.0", "ms", "500.0", "ms", "3", "0", "3", "0"]);
    assert_eq!(row(2)[5..], ["1", "1", "0", "1"]);
    assert!(rounds.contains("the processes stand still") && rounds.contains("complete   yes"), "{rounds}");
    // Seven pages of eight are still mapped: of those sent before, seven in eight count.
    let anonymous =
        rounds.lines().find(|line| line.starts_with("anonymous")).unwrap_or_else(|| panic!("{rounds}"));
    let words: Vec<_> = anonymous.split_whitespace().collect();
    assert_eq!(words[1..], ["1", "28.0", "KiB", "20.0", "KiB", "8.0", "KiB"]);
    assert!(text(&show(&[], &stream("everything"))).contains("listening on 127.0.0.1:80"));
}

#[test]
fn memory_is_that_of_the_end_and_matches_are_found_across_pages_and_rounds() {
    let rounds = stream("rounds");
    let pages = text(&show(&["--pages", "0x1ff0,48"], &rounds));
    assert!(pages.contains("needle") && pages.contains("work, at the sto"), "{pages}");
    let zapped = text(&show(&["--pages", "0x3000,16"], &rounds));
    assert!(zapped.starts_with("000000003000  .. .."), "{zapped}");
    let found = text(&show(&["--search-text", "needlework"], &rounds));
    let place = "space 0 0x000000001ffa round";
    assert_eq!(found, format!("{place} 0\n{place} 1\n{place} 3\n"));
    let hex = text(&show(&["--search", "68 65 6c 6c 6f"], &stream("small")));
    assert_eq!(hex, "space 0 0x000000001000 round 0\n");
}

#[test]
fn the_json_holds_what_the_manual_page_says() {
    let manual = fs::read_to_string(folder().join("../../man/pc-show.1")).expect("the manual page");
    let json: serde_json::Value =
        serde_json::from_slice(&show(&["--json"], &stream("everything")).stdout).expect("JSON");
    assert_eq!(json["complete"], true);
    assert_eq!(json["processes"][0]["threads"][0]["registers"]["rip"], "0x10");
    assert_eq!(json["spaces"][0]["mappings"][0]["pages_sent"], 1);
    fn keys(value: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                into.insert(key.clone());
                keys(value, into);
            }),
            serde_json::Value::Array(all) => all.iter().for_each(|value| keys(value, into)),
            _ => {}
        }
    }
    let mut all = std::collections::BTreeSet::new();
    keys(&json, &mut all);
    let schema = manual.split_once(".SH JSON OUTPUT").expect("the schema").1;
    let words: Vec<_> = schema.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = all.iter().filter(|key| !words.contains(&key.as_str())).collect();
    assert!(missing.is_empty(), "man/pc-show.1 does not say what {missing:?} are");
}

#[test]
fn pictures_are_drawn_and_tell_what_was_sent() {
    let folder = Folder::new();
    let (map, timeline) = (folder.file("map.svg"), folder.file("timeline.svg"));
    let args = ["--map", map.to_str().expect("a path"), "--timeline", timeline.to_str().expect("a path")];
    let output = show(&args, &stream("rounds"));
    assert!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
    let [map, timeline] = [map, timeline].map(|path| fs::read_to_string(path).expect("a picture"));
    // Space 0 has seven pages: sent once, sent again, zapped, never touched, once, zero, zero.
    let dots: Vec<_> = map.lines().filter(|line| line.contains("<title>")).collect();
    let colours: Vec<_> =
        dots.iter().map(|dot| dot.split("fill=\"").nth(1).expect("a colour").get(..7)).collect();
    let names = ["#59a14f", "#e15759", "#e8e8e8", "#59a14f", "#bab0ac"];
    assert_eq!(colours, names.map(Some));
    for number in 0..4 {
        assert!(timeline.contains(&format!("<title>round {number} at ")), "{timeline}");
    }
    assert!(timeline.contains("the processes stand still"));
    for picture in [map, timeline] {
        let (open, close) = (picture.matches("<rect").count(), picture.matches("</rect>").count());
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n") && open == close + 1);
    }
}

/// A cancelled stream of so many mappings, far apart, and rounds, each of which sends one page.
fn wide(mappings: u64, rounds: u32) -> Vec<u8> {
    use pc_image::*;
    use pc_tests::streams::everything::{clocks, machine, vma};
    let mut w = Writer::new(Vec::new(), [5; 16]).expect("a Vec");
    w.record(&Record::Machine(machine())).expect("a Vec");
    for number in 0..rounds {
        let clocks = clocks(i64::from(number) * 7_000_000);
        w.record(&Record::RoundBegin(RoundBegin { number, last: false, clocks })).expect("a Vec");
        if number == 0 {
            w.record(&Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm })).expect("a Vec");
            let map = (0..mappings)
                .map(|i| vma(i << 32, (i << 32) + 0x2000, Backing::Anonymous))
                .map(|vma| Vma {
                    name: Some("a name that is far too long for its column, it is".into()),
                    ..vma
                })
                .collect();
            let change = MapChange { space: SpaceId(0), unmap: vec![], map, modify: vec![] };
            w.record(&Record::MapChange(change)).expect("a Vec");
        }
        let runs = [PageRun { addr: (u64::from(number) % mappings) << 32, pages: 1 }];
        w.pages(SpaceId(0), &runs, &[&[1; PAGE_SIZE as usize]]).expect("a Vec");
        let counts = w.round_counts();
        w.record(&Record::RoundEnd(RoundEnd { number, counts })).expect("a Vec");
    }
    w.record(&Record::Cancel(Cancel { reason: "enough".into() })).expect("a Vec");
    w.finish().expect("a Vec")
}

#[test]
fn pictures_stay_readable_with_thousands_of_mappings_and_rounds_and_without_any() {
    let texts = |picture: &str| -> Vec<(f64, f64, String)> {
        let number = |line: &str, name: &str| {
            line.split(name).nth(1)?.split('"').next().and_then(|text| text.parse::<f64>().ok())
        };
        let text = |line: &str| Some(line.split_once('>')?.1.split_once("</text>")?.0.to_owned());
        let lines = picture.lines().filter(|line| line.starts_with("<text "));
        lines.filter_map(|line| Some((number(line, " x=\"")?, number(line, " y=\"")?, text(line)?))).collect()
    };
    let height = |picture: &str| {
        let height = picture.split("height=\"").nth(1).and_then(|rest| rest.split('"').next());
        height.and_then(|text| text.parse::<f64>().ok()).expect("a height")
    };

    let (_, shown) = within(&["--map", "map.svg"], &wide(4000, 3));
    let map = shown.map();
    assert!(height(&map) < 16_000.0 && map.contains(">8 mappings<"), "{}", height(&map));
    let (_, shown) = within(&["--map", "map.svg"], &wide(20, 1));
    let few = shown.map();
    assert!(
        few.contains("nothing for 4.0 GiB") && few.contains("…") && few.contains("its column, it is]<"),
        "{few}"
    );
    assert!(texts(&few).iter().all(|(x, _, text)| *x < 144.0 || text.chars().count() <= 34), "{few}");

    let (_, shown) = within(&["--timeline", "t.svg"], &wide(1, 900));
    let timeline = shown.timeline();
    let numbers: Vec<_> =
        texts(&timeline).into_iter().filter(|(_, _, text)| text.parse::<u32>().is_ok()).collect();
    assert!(
        numbers.len() > 10 && numbers.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 24.0),
        "{numbers:?}"
    );
    let (_, shown) = within(&["--timeline", "t.svg"], &stream("small")[..64]);
    assert!(shown.timeline().contains(">no rounds<"));
    let (_, shown) = within(&["--timeline", "t.svg"], &stream("cancelled"));
    assert!(shown.timeline().contains(">no pages were sent<"));
}

#[test]
fn the_pages_of_a_shared_memory_object_are_drawn_where_it_is_mapped() {
    let (_, shown) = within(&["--map", "map.svg"], &stream("everything"));
    let map = shown.map();
    let strip = map.lines().find(|line| line.contains("memfd:y: 8.0 KiB")).expect("its strip");
    assert!(strip.contains("#e15759"), "sent, and changed in part: {strip}");
}

#[test]
fn a_cut_stream_is_exit_4_wherever_it_is_cut() {
    let bytes = stream("small");
    // Every place without a process, and those that matter with one.
    for len in 0..bytes.len() {
        let (_, shown) = within(&[], &bytes[..len]);
        let err = shown.model.wrong.unwrap_or_else(|| panic!("cut at {len} unnoticed"));
        assert_eq!(err.blame(), Blame::Truncated, "cut at {len}: {err}");
    }
    let tail = bytes.len() - HEADER_LEN;
    for len in (0..140).chain([tail - 1, tail, tail + 1, bytes.len() - 1]).chain((200..tail).step_by(997)) {
        let output = show(&[], &bytes[..len]);
        assert_eq!(output.status.code(), Some(4), "cut at {len}: {}", said(&output));
        assert!(said(&output).contains("ends early, at byte"), "{}", said(&output));
    }
}

#[test]
fn of_a_bent_stream_the_good_part_is_shown_then_where_it_is_bent() {
    let mut bytes = stream("everything");
    let frames = text(&show(&["--frames"], &bytes));
    let last: Vec<_> = frames.lines().filter(|line| line.contains(" Thread ")).collect();
    let words: Vec<_> = last[1].split_whitespace().collect();
    let at: usize = words[0].parse().expect("an offset");
    bytes[at + HEADER_LEN + 5] ^= 1;
    let output = show(&[], &bytes);
    assert_eq!(output.status.code(), Some(3));
    let shown = text(&output);
    assert!(
        shown.contains("guest") && shown.contains("complete   no") && shown.contains("pipe 1"),
        "{shown}"
    );
    let error = said(&output);
    assert!(
        error.contains(&format!("at byte {at}, frame {}", words[1])) && error.contains("checksum"),
        "{error}"
    );
    let output = show(&["--frames"], &bytes);
    assert_eq!(text(&output), frames.split_once(last[1]).expect("the line").0);
}

/// Runs pc-show in an address space of 64 MiB: exit code, and what it said. (The most memory that a child has had, as
/// wait4(2) tells it, is that of the test that it was born in.)
fn confined(stream: &[u8]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let path = folder.file("stream");
    fs::write(&path, stream).expect("a file");
    let mut tool = Command::new("sh");
    let tool = tool.args(["-c", "ulimit -v 65536 && exec \"$0\" \"$1\""]).arg(program("pc-show")).arg(&path);
    let output = tool.stdin(Stdio::null()).output().expect("the tool runs");
    (output.status.code(), said(&output))
}

#[test]
fn hostile_lengths_are_exit_3_with_little_memory() {
    let preamble = Preamble::x86_64([0; 16]).encode();
    let claim = |len: u64, kind: u16| {
        let header = Header {
            kind,
            version: pc_image::VERSION,
            flags: Flags::default(),
            len,
            number: 0,
            payload_crc: 0,
        };
        [&preamble[..], &header.encode(), &[0; 100]].concat()
    };
    let framed = |kind: u16, body: &[u8]| {
        let mut w = FrameWriter::new(Vec::new(), Limits::default());
        w.preamble(&Preamble::x86_64([0; 16])).expect("a Vec");
        w.frame(kind, pc_image::VERSION, Flags::default(), &[body]).expect("a Vec");
        w.end().expect("a Vec");
        w.into_inner()
    };
    // What waits in a pipe: 2^20 lists that claim 2^40 bytes each; as many that are empty, and would only take memory for themselves.
    // A list that claims 2^60 entries.
    let pipe = |lists: &[u8]| {
        let head =
            [&3u32.to_le_bytes()[..], &[0; 4], &[0], &1u32.to_le_bytes(), &1u32.to_le_bytes(), &[0; 4]];
        framed(0x41, &[&head.concat()[..], &(1u64 << 20).to_le_bytes(), lists].concat())
    };
    let huge = [&0u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes(), &[0; 64]].concat();
    let runs = [&0u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[0xff; 64]].concat();
    let hostile = [
        ("a payload of 2^60 bytes", claim(1 << 60, 1)),
        ("a payload of 2^64-1 bytes", claim(u64::MAX, 0x23)),
        ("a payload above the cap", claim((16 << 20) + 1, 1)),
        ("a string of 2^60 bytes", framed(1, &[&(1u64 << 60).to_le_bytes()[..], &[0; 64]].concat())),
        ("a list of 2^60 descriptors", framed(0x40, &huge)),
        ("lists in a list", pipe(&(1u64 << 40).to_le_bytes().repeat(1000))),
        ("empty lists in a list", pipe(&vec![0; 8 << 20])),
        ("2^32 runs", framed(0x23, &runs)),
    ];
    for (what, stream) in hostile {
        let (code, error) = confined(&stream);
        assert_eq!(code, Some(3), "{what}: {error}");
        // The same behind a decompressor.
        let mut zstd = Command::new("zstd")
            .arg("-qc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("zstd");
        zstd.stdin.take().expect("a pipe").write_all(&stream).expect("zstd reads");
        let squeezed = zstd.wait_with_output().expect("zstd ends").stdout;
        let (code, error) = confined(&squeezed);
        assert_eq!(code, Some(3), "{what}, compressed: {error}");
    }
}

#[test]
fn a_bomb_is_exit_3_with_little_memory() {
    // A gibibyte of zeroes in 33 KiB; and a frame that wants a window of 2 GiB for itself.
    let script = "head -c 1073741824 /dev/zero | zstd -qc -19 -T0 --single-thread";
    let bomb = Command::new("sh").args(["-c", script]).output().expect("zstd").stdout;
    let (code, error) = confined(&bomb);
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("not a pc-tools stream"), "{error}");
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let (code, error) = confined(&window);
    assert_eq!(code, Some(3), "{error}");
}

#[test]
fn a_stream_of_any_size_is_read_from_a_pipe_in_little_memory() {
    use pc_image::{PageRun, Record, RoundBegin, RoundEnd, Sink, Space, SpaceId, SpaceKind, Writer};
    use pc_tests::streams::everything::{clocks, machine};
    let mut tool = Command::new("sh");
    let tool =
        tool.args(["-c", "ulimit -v 65536 && exec \"$0\" --search-text needle"]).arg(program("pc-show"));
    let mut tool = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the tool runs");
    let mut writer = Writer::new(tool.stdin.take().expect("a pipe"), [5; 16]).expect("a preamble");
    let mut put = |record: Record| writer.record(&record).expect("it is read");
    put(Record::Machine(machine()));
    put(Record::RoundBegin(RoundBegin { number: 0, last: false, clocks: clocks(0) }));
    put(Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm }));
    // A gibibyte of pages.
    let mut data = vec![b'x'; 1 << 20];
    for i in 0..1024_u64 {
        if i == 1023 {
            data[4090..4096].copy_from_slice(b"needle");
        }
        writer.pages(SpaceId(0), &[PageRun { addr: i << 20, pages: 256 }], &[&data]).expect("it is read");
    }
    let counts = writer.round_counts();
    writer.record(&Record::RoundEnd(RoundEnd { number: 0, counts })).expect("it is read");
    writer.record(&Record::Cancel(pc_image::Cancel { reason: "enough".into() })).expect("it is read");
    drop(writer.finish().expect("it is read"));
    let output = tool.wait_with_output().expect("the tool ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output), "space 0 0x00003ff00ffa round 0\n");
}

#[test]
fn a_compressed_stream_is_shown_and_its_cut_or_damage_noticed() {
    let path = folder().join("everything.pcs");
    let squeezed = Command::new("zstd").arg("-qc").arg(&path).output().expect("zstd").stdout;
    assert_eq!(text(&show(&[], &squeezed)), text(&show(&[], &stream("everything"))));
    for len in (4..squeezed.len()).step_by(97).chain([squeezed.len() - 1]) {
        let output = show(&[], &squeezed[..len]);
        assert_eq!(output.status.code(), Some(4), "cut at {len}: {}", said(&output));
    }
    let mut bent = squeezed.clone();
    let middle = bent.len() / 2;
    bent[middle] ^= 0x40;
    assert_eq!(show(&[], &bent).status.code(), Some(3));
}

#[test]
fn what_is_no_stream_or_not_for_us_has_its_own_exit_code() {
    let output = show(&[], b"#!/bin/sh\necho this is no stream, but it is longer than a preamble is, surely");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let mut other = stream("small");
    let preamble = Preamble { arch: 183, ..Preamble::x86_64([0; 16]) };
    other[..64].copy_from_slice(&preamble.encode());
    let output = show(&[], &other);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("architecture"));
}
