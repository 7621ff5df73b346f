//! Real programs, as Debian has them: each is moved and goes on working, or is refused in the words of the manual, and
//! then works on as if nothing had been.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use pc_tests::{Folder, Guest, program, restored, said, wait_for};

/// A program that writes numbers that grow to a file.
struct Counting {
    guest: Guest,
    out: PathBuf,
    folder: Folder,
}

impl Counting {
    /// Starts a program with a script, and the file to count in.
    fn start(name: &str, options: &[&str], file: &str, script: &str) -> Counting {
        let folder = Folder::new();
        let (script_at, out) = (folder.file(file), folder.file("out"));
        fs::write(&script_at, script).expect("a script");
        let guest = Guest::start(Command::new(name).args(options).arg(&script_at).arg(&out));
        let counting = Counting { guest, out, folder };
        counting.goes_on();
        counting
    }

    fn count(&self) -> u64 {
        fs::read_to_string(&self.out).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn goes_on(&self) {
        let before = self.count();
        wait_for("the program counts", Duration::from_secs(60), || self.count() > before + 3);
    }

    /// Is moved and counts on, or refused with one of these words, and counts on.
    fn moves_or_is_refused(mut self, why: &[&str]) -> String {
        let image = self.folder.file("image");
        let mut dump = Command::new(program("pc-dump"));
        let dump = dump.args(["--kill", &self.guest.arg()]).stdin(Stdio::null());
        let dump = dump.stdout(File::create(&image).expect("an image")).stderr(Stdio::piped());
        let output = dump.output().expect("pc-dump runs");
        let text = said(&output);
        match output.status.code() {
            Some(0) => {
                self.guest.ended(Duration::from_secs(20));
                self.guest = restored(&image, &[]);
                self.goes_on();
                self.guest.signal(Signal::SIGTERM);
                "moved".to_owned()
            }
            Some(6) => {
                assert!(why.iter().any(|why| text.contains(why)), "refused in other words: {text}");
                self.goes_on();
                text
            }
            code => panic!("{code:?}: {text}"),
        }
    }
}

#[test]
fn node_moves_or_is_refused_by_name() {
    let script = "const fs = require('fs'); let n = 0;
        setInterval(() => fs.writeFileSync(process.argv[2], String(++n)), 10);";
    let node = Counting::start("node", &[], "count.js", script);
    println!("node: {}", node.moves_or_is_refused(&["protection key"]));
}

const JAVA: &str = "import java.nio.file.*;
public class Count {
    public static void main(String[] args) throws Exception {
        for (int n = 1; ; n++) { Files.writeString(Path.of(args[0]), \"\" + n); Thread.sleep(10); }
    }
}";

#[test]
fn java_with_its_defaults_is_refused_by_its_performance_data() {
    let java = Counting::start("java", &[], "Count.java", JAVA);
    let told = java.moves_or_is_refused(&["hsperfdata"]);
    assert!(told != "moved", "its performance data is shared memory of a file");
}

#[test]
fn java_without_performance_data_moves_or_is_refused_by_its_sockets() {
    let java = Counting::start("java", &["-XX:-UsePerfData"], "Count.java", JAVA);
    println!("java -XX:-UsePerfData: {}", java.moves_or_is_refused(&["connected Unix socket"]));
}

#[test]
fn asyncio_moves_or_is_refused_by_its_sockets() {
    let script = "import asyncio, os, sys
async def count():
    n = 0
    while True:
        n += 1
        with open(sys.argv[1] + '.new', 'w') as file: file.write(str(n))
        os.rename(sys.argv[1] + '.new', sys.argv[1])
        await asyncio.sleep(0.01)
asyncio.run(count())";
    let python = Counting::start("python3", &[], "count.py", script);
    println!("asyncio: {}", python.moves_or_is_refused(&["connected Unix socket"]));
}

/// A shell of sqlite3 that is told what to do by a pipe.
struct Sqlite(Child);

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sqlite_in_a_transaction_is_refused_by_its_lock_and_commits_afterwards() {
    let folder = Folder::new();
    let (database, out) = (folder.file("database"), folder.file("out"));
    let mut sqlite = Command::new("sqlite3");
    let sqlite = sqlite.arg(&database).stdin(Stdio::piped()).stdout(File::create(&out).expect("a file"));
    let mut sqlite = Sqlite(sqlite.spawn().expect("sqlite3 runs"));
    let pid = sqlite.0.id().to_string();
    let mut tell = sqlite.0.stdin.take().expect("a pipe");
    let text = || fs::read_to_string(&out).unwrap_or_default();
    tell.write_all(b"CREATE TABLE t(n); BEGIN IMMEDIATE; INSERT INTO t VALUES(7); SELECT 'begun';\n")
        .expect("a pipe");
    wait_for("the transaction", Duration::from_secs(20), || text().contains("begun"));
    // What it was told goes through a pipe of ours, which is refused as well where nothing says what becomes of it.
    let output = pc_tests::run("pc-dump", &["--kill", &pid]);
    let refusal = said(&output);
    assert!(output.status.code() == Some(6) && refusal.contains("lock"), "{:?}: {refusal}", output.status);
    tell.write_all(b"COMMIT; SELECT 'count ' || count(*) FROM t;\n").expect("it lives");
    drop(tell);
    let mut left = String::new();
    wait_for("its end", Duration::from_secs(20), || sqlite.0.try_wait().expect("wait").is_some());
    File::open(&out).and_then(|mut out| out.read_to_string(&mut left)).expect("its answers");
    assert!(left.contains("count 1"), "{left}");
}
