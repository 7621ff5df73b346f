//! Files, directories and devices opened by path.

use std::os::fd::OwnedFd;

use nix::unistd::{Whence, lseek};
use pc_image::{OpenFile, RegularFile};

use crate::error::{Context, RebuildError};
use crate::file;
use crate::image::Image;

/// Opens it as it was, at its offset.
pub fn build(image: &Image, open: &OpenFile, regular: &RegularFile) -> Result<OwnedFd, RebuildError> {
    let record = image.file(regular.file)?;
    file::judge(record)?;
    file::judge_offset(record, regular.offset)?;
    let fd = file::open(record, open.flags as i32)?;
    if regular.offset != 0 && open.flags as i32 & libc::O_PATH == 0 {
        let offset = i64::try_from(regular.offset).unwrap_or(i64::MAX);
        lseek(&fd, offset, Whence::SeekSet)
            .what_of(|| format!("seeking in {}", file::path_of(record).display()))?;
    }
    Ok(fd)
}
