//! Shared anonymous memory (mmap(2), `MAP_SHARED | MAP_ANONYMOUS`) as a file.

use std::fs::{File, OpenOptions};
use std::io;

/// Makes shared anonymous memory of `len` bytes, in whole pages, and opens what it is for the kernel: a file that
/// /proc/PID/maps calls `/dev/zero (deleted)`. It is there until the last descriptor and mapping of it are gone. Needs
/// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: see `map_files` in proc(5).
pub fn shared_anonymous(len: u64) -> io::Result<File> {
    const PAGE: usize = 4096;
    let len = usize::try_from(len).ok().and_then(|len| len.checked_next_multiple_of(PAGE));
    let len = len.filter(|len| *len > 0).ok_or(io::ErrorKind::InvalidInput)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel finds room; nothing refers to it but the lines below.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let link = format!("/proc/self/map_files/{:x}-{:x}", at as usize, at as usize + len);
    let opened = OpenOptions::new().read(true).write(true).open(link);
    // SAFETY: the mapping just made, of which no pointer is kept.
    unsafe { libc::munmap(at, len) };
    opened
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn it_keeps_its_content_without_a_mapping_and_has_its_name() {
        let file = shared_anonymous(5000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        file.write_all_at(b"here", 8188).unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 8188).unwrap();
        assert_eq!(&bytes, b"here");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        assert_eq!(std::fs::read_link(link).unwrap().to_str(), Some("/dev/zero (deleted)"));
        assert!(shared_anonymous(0).is_err() && shared_anonymous(u64::MAX).is_err());
    }
}
