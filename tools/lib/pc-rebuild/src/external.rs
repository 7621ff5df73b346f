//! Descriptors whose other end was outside the image.

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use pc_image::{ExternalFile, ExternalKind, OpenFile, OpenFileKind, rules};

use crate::error::{Context, RebuildError};
use crate::openfile::reopen;
use crate::place::Place;
use crate::settings::{Attach, Notices, Settings};

/// Refuses something that reaches outside and of which nobody has said what it becomes.
pub fn judge(open: &OpenFile, settings: &Settings) -> Result<(), RebuildError> {
    let OpenFileKind::External(external) = &open.kind else { return Ok(()) };
    match rules::needs_attach(external) {
        Some(why) if !settings.attach.contains_key(&external.id) => Err(RebuildError::Unsupported(why)),
        _ => Ok(()),
    }
}

/// Says which ids of `--attach` the stream does not have.
pub fn judge_ids<'a>(files: impl Iterator<Item = &'a OpenFile>, settings: &Settings, notices: Notices<'_>) {
    let ids: Vec<&str> = files
        .filter_map(|open| match &open.kind {
            OpenFileKind::External(external) => Some(external.id.as_str()),
            _ => None,
        })
        .collect();
    for id in settings.attach.keys().filter(|id| !ids.contains(&id.as_str())) {
        notices(&format!("--attach {id}=…: nothing of that name reaches outside"));
    }
}

/// What it becomes here.
pub fn build(
    open: &OpenFile,
    external: &ExternalFile,
    place: &Place,
    settings: &Settings,
    notices: Notices<'_>,
) -> Result<OwnedFd, RebuildError> {
    let flags = open.flags as i32;
    match settings.attach.get(&external.id) {
        Some(Attach::Null) => null(place, flags),
        Some(Attach::Path(path)) => attach(place, path, flags),
        Some(Attach::Fd(fd)) => again(fd.as_fd(), flags),
        None => by_default(external, place, flags, notices),
    }
}

fn by_default(
    external: &ExternalFile,
    place: &Place,
    flags: i32,
    notices: Notices<'_>,
) -> Result<OwnedFd, RebuildError> {
    match external.kind {
        ExternalKind::Terminal => match terminal() {
            Some(tty) => again(tty.as_fd(), flags),
            None => {
                notices(&format!("{} becomes /dev/null: there is no terminal here", external.id));
                null(place, flags)
            }
        },
        // Judged before: there is no other.
        ExternalKind::PipeRead | ExternalKind::PipeWrite => {
            notices(&format!("{} becomes our stderr", external.id));
            again(std::io::stderr().as_fd(), flags)
        }
    }
}

/// A path is one of ours. In a copy of our mount namespace it leads to the same, but for what is ours alone (/dev/stderr); in
/// one that is joined it may lead anywhere.
fn attach(place: &Place, path: &Path, flags: i32) -> Result<OwnedFd, RebuildError> {
    match place {
        Place::Copied(_) => open_path(place, path, flags).or_else(|_| open_path(&Place::Ours, path, flags)),
        Place::Ours | Place::Joined(_) => open_path(&Place::Ours, path, flags),
    }
}

fn null(place: &Place, flags: i32) -> Result<OwnedFd, RebuildError> {
    open_path(place, Path::new("/dev/null"), flags)
}

/// Opens a path with the access that the process had; what is a file is appended to.
fn open_path(place: &Place, path: &Path, flags: i32) -> Result<OwnedFd, RebuildError> {
    let access = flags & libc::O_ACCMODE;
    let keep = flags & (libc::O_NONBLOCK | libc::O_APPEND);
    let create = if access == libc::O_RDONLY { 0 } else { libc::O_CREAT };
    // Relative to where we are, and nowhere else.
    let ours = std::path::absolute(path).what_of(|| format!("opening {}", path.display()))?;
    let flags = access | keep | create | libc::O_NOCTTY | appending(path, access);
    place.open(&ours, flags, 0o600).what_of(|| format!("opening {}", path.display()))
}

fn appending(path: &Path, access: i32) -> i32 {
    let special =
        std::fs::metadata(path).is_ok_and(|m| m.file_type().is_char_device() || m.file_type().is_fifo());
    if special || access == libc::O_RDONLY { 0 } else { libc::O_APPEND }
}

/// A descriptor of ours, opened anew where that can be done, so that its flags are not the caller's.
fn again(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, RebuildError> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let append = appending(Path::new(&path), flags & libc::O_ACCMODE);
    match reopen(&fd, flags | append) {
        Ok(fd) => Ok(fd),
        // Sockets cannot be opened anew.
        Err(_) => fd.try_clone_to_owned().what("duplicating a descriptor"),
    }
}

/// The caller's terminal, by one of our standard descriptors.
fn terminal() -> Option<OwnedFd> {
    let streams = [
        (std::io::stderr().is_terminal(), std::io::stderr().as_fd().try_clone_to_owned()),
        (std::io::stdin().is_terminal(), std::io::stdin().as_fd().try_clone_to_owned()),
        (std::io::stdout().is_terminal(), std::io::stdout().as_fd().try_clone_to_owned()),
    ];
    streams.into_iter().find_map(|(is, fd)| if is { fd.ok() } else { None })
}
