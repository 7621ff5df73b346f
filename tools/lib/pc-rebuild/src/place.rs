//! Where the paths of a process lead: its files are opened in the mount namespace that it will be in, so that they stay
//! reachable by their paths as long as it lives.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

/// The root that paths begin at.
#[derive(Debug, Default)]
pub enum Place {
    /// Ours.
    #[default]
    Ours,
    /// That of a copy of our mount namespace, with another /proc.
    Copied(OwnedFd),
    /// That of a mount namespace that is joined.
    Joined(OwnedFd),
}

impl Place {
    /// The root of a mount namespace that is to be joined.
    pub fn joined(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        // By a thread with a root directory of its own, as entering a mount namespace takes one.
        let root = std::thread::scope(|scope| {
            let working = scope.spawn(|| -> io::Result<File> {
                unshare(CloneFlags::CLONE_FS)?;
                setns(namespace, CloneFlags::CLONE_NEWNS)?;
                directory(Path::new("/"))
            });
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Ok(Self::Joined(root?.into()))
    }

    /// The root of a process in a copy of our mount namespace.
    pub fn copied(pid: i32) -> io::Result<Self> {
        Ok(Self::Copied(directory(Path::new(&format!("/proc/{pid}/root")))?.into()))
    }

    /// Whether it is a mount namespace that we know nothing of.
    pub fn is_joined(&self) -> bool {
        matches!(self, Self::Joined(_))
    }

    /// Opens a path, with flags of open(2) and close-on-exec.
    pub fn open(&self, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
        let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
        let creates = flags.intersects(OFlag::O_CREAT | OFlag::O_TMPFILE);
        let mode = Mode::from_bits_retain(if creates { mode } else { 0 });
        let root = match self {
            Self::Ours => return Ok(nix::fcntl::open(path, flags, mode)?),
            Self::Copied(root) | Self::Joined(root) => root,
        };
        let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        Ok(openat2(root, path, how)?)
    }

    /// What is at a path; symbolic links are followed.
    pub fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        match self {
            Self::Ours => std::fs::metadata(path),
            _ => File::from(self.open(path, libc::O_PATH, 0)?).metadata(),
        }
    }
}

fn directory(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_path_leads_to_the_same_file_from_our_root_as_from_that_of_another_process() {
        let own = Place::copied(std::process::id() as i32).unwrap();
        for place in [own, Place::Ours] {
            let found = place.metadata(Path::new("/proc/version")).unwrap();
            let open = File::from(place.open(Path::new("/proc/version"), libc::O_RDONLY, 0).unwrap());
            assert_eq!(found.ino(), open.metadata().unwrap().ino());
            let absent = place.open(Path::new("/proc/no-such-file"), libc::O_RDONLY, 0).unwrap_err();
            assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        }
    }
}
