//! Guests written in Python: they open something, are moved, and try it out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{Folder, Guest, dump_to_file, program, said, wait_for};

/// Opens all there is, then does its second part at SIGUSR1; what goes wrong is in the report.
pub fn python(folder: &Folder, first: &str, second: &str) -> Command {
    let report = folder.file("report");
    let script = format!(
        "import os, signal, socket, sys\n\
         os.closerange(3, 1000)\n\
         signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n\
         {first}\n\
         open({report:?} + '.new', 'w').close()\n\
         os.rename({report:?} + '.new', {report:?} + '.ready')\n\
         signal.sigwait([signal.SIGUSR1])\n\
         try:\n    {}\n    text = 'OK'\n\
         except BaseException as error:\n    text = repr(error)\n\
         with open({report:?} + '.new', 'w') as file: file.write(text)\n\
         os.rename({report:?} + '.new', {report:?})\n",
        second.replace('\n', "\n    ")
    );
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts it, and waits until all is open.
pub fn started(folder: &Folder, command: &mut Command) -> Guest {
    let guest = Guest::start_as_is(command);
    let ready = folder.file("report.ready");
    wait_for("the guest is ready", Duration::from_secs(40), || ready.exists());
    guest
}

/// Dumps it into a file, with these arguments, and ends it.
pub fn image_of(folder: &Folder, mut guest: Guest, args: &[&str]) -> PathBuf {
    let image = folder.file("image");
    dump_to_file(&guest, &image, &[&["--kill"], args].concat());
    guest.ended(Duration::from_secs(5));
    image
}

/// Lets a copy do its second part, which must go well.
pub fn second_part_is_right(folder: &Folder, mut copy: Guest) {
    copy.signal(Signal::SIGUSR1);
    let code = copy.ended(Duration::from_secs(10));
    let report = text(&folder.file("report"));
    assert!(code == Some(0) && report == "OK", "{code:?}: {report}");
}

/// What is in a file; nothing if it is not there.
pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Tries to restore an image, which is refused.
pub fn refused(image: &Path, args: &[&str]) -> String {
    let mut tool = Command::new(program("pc-restore"));
    let tool = tool.arg("--detach").args(args).stdin(File::open(image).expect("an image"));
    let output = tool.output().expect("it runs");
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    said(&output)
}
