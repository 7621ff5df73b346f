//! Files, directories and devices opened by path.

use std::fs;
use std::os::fd::OwnedFd;

use nix::unistd::{Whence, lseek};
use pc_image::{OpenFile, RegularFile};

use crate::error::{Context, RebuildError};
use crate::file;
use crate::image::Image;

/// Opens it as it was, or takes what was opened early, at its offset.
pub fn build(
    image: &Image,
    open: &OpenFile,
    regular: &RegularFile,
    early: Option<fs::File>,
) -> Result<OwnedFd, RebuildError> {
    let record = image.file(regular.file)?;
    let file = match early {
        Some(file) => file,
        None => {
            file::judge(&image.place, record)?;
            file::open(&image.place, record, open.flags as i32)?.into()
        }
    };
    let meta = file.metadata().what_of(|| format!("looking at {}", file::path_of(record).display()))?;
    file::judge_found(&image.place, record, &meta)?;
    // What is appended goes to the end, wherever that is by now.
    if open.flags as i32 & libc::O_APPEND == 0 {
        file::judge_offset(record, &meta, regular.offset)?;
    }
    let fd = OwnedFd::from(file);
    if regular.offset != 0 && open.flags as i32 & libc::O_PATH == 0 {
        let offset = i64::try_from(regular.offset).unwrap_or(i64::MAX);
        lseek(&fd, offset, Whence::SeekSet)
            .what_of(|| format!("seeking in {}", file::path_of(record).display()))?;
    }
    Ok(fd)
}
