//! Nothing is left behind, also where SIGINT or SIGTERM ends the program in the middle.
//!
//! Guards do it on the ordinary way. A thread waits for the signals; when one comes, it ends the hosts (their
//! namespaces, cables and qdiscs go with their last process), takes the folders away and ends the program.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use pc_cli::signals;

static LIVE: Mutex<Live> = Mutex::new(Live { folders: Vec::new(), hosts: Vec::new() });

/// What is there to be taken away.
struct Live {
    folders: Vec<PathBuf>,
    hosts: Vec<Processes>,
}

/// The processes that hold a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processes {
    /// Our child.
    pub unshare: i32,
    /// Its child, the first process of the host.
    pub init: i32,
}

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on SIGINT and SIGTERM clean up and end the program.
pub fn on_signals() -> anyhow::Result<()> {
    let cancel = signals::install().context("signals")?;
    thread::spawn(move || {
        let mut fds = [PollFd::new(cancel.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        clean_up();
        std::process::exit(128 + cancel.signal().unwrap_or(signals::SIGTERM));
    });
    Ok(())
}

/// Takes everything away. The lock is never given back, so that nothing new is made.
fn clean_up() {
    let live = live();
    for host in &live.hosts {
        let _ = kill(Pid::from_raw(host.init), Signal::SIGKILL);
        // It ends after its first process, and that after all others of the host.
        let _ = waitpid(Pid::from_raw(host.unshare), None);
    }
    for folder in &live.folders {
        let _ = fs::remove_dir_all(folder);
    }
    std::mem::forget(live);
}

/// A host is to be ended from now on.
pub fn host_began(host: Processes) {
    live().hosts.push(host);
}

/// A host has ended.
pub fn host_ended(host: Processes) {
    live().hosts.retain(|known| *known != host);
}

/// A new folder, and gone again.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> anyhow::Result<Self> {
        let template = std::env::temp_dir().join("pc-bench-XXXXXX");
        let mut live = live();
        let path = nix::unistd::mkdtemp(&template).context("cannot make a folder")?;
        live.folders.push(path.clone());
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut live = live();
        let _ = fs::remove_dir_all(&self.0);
        live.folders.retain(|known| *known != self.0);
    }
}
