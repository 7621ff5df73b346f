//! Pipes both of whose ends are in the image.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use pc_image::{OpenFile, OpenFileKind, PipeEnd};

use crate::error::{Context, RebuildError};
use crate::fdtable::Built;
use crate::image::Image;
use crate::openfile::reopen;

/// Makes all pipes with what was in them.
pub fn build(image: &Image, built: &mut Built) -> Result<(), RebuildError> {
    let mut pipes: BTreeMap<u32, Vec<(&OpenFile, &PipeEnd)>> = BTreeMap::new();
    for open in image.open_files.values() {
        if let OpenFileKind::Pipe(end) = &open.kind {
            pipes.entry(end.pipe).or_default().push((open, end));
        }
    }
    for ends in pipes.values() {
        build_one(ends, built)?;
    }
    Ok(())
}

fn build_one(ends: &[(&OpenFile, &PipeEnd)], built: &mut Built) -> Result<(), RebuildError> {
    let packets = ends.iter().any(|(open, _)| open.flags as i32 & libc::O_DIRECT != 0);
    let direct = if packets { OFlag::O_DIRECT } else { OFlag::empty() };
    let (read, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | direct).what("making a pipe")?;
    let capacity = ends.iter().map(|(_, end)| end.capacity).max().unwrap_or(0);
    if capacity > 0 {
        let size = FcntlArg::F_SETPIPE_SZ(i32::try_from(capacity).unwrap_or(i32::MAX));
        fcntl(&read, size).what_of(|| format!("making a pipe of {capacity} bytes"))?;
    }
    for chunk in ends.iter().flat_map(|(_, end)| &end.content) {
        let n = write(&writer, chunk).what("filling a pipe")?;
        if n != chunk.len() {
            let why = format!("a pipe of {capacity} bytes does not take its content");
            return Err(RebuildError::Contradiction(why));
        }
    }
    let (mut read, mut writer) = (Some(read), Some(writer));
    for (open, _) in ends {
        let access = open.flags as i32 & libc::O_ACCMODE;
        let own = match access {
            libc::O_RDONLY => take_or_reopen(&mut read, built, ends, access, open)?,
            libc::O_WRONLY => take_or_reopen(&mut writer, built, ends, access, open)?,
            _ => take_or_reopen(&mut None, built, ends, access, open).or_else(|_| {
                let end = read.as_ref().or(writer.as_ref());
                end.map_or(Err(lost()), |end| reopen(end, open.flags as i32).what("opening a pipe again"))
            })?,
        };
        fcntl(&own, FcntlArg::F_SETFL(OFlag::empty())).what("setting the flags of a pipe")?;
        built.insert(open.id, own);
    }
    Ok(())
}

fn lost() -> RebuildError {
    RebuildError::Contradiction("an end of a pipe was lost".into())
}

/// The end itself, or, for a second open file of that end, the pipe opened anew.
fn take_or_reopen(
    end: &mut Option<OwnedFd>,
    built: &Built,
    ends: &[(&OpenFile, &PipeEnd)],
    access: i32,
    open: &OpenFile,
) -> Result<OwnedFd, RebuildError> {
    if let Some(end) = end.take() {
        return Ok(end);
    }
    let same = |o: &&OpenFile| o.flags as i32 & libc::O_ACCMODE == access || access == libc::O_RDWR;
    let other = ends.iter().map(|(o, _)| *o).filter(same).find_map(|o| built.get(&o.id));
    reopen(other.ok_or_else(lost)?, open.flags as i32).what("opening a pipe again")
}
