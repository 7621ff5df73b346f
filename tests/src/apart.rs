//! Guests that are apart from others in one way ([`guest-apart`](../bin/guest-apart.rs)), and what they find around them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{Folder, Guest, adopt_orphans, program, said, wait_for};

/// Such a guest, with its files.
pub struct Apart {
    /// The process.
    pub guest: Guest,
    /// Where its report and its file are.
    pub folder: Folder,
}

impl Apart {
    /// Starts one that is apart in some way, once it is ready. Its file says `plain`; in a way, `{}` stands for the folder of
    /// that file.
    pub fn start(way: &[&str]) -> Apart {
        let folder = Folder::new();
        fs::create_dir(folder.file("files")).expect("a folder");
        fs::write(folder.file("files/file"), "plain").expect("a file");
        let files = folder.file("files").display().to_string();
        let way: Vec<String> = way.iter().map(|word| word.replace("{}", &files)).collect();
        // Some ways make it another user, who has to get at it and at its report.
        let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777);
        fs::set_permissions(folder.file(""), open).expect("a folder");
        let mut command = Command::new(program("guest-apart"));
        let command = command.arg(folder.file("report")).arg(folder.file("files/file")).args(way);
        let guest = Guest::start(command.current_dir("/"));
        let ready = folder.file("report.ready");
        wait_for("the guest is ready", Duration::from_secs(20), || ready.exists());
        Apart { guest, folder }
    }

    /// What it finds around it now.
    pub fn findings(&self) -> String {
        let report = self.folder.file("report");
        let _ = fs::remove_file(&report);
        self.guest.signal(Signal::SIGUSR1);
        wait_for("what the guest finds", Duration::from_secs(20), || report.exists());
        fs::read_to_string(report).expect("a report")
    }

    /// One line of it.
    pub fn found(&self, what: &str) -> String {
        let all = self.findings();
        let line = all.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {what}: {all}")).to_owned()
    }

    /// The kernel's name of one of its namespaces.
    pub fn namespace(&self, kind: &str) -> String {
        namespace(self.guest.pid(), kind)
    }

    /// Its image, when it is ended.
    pub fn dumped(self, args: &[&str]) -> Image {
        let Apart { mut guest, folder } = self;
        let path = folder.file("image");
        crate::dump_to_file(&guest, &path, &[args, &["--kill"]].concat());
        guest.ended(Duration::from_secs(10));
        Image { folder, path }
    }
}

/// What is left of one when it is ended: its image and its files.
pub struct Image {
    /// Where the image and its files are.
    pub folder: Folder,
    /// The image.
    pub path: PathBuf,
}

impl Image {
    /// Runs pc-restore in some way before its arguments.
    pub fn restore_by(&self, before: &[&str], args: &[&str]) -> Output {
        adopt_orphans();
        let restore = program("pc-restore");
        let mut command = match before {
            [] => Command::new(restore),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(restore);
                command
            }
        };
        command.args(["--detach", "--pidfile"]).arg(self.folder.file("pid")).args(args);
        command.stdin(File::open(&self.path).expect("an image")).stdout(Stdio::null());
        command.output().expect("pc-restore runs")
    }

    /// Fails unless a restore is refused (exit 6) with these words.
    pub fn refused(&self, args: &[&str], words: &[&str]) {
        let output = self.restore_by(&[], args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(6), "{args:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }

    /// The copy, and what pc-restore said.
    pub fn restored_by(self, before: &[&str], args: &[&str]) -> (Apart, String) {
        let output = self.restore_by(before, args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        let pid =
            fs::read_to_string(self.folder.file("pid")).expect("a pidfile").trim().parse().expect("a pid");
        (Apart { guest: Guest::adopt(pid), folder: self.folder }, said(&output))
    }

    /// The same with nothing before the tool.
    pub fn restored(self, args: &[&str]) -> (Apart, String) {
        self.restored_by(&[], args)
    }
}

/// The kernel's name of a namespace of a process.
pub fn namespace(pid: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a process");
    link.to_str().expect("a name").to_owned()
}
