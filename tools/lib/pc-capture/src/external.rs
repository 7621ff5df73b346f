//! Descriptors that reach outside the image.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use pc_image::{ExternalFile, ExternalKind, OpenFileKind};

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

/// The end of a pipe whose other end is outside.
pub(crate) fn pipe(fds: &mut Fds<'_>, d: &Descriptor) -> OpenFileKind {
    let reads = d.flags() & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
    let kind = if reads { ExternalKind::PipeRead } else { ExternalKind::PipeWrite };
    named(fds, d, format!("pipe:{}", d.fd), kind)
}

fn named(fds: &mut Fds<'_>, d: &Descriptor, name: String, kind: ExternalKind) -> OpenFileKind {
    let id = fds.externals.unique(name, d.fd);
    OpenFileKind::External(ExternalFile { id, kind })
}
