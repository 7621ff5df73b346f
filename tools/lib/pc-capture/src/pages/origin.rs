//! Where pages are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pc_sys::mem::{ProcMem, RemoteRange, read_remote_ranges};

/// A process, or a file in which addresses are offsets, as far as a length; after that, and after its end, it reads as zero.
#[derive(Debug)]
pub enum Origin<'a> {
    Process(ProcMem),
    File(&'a File, u64),
}

impl Origin<'_> {
    /// As many bytes of the ranges as can be read at once; the rest is read page by page.
    pub fn read_fast(&self, pid: i32, ranges: &[RemoteRange], buf: &mut [u8]) -> std::io::Result<usize> {
        let Self::File(file, len) = self else {
            return match read_remote_ranges(pid, ranges, buf) {
                Err(err) if err.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                read => read,
            };
        };
        let mut done = 0;
        for range in ranges {
            let room = room(range.addr, range.len, *len);
            let got = file.read_at(&mut buf[done..done + room], range.addr)?;
            done += got;
            if got < range.len {
                break;
            }
        }
        Ok(done)
    }

    pub fn read_page(&self, addr: u64, page: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::Process(mem) => mem.read(addr, page),
            Self::File(file, len) => {
                let room = room(addr, page.len(), *len);
                let mut done = 0;
                while done < room {
                    match file.read_at(&mut page[done..room], addr + done as u64)? {
                        0 => break,
                        more => done += more,
                    }
                }
                page[done..].fill(0);
                Ok(())
            }
        }
    }
}

/// How many of `wanted` bytes at an address lie before `len`.
fn room(addr: u64, wanted: usize, len: u64) -> usize {
    usize::try_from(len.saturating_sub(addr)).map_or(wanted, |room| room.min(wanted))
}
