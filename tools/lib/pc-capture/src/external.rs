//! Descriptors that reach outside the image.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use pc_image::{ExternalFile, ExternalKind, OpenFileKind, rules};

use crate::openfile::{Descriptor, Fds};
use crate::regular::device;

/// Ids given so far.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<String>);

impl Names {
    /// A readable id that no other external has: the second of a name has its descriptor's number added.
    fn unique(&mut self, name: String, fd: i32) -> String {
        let id = if self.0.contains(&name) { format!("{name}:{fd}") } else { name };
        self.0.insert(id.clone());
        id
    }
}

/// Whether a descriptor is a terminal: a virtual console, a serial line, the slave of a pseudo-terminal, `/dev/tty`.
pub(crate) fn is_terminal(d: &Descriptor) -> bool {
    let (major, minor) = device(d.meta.rdev());
    let tty = matches!((major, minor), (4 | 136..=143, _) | (5, 0 | 1));
    d.meta.file_type().is_char_device() && tty
}

pub(crate) fn terminal(fds: &mut Fds<'_>, d: &Descriptor) -> OpenFileKind {
    named(fds, d, format!("tty:{}", d.link_text()), ExternalKind::Terminal)
}

/// The end of a pipe whose other end is outside. What descriptor 2 refers to has its number, and descriptor 1 says so if it
/// leads to the same pipe: these two have a place at the destination.
pub(crate) fn pipe(fds: &mut Fds<'_>, d: &Descriptor, all: &[Descriptor]) -> OpenFileKind {
    let kind = if d.reads() { ExternalKind::PipeRead } else { ExternalKind::PipeWrite };
    let stderr = all.iter().find(|other| other.fd == libc::STDERR_FILENO);
    let name = match stderr {
        Some(stderr) if stderr.file == d.file => rules::STDERR_PIPE.to_owned(),
        Some(stderr) if d.fd == libc::STDOUT_FILENO && inode(stderr) == inode(d) => {
            rules::STDOUT_TO_STDERR.to_owned()
        }
        _ => format!("pipe:{}", d.fd),
    };
    named(fds, d, name, kind)
}

fn inode(d: &Descriptor) -> (u64, u64) {
    (d.meta.dev(), d.meta.ino())
}

fn named(fds: &mut Fds<'_>, d: &Descriptor, name: String, kind: ExternalKind) -> OpenFileKind {
    let id = fds.externals.unique(name, d.fd);
    OpenFileKind::External(ExternalFile { id, kind })
}
