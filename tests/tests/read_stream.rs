//! examples/read_stream.py, a reader written from pc-stream(5), agrees with pc-show; and file(1) knows a stream.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use pc_frame::{Event, FrameReader, FrameWriter, Limits};
use pc_image::record_name;
use pc_tests::streams::{folder, golden};
use pc_tests::{Folder, Guest, program, run, said, status, wait_for};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn script(args: &[&str], path: &Path) -> Output {
    let mut python = Command::new("python3");
    python.arg(root().join("examples/read_stream.py")).args(args).arg(path).output().expect("python3 runs")
}

fn show(args: &[&str], path: &Path) -> Output {
    Command::new(program("pc-show")).args(args).arg(path).output().expect("pc-show runs")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// What both list must be the same, and how they end too.
fn agree(path: &Path, what: &str) {
    let (ours, theirs) = (show(&["--frames"], path), script(&[], path));
    assert_eq!(text(&ours), text(&theirs), "{what}");
    let codes = (ours.status.code(), theirs.status.code());
    assert_eq!(codes.0, codes.1, "{what}: {} / {}", said(&ours), said(&theirs));
}

#[test]
fn it_agrees_with_pc_show_on_every_golden_stream_whole_cut_and_bent() {
    let scratch = Folder::new();
    let path = scratch.file("stream.pcs");
    for (name, bytes) in golden() {
        agree(&folder().join(format!("{name}.pcs")), name);
        agree(&folder().join(format!("1/{name}.pcs")), &format!("{name} as it was"));
        for part in 0..4 {
            let at = bytes.len() * part / 4 + part;
            fs::write(&path, &bytes[..at]).expect("a file");
            agree(&path, &format!("{name} cut at {at}"));
            let mut bent = bytes.clone();
            bent[at] ^= 0x10;
            fs::write(&path, &bent).expect("a file");
            agree(&path, &format!("{name} bent at {at}"));
        }
    }
}

#[test]
fn a_record_that_says_what_its_version_cannot_is_bad_for_both() {
    let (_, bytes) = golden().into_iter().find(|(name, _)| *name == "everything").expect("the stream");
    let mut out = FrameWriter::new(Vec::new(), Limits::default());
    let mut reader = FrameReader::new(bytes.as_slice(), Limits::default());
    let mut older = 0;
    while let Some(event) = reader.read().expect("a good stream") {
        match event {
            Event::Preamble(preamble) => out.preamble(&preamble).expect("a Vec"),
            Event::Frame(frame) => {
                let header = frame.header;
                // A file of /proc that means a process, in the version of those before it.
                let newer = record_name(header.kind) == Some("OpenFile") && header.version == 2;
                older += u32::from(newer);
                let version = if newer { 1 } else { header.version };
                out.frame(header.kind, version, header.flags, &[&frame.payload]).expect("a Vec");
            }
        }
    }
    out.flush().expect("a Vec");
    assert!(older > 0);
    let scratch = Folder::new();
    let path = scratch.file("stream.pcs");
    fs::write(&path, out.into_inner()).expect("a file");
    agree(&path, "a newer kind in an older record");
    let output = script(&[], &path);
    assert!(output.status.code() == Some(3) && said(&output).contains("only version 2"), "{}", said(&output));
}

#[test]
fn it_reads_every_body_to_its_last_byte() {
    for (name, bytes) in golden() {
        let output = script(&["--bodies"], &folder().join(format!("{name}.pcs")));
        assert_eq!(output.status.code(), Some(0), "{name}: {}", said(&output));
        let said: Vec<serde_json::Value> = text(&output)
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let items = pc_tests::streams::read(&bytes).expect(name);
        assert_eq!(said.len(), items.len(), "{name}");
        for (body, item) in said.iter().zip(&items) {
            assert!(body.get(item.name()).is_some(), "{body} is no {}", item.name());
        }
    }
    let output = text(&script(&["--bodies"], &folder().join("everything.pcs")));
    for word in [
        r#""hostname": "source""#,
        r#""ConnectedUdp": {"local": {"V4""#,
        r#""scope": 3"#,
        r#""regs": [0, 1, 2"#,
    ] {
        assert!(output.contains(word), "{word} is missing");
    }
}

#[test]
fn it_reads_a_fresh_dump() {
    let guest = Guest::start(Command::new("sleep").arg("300"));
    wait_for("sleep sleeps", Duration::from_secs(5), || {
        fs::read_to_string(format!("/proc/{}/comm", guest.pid())).is_ok_and(|comm| comm == "sleep\n")
            && status(guest.pid(), "State").starts_with('S')
    });
    let scratch = Folder::new();
    let path = scratch.file("dump.pcs");
    let dumped = Command::new(program("pc-dump"))
        .args(["--once", "--leave-running", &guest.arg()])
        .stdout(fs::File::create(&path).expect("a file"))
        .output()
        .expect("pc-dump runs");
    assert!(dumped.status.success(), "{}", said(&dumped));
    agree(&path, "a fresh dump");
    let bodies = text(&script(&["--bodies"], &path));
    let json: serde_json::Value =
        serde_json::from_slice(&run("pc-show", &["--json", path.to_str().expect("a path")]).stdout)
            .expect("JSON");
    let rip = json["processes"][0]["threads"][0]["registers"]["rip"].as_str().expect("a register");
    let rip = u64::from_str_radix(rip.trim_start_matches("0x"), 16).expect("hex");
    assert!(bodies.contains(&format!(" {rip}, ")), "the thread's rip is not in\n{bodies}");
}

/// The structures that a text describes, each in one line, by name.
fn schema<'a>(lines: impl Iterator<Item = &'a str>) -> std::collections::BTreeMap<String, String> {
    let mut found: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for line in lines {
        let mut words = line.split_whitespace().peekable();
        words.next_if(|word| word.starts_with("0x"));
        let is_head = words.peek().is_some_and(|word| {
            let name = word.trim_end_matches([':', '|']);
            name.len() + 1 == word.len() && name.chars().all(char::is_alphanumeric)
        });
        match found.last_mut() {
            _ if is_head && !line.starts_with(' ') => {
                found.push(words.collect());
                open = true;
            }
            Some(last) if open && line.starts_with(' ') => last.extend(words),
            _ => open = false,
        }
    }
    found.iter().map(|words| (words[0].to_owned(), words[1..].join(" "))).collect()
}

