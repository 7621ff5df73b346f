//! pc-send and pc-recv as the tests of links run them, and a relay between the two.

mod relay;

pub use relay::{Fault, Relay};

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Folder, program, wait_for};

/// Nothing here takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A tool that runs, its output and talk in files.
pub struct Tool {
    /// The process.
    pub child: Child,
    /// What it writes to its standard output.
    pub out: PathBuf,
    /// What it says on stderr.
    pub talk: PathBuf,
}

impl Tool {
    /// Starts a tool with a file, or nothing, on its standard input.
    pub fn start(name: &str, folder: &Folder, input: Option<&Path>, args: &[&str]) -> Tool {
        let input = input.map_or_else(Stdio::null, |path| File::open(path).expect("the input").into());
        Tool::run(Command::new(program(name)).args(args).stdin(input), name, folder)
    }

    /// Starts a command; its output and its talk go to files of this name.
    pub fn run(command: &mut Command, name: &str, folder: &Folder) -> Tool {
        let (out, talk) = (folder.file(&format!("{name}.out")), folder.file(&format!("{name}.talk")));
        command.stdout(File::create(&out).expect("a file")).stderr(File::create(&talk).expect("a file"));
        Tool { child: command.spawn().expect("the tool starts"), out, talk }
    }

    /// What it has said up to now.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.talk).unwrap_or_default()
    }

    /// What it has written up to now.
    pub fn out(&self) -> Vec<u8> {
        fs::read(&self.out).expect("the output")
    }

    /// Where pc-recv listens.
    pub fn addr(&self) -> String {
        let mut addr = None;
        wait_for("pc-recv listens", LIMIT, || {
            let said = self.said();
            let line = said.lines().find_map(|line| line.strip_prefix("pc-recv: listening on "));
            addr = line.filter(|_| said.ends_with('\n')).map(str::to_owned);
            addr.is_some() || !said.is_empty() && said.ends_with('\n')
        });
        addr.unwrap_or_else(|| panic!("pc-recv does not listen: {}", self.said()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the tool is there");
    }

    /// Waits for its end.
    pub fn status(&mut self) -> ExitStatus {
        let mut status = None;
        let talk = self.talk.clone();
        wait_for(&format!("the end of a tool that said {}", talk.display()), LIMIT, || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("a status")
    }

    /// Its exit code; 0 is 0.
    pub fn code(&mut self) -> Option<i32> {
        self.status().code()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// pc-recv on a free port of the loopback.
pub fn recv(folder: &Folder, args: &[&str]) -> Tool {
    Tool::start("pc-recv", folder, None, &[&["127.0.0.1:0"], args].concat())
}

/// pc-send with a file, or nothing, on its standard input.
pub fn send(folder: &Folder, input: Option<&Path>, addr: &str, args: &[&str]) -> Tool {
    Tool::start("pc-send", folder, input, &[&[addr], args].concat())
}

/// Runs a tool to its end, its output kept.
pub fn run(name: &str, args: &[impl AsRef<OsStr>]) -> Output {
    Command::new(program(name)).args(args).stdin(Stdio::null()).output().expect("the tool runs")
}

/// Bytes that do not compress, the same ones for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A file with these bytes.
pub fn file(folder: &Folder, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.file(name);
    fs::write(&path, bytes).expect("a file");
    path
}

/// The path of a new key.
pub fn key(folder: &Folder, name: &str) -> String {
    let path = folder.file(name).display().to_string();
    assert!(run("pc-recv", &["--new-key", &path]).status.success());
    path
}

/// One way and whole: `input` goes through, both end with 0.
pub fn moves(folder: &Folder, input: &[u8], recv_args: &[&str], send_args: &[&str]) -> (Tool, Tool) {
    let path = file(folder, "input", input);
    let mut receiver = recv(folder, recv_args);
    let mut sender = send(folder, Some(&path), &receiver.addr(), send_args);
    let codes = (sender.code(), receiver.code());
    assert_eq!(codes, (Some(0), Some(0)), "{}{}", sender.said(), receiver.said());
    assert!(receiver.out() == input, "{} bytes came of {}", receiver.out().len(), input.len());
    (sender, receiver)
}
