//! Files opened while the original still runs, so that this need not be done at the stop.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use pc_image::{OpenFile, OpenFileId, OpenFileKind, RegularFile};

use crate::file;
use crate::image::Image;

/// What is open already. Dropped, it is closed.
#[derive(Debug, Default)]
pub struct Early(BTreeMap<OpenFileId, (OpenFile, OwnedFd)>);

impl Early {
    /// Opens what a record tells of, if that has no effect on anybody: files and directories. What cannot be opened now is tried
    /// again at the stop, which says why.
    pub fn open(&mut self, image: &Image, open: &OpenFile) {
        let OpenFileKind::Regular(regular) = &open.kind else { return };
        if self.0.get(&open.id).is_some_and(|(known, _)| alike(known, open)) {
            return;
        }
        self.0.remove(&open.id);
        let Ok(record) = image.file(regular.file) else { return };
        let plain = matches!(record.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR);
        // What /proc shows depends on who is there.
        if plain
            && !record.path.starts_with(b"/proc/")
            && let Ok(fd) = file::open(&image.place, record, open.flags as i32)
        {
            self.0.insert(open.id, (open.clone(), fd));
        }
    }

    /// What was opened for a record, if it says the same at the stop but for the offset, and the file still has a name.
    pub fn take(&mut self, open: &OpenFile) -> Option<fs::File> {
        let (known, fd) = self.0.remove(&open.id)?;
        let file = fs::File::from(fd);
        let named = file.metadata().is_ok_and(|meta| meta.nlink() > 0);
        (named && alike(&known, open)).then_some(file)
    }
}

fn alike(a: &OpenFile, b: &OpenFile) -> bool {
    let file = |open: &OpenFile| match &open.kind {
        OpenFileKind::Regular(RegularFile { file, .. }) => Some(*file),
        _ => None,
    };
    file(a).is_some() && (file(a), a.flags) == (file(b), b.flags)
}