#[test]
fn the_manual_page_describes_the_records_as_the_script_reads_them() {
    let page = fs::read_to_string(root().join("man/pc-stream.5")).expect("the page");
    let (mut inside, mut lines) = (false, Vec::new());
    for line in page.split_once(".SH RECORDS").expect("the records").1.lines() {
        match line {
            ".nf" => inside = true,
            ".fi" => (inside, _) = (false, lines.push("")),
            line if inside => lines.push(line),
            _ => {}
        }
    }
    let script = fs::read_to_string(root().join("examples/read_stream.py")).expect("the script");
    let known = script.split("SCHEMA = \"\"\"").nth(1).and_then(|rest| rest.split("\"\"\"").next());
    let (described, known) = (schema(lines.into_iter()), schema(known.expect("the schema").lines()));
    assert!(known.len() > 40);
    for (name, fields) in &known {
        assert_eq!(described.get(name), Some(fields), "{name}: left: pc-stream(5), right: read_stream.py");
    }
    let more: Vec<_> = described.keys().filter(|name| !known.contains_key(*name)).collect();
    assert!(more.is_empty(), "the script does not read {more:?}");
}

#[test]
fn it_stays_short_and_needs_nothing() {
    let source = fs::read_to_string(root().join("examples/read_stream.py")).expect("the script");
    assert!(source.lines().count() < 300);
    let imports: Vec<_> = source.lines().filter(|line| line.starts_with("import ")).collect();
    assert_eq!(imports, ["import hashlib", "import json", "import struct", "import sys"]);
}

#[test]
fn file_names_a_stream_by_the_magic_that_is_shipped() {
    let magic = root().join("share/pc-tools.magic");
    let file = |path: &Path| {
        let output =
            Command::new("file").arg("-b").arg("-m").arg(&magic).arg(path).output().expect("file runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
        text(&output)
    };
    for (name, _) in golden() {
        let path = folder().join(format!("{name}.pcs"));
        assert_eq!(file(&path), "pc-tools process image, version 1, x86-64\n", "{name}");
    }
    assert!(!file(Path::new("/bin/true")).contains("pc-tools"));
}
