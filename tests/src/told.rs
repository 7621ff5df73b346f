//! A guest that does what it is told by a client, over a TCP connection that moves with it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _, pipe};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::net::{Host, Hosts, Pattern, service};
use crate::{Failing, Folder, Guest, adopt_orphans, program, run, said, wait_for};

/// A guest that does what it is told, and its client.
pub struct Told {
    /// The hosts of both.
    pub hosts: Hosts,
    /// The process.
    pub guest: Guest,
    /// Where it is.
    pub at: Host,
    /// With its report.
    pub folder: Folder,
    /// The client's end of the connection.
    pub client: TcpStream,
    sent: Pattern,
    received: Pattern,
}

impl Told {
    /// Starts it on the first host, with these steps (see `guest-tcp`), and connects the client.
    pub fn start(v6: bool, steps: &[&str]) -> Told {
        let (hosts, folder, address) = (Hosts::new(), Folder::new(), service(v6, 7777));
        let mut command = hosts.command(Host::One, program("guest-tcp"));
        let guest = Guest::start(command.arg(folder.file("report")).arg(address.to_string()).args(steps));
        let client = hosts.connect(address);
        let (sent, received) = Default::default();
        Told { hosts, guest, at: Host::One, folder, client, sent, received }
    }

    /// Waits until the guest waits there.
    pub fn waits(&self, name: &str) {
        let report = self.folder.file(&format!("report.{name}"));
        wait_for(name, Duration::from_secs(20), || {
            assert!(!self.folder.file("report").exists(), "{}", self.report());
            report.exists()
        });
    }

    /// Lets it go on from where it waits.
    pub fn goes_on(&self, name: &str) {
        fs::write(self.folder.file(&format!("report.{name}.go")), "").expect("a file");
    }

    /// Moves it to the other host.
    pub fn moved(mut self) -> Told {
        self.guest = self.hosts.moved(self.guest, self.at);
        self.at = self.at.other();
        self
    }

    /// The client sends so many bytes.
    pub fn send(&mut self, len: usize) {
        let bytes = self.sent.next(len);
        self.client.write_all(&bytes).expect("the connection lives");
    }

    /// The client receives so many bytes, and none are lost or others.
    pub fn receive(&mut self, len: usize) {
        let (expected, mut got) = (self.received.next(len), vec![0; len]);
        self.client.read_exact(&mut got).expect("the connection lives");
        assert!(got == expected, "other bytes than were sent");
    }

    /// The client receives the end.
    pub fn receive_end(&mut self) {
        assert_eq!(self.client.read(&mut [0]).expect("an end, not a reset"), 0);
    }

    /// What the guest complained of.
    pub fn report(&self) -> String {
        fs::read_to_string(self.folder.file("report")).unwrap_or_default()
    }

    /// The states of the guest's connection, as its host shows them.
    fn state(&self) -> String {
        let output = self.hosts.command(self.at, "ss").args(["-Htan", "sport", "=", "7777"]).output();
        let text = String::from_utf8(output.expect("ss runs").stdout).expect("text");
        let states = text.lines().filter_map(|line| line.split_whitespace().next());
        states.filter(|state| *state != "LISTEN").collect::<Vec<_>>().join(" ")
    }

    /// Waits until its connection is in a state.
    pub fn reaches(&self, state: &str) {
        wait_for(state, Duration::from_secs(10), || self.state() == state);
    }

    /// The guest has done all that it was told, and nothing is left.
    pub fn end(mut self) {
        let code = self.guest.ended(Duration::from_secs(20));
        assert_eq!((code, self.report().as_str()), (Some(0), "OK\n"));
        self.hosts.assert_no_tables();
    }
}

impl Told {
    /// One that gives back what it gets.
    pub fn echoing() -> Told {
        let mut told = Told::start(false, &["echo"]);
        told.echoes();
        told
    }

    /// The client gets back what it sends.
    pub fn echoes(&mut self) {
        self.send(1000);
        self.receive(1000);
    }

    /// All goes on until the client ends it.
    pub fn ends_echoing(mut self) {
        self.echoes();
        self.client.shutdown(Shutdown::Write).expect("the connection lives");
        self.receive_end();
        self.end();
    }

    /// pc-dump of it into a file.
    pub fn dump_to(&self, image: &Path, args: &[&str]) -> Command {
        let mut dump = self.hosts.command(self.at, program("pc-dump"));
        dump.args(args).arg(self.guest.arg()).stdin(Stdio::null());
        dump.stdout(File::create(image).expect("an image"));
        dump
    }

    /// Restores an image, detached; the guest is its copy if that goes well.
    pub fn restored_from(&mut self, image: &Path, args: &[&str]) -> Output {
        adopt_orphans();
        let (pidfile, text) = (self.folder.file("pid"), self.folder.file("restored"));
        let mut restore = self.hosts.command(self.at, program("pc-restore"));
        restore.args(["--detach", "--pidfile"]).arg(&pidfile).args(args);
        restore.stdin(File::open(image).expect("an image")).stdout(Stdio::null());
        let status = restore.stderr(File::create(&text).expect("a file")).status().expect("pc-restore runs");
        if status.success() {
            let pid = fs::read_to_string(&pidfile).expect("a pidfile").trim().parse().expect("a pid");
            self.guest = Guest::adopt(pid);
        }
        Output { status, stdout: Vec::new(), stderr: fs::read(text).expect("what it said") }
    }
}

impl Told {
    /// Lets it run on that was left stopped, as `pc-dump --resolve running` does.
    pub fn resolved_to_run(&self) {
        let resolved = run("pc-dump", &["--resolve", "running", &self.guest.arg()]);
        assert!(resolved.status.success(), "{}", said(&resolved));
    }

    /// Hands the guest over to the other host, where `ready` is run once all is built, and `failed` if that fails; one
    /// system call of pc-dump may fail. Gives the exit codes of both tools, and what they said.
    pub fn handed_over(
        &mut self,
        ready: &str,
        failed: &str,
        failing: Option<&Failing>,
    ) -> (Option<i32>, Option<i32>, String) {
        adopt_orphans();
        let (pidfile, text) = (self.folder.file("pid"), self.folder.file("handed"));
        let ((stream, stream_in), (back, back_in)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let mut dump = self.hosts.dump(self.at, &self.guest, &["--handover"]);
        if let Some(failing) = failing {
            dump = failing.command(&dump);
        }
        dump.stdin(back).stdout(stream_in).stderr(Stdio::piped());
        let mut restore = self.hosts.command(self.at.other(), program("pc-restore"));
        restore.args(["--handover", "--detach", "--new-pid-ns", "--tcp-established", "--on-ready", ready]);
        restore.args(["--on-failed", failed, "--pidfile"]).arg(&pidfile);
        restore.stdin(stream).stdout(back_in).stderr(File::create(&text).expect("a file"));
        let dumping = dump.spawn().expect("pc-dump runs");
        let mut restoring = restore.spawn().expect("pc-restore runs");
        drop((dump, restore)); // and our ends of the pipes
        let dumped = dumping.wait_with_output().expect("pc-dump ends");
        let restored = restoring.wait().expect("pc-restore ends");
        let text = said(&dumped) + &fs::read_to_string(&text).expect("what it said");
        (dumped.status.code(), restored.code(), text)
    }
}
