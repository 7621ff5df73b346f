//! Pipes whose two ends are both in the image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use pc_image::{OpenFileKind, PipeEnd};

use crate::error::{Context, Result};
use crate::external;
use crate::openfile::{Descriptor, Fds};

/// A pipe of the process.
#[derive(Debug, Default)]
struct Pipe {
    number: u32,
    /// A descriptor of an end that can be read.
    reader: Option<i32>,
    /// Some end can be written.
    writer: bool,
    /// Each write is read by itself (`O_DIRECT`).
    packets: bool,
    /// Its content went with an end already.
    told: bool,
}

/// The pipes of a process, by inode.
#[derive(Debug, Default)]
pub(crate) struct Pipes(HashMap<u64, Pipe>);

impl Pipes {
    /// Finds which ends of which pipes the descriptors are.
    pub fn find(all: &[Descriptor]) -> Self {
        let mut pipes: HashMap<u64, Pipe> = HashMap::new();
        for d in all.iter().filter(|d| d.meta.file_type().is_fifo()) {
            let number = pipes.len() as u32;
            let pipe = pipes.entry(d.meta.ino()).or_insert_with(|| Pipe { number, ..Pipe::default() });
            let access = d.flags() as i32 & libc::O_ACCMODE;
            if access != libc::O_WRONLY {
                pipe.reader.get_or_insert(d.fd);
            }
            pipe.writer |= access != libc::O_RDONLY;
            // Only the end that is written to shows the flag.
            pipe.packets |= d.flags() & libc::O_DIRECT as u32 != 0;
        }
        Self(pipes)
    }
}

pub(crate) fn capture(fds: &mut Fds<'_>, d: &Descriptor, _all: &[Descriptor]) -> Result<OpenFileKind> {
    if !d.link.starts_with(b"pipe:[") {
        return fds.refuse(d, format!("the fifo {}, which cannot be moved yet", d.link_text()));
    }
    let Some(pipe) = fds.pipes.0.get_mut(&d.meta.ino()) else { return Ok(external::pipe(fds, d)) };
    let (number, writer, packets) = (pipe.number, pipe.writer, pipe.packets);
    let first = !std::mem::replace(&mut pipe.told, true);
    let Some(reader) = pipe.reader.filter(|_| writer) else { return Ok(external::pipe(fds, d)) };
    let end = fds.take(reader)?;
    let capacity = fcntl(&end, FcntlArg::F_GETPIPE_SZ).of(fds.pid, "asking for a pipe's size")? as u32;
    let content = if first && fds.stopped {
        content(&end, capacity, packets)
            .of(fds.pid, format_args!("reading the pipe of descriptor {}", d.fd))?
    } else {
        Vec::new()
    };
    Ok(OpenFileKind::Pipe(PipeEnd { pipe: number, capacity, content }))
}

/// What is in a pipe, which stays in it: tee(2) into one of our own, and read from there.
fn content(end: &OwnedFd, capacity: u32, packets: bool) -> std::io::Result<Vec<Vec<u8>>> {
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(&to, FcntlArg::F_SETPIPE_SZ(capacity as i32))?;
    match tee(end.as_fd(), to.as_fd(), i32::MAX as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(0) | Err(nix::errno::Errno::EAGAIN) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(err) => return Err(err.into()),
    }
    let mut from = File::from(from);
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let mut buf = vec![0; 64 << 10];
    loop {
        match from.read(&mut buf) {
            Ok(0) => return Ok(chunks),
            Ok(n) if packets || chunks.is_empty() => chunks.push(buf[..n].to_vec()),
            Ok(n) => chunks[0].extend_from_slice(&buf[..n]),
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(chunks),
            Err(err) => return Err(err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn content_is_copied_and_stays_and_packets_stay_apart() {
        for (flags, want) in [(OFlag::empty(), 1), (OFlag::O_DIRECT, 2)] {
            let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC | flags).unwrap();
            assert!(content(&from, 65536, true).unwrap().is_empty());
            let mut to = File::from(to);
            to.write_all(b"abc").unwrap();
            to.write_all(b"def").unwrap();
            for _ in 0..2 {
                let chunks = content(&from, 65536, !flags.is_empty()).unwrap();
                assert_eq!(chunks.len(), want);
                assert_eq!(chunks.concat(), b"abcdef");
            }
        }
    }
}
