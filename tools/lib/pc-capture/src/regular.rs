//! Files, directories and devices opened by path.

use std::os::unix::fs::MetadataExt;

use pc_image::{FileNeed, OpenFileKind, RegularFile};

use crate::error::Result;
use crate::memory::SECRET;
use crate::openfile::{Descriptor, Fds};

/// Character devices that hold nothing: null, zero, full, random, urandom.
const SIMPLE: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

pub(crate) fn capture(fds: &mut Fds<'_>, d: &Descriptor) -> Result<OpenFileKind> {
    let need = match need(d) {
        Ok(need) => need,
        Err(what) => return fds.refuse(d, what),
    };
    match fds.files.name(&d.link, &d.meta, need, false) {
        Ok(file) => Ok(OpenFileKind::Regular(RegularFile { file, offset: d.info.pos })),
        Err(why) => fds.refuse(d, why),
    }
}

fn need(d: &Descriptor) -> std::result::Result<FileNeed, String> {
    let kind = d.meta.file_type();
    let link = d.link_text();
    if !link.starts_with('/') {
        return Err(format!("{link}, which cannot be moved yet"));
    }
    if d.link.starts_with(SECRET) && d.meta.nlink() <= 1 && device(d.meta.dev()).0 == 0 {
        return Err("secret memory (memfd_secret), which nobody but the process itself can read".to_owned());
    }
    if link.starts_with("/memfd:") {
        return Err(format!("a memfd of huge pages ({link}), which cannot be moved yet"));
    }
    if kind.is_dir() || d.is_path_only() || !kept(&link) {
        return Ok(FileNeed::Kind);
    }
    if kind.is_file() {
        let writes = d.flags() & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32;
        return Ok(if writes { FileNeed::Exists } else { FileNeed::Same });
    }
    let device = device(d.meta.rdev());
    if SIMPLE.contains(&device) {
        return Ok(FileNeed::Kind);
    }
    Err(match device {
        (10, 232) => "/dev/kvm, which cannot be moved yet".to_owned(),
        _ => format!("the device {link} ({}:{}), which cannot be moved", device.0, device.1),
    })
}

/// Files of /proc and /sys have neither a size nor a time to compare.
fn kept(link: &str) -> bool {
    !link.starts_with("/proc/") && !link.starts_with("/sys/")
}

/// Major and minor number: see makedev(3).
pub(crate) fn device(rdev: u64) -> (u32, u32) {
    let major = (rdev >> 8 & 0xfff) | (rdev >> 32 & !0xfff);
    let minor = (rdev & 0xff) | (rdev >> 12 & !0xff);
    (major as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_split_as_makedev_joins_them() {
        for (major, minor) in [(1, 3), (136, 300), (5000, 70000)] {
            assert_eq!(device(libc::makedev(major, minor)), (major, minor));
        }
    }
}
