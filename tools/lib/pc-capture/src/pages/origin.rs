//! Where pages are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pc_sys::mem::{ProcMem, RemoteRange, read_remote_ranges};

/// A process, or a file in which addresses are offsets; behind its end it reads as zero.
#[derive(Debug)]
pub enum Origin<'a> {
    Process(ProcMem),
    File(&'a File),
}

impl Origin<'_> {
    /// As many bytes of the ranges as can be read at once; the rest is read page by page.
    pub fn read_fast(&self, pid: i32, ranges: &[RemoteRange], buf: &mut [u8]) -> std::io::Result<usize> {
        let Self::File(file) = self else {
            return match read_remote_ranges(pid, ranges, buf) {
                Err(err) if err.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                read => read,
            };
        };
        let mut done = 0;
        for range in ranges {
            let got = file.read_at(&mut buf[done..done + range.len], range.addr)?;
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
            Self::File(file) => {
                let mut done = 0;
                while done < page.len() {
                    match file.read_at(&mut page[done..], addr + done as u64)? {
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
