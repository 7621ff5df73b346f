//! Pipes whose two ends are both in the image.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

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

/// Pipes of which the process has both ends, and somebody else has one, too: what it writes may be read outside, and what
/// it reads come from there.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// Those that were looked for, by inode, and whether somebody else has them.
    known: HashMap<u64, bool>,
}

/// How long somebody may have an end for whom it is not meant: a child has all descriptors until it runs another program.
const IN_PASSING: Duration = Duration::from_millis(50);

impl Outside {
    /// Looks for those that have come since. Searches the descriptors of all processes, as far as they may be read.
    pub fn look(&mut self, pid: i32, all: &[Descriptor]) {
        let found = Pipes::find(all);
        let both = found.0.iter().filter(|(_, pipe)| pipe.reader.is_some() && pipe.writer);
        let fresh: Vec<u64> = both.map(|(ino, _)| *ino).filter(|ino| !self.known.contains_key(ino)).collect();
        if fresh.is_empty() {
            return;
        }
        let mut held = held_by_others(pid, &fresh);
        if !held.is_empty() {
            std::thread::sleep(IN_PASSING);
            held = held_by_others(pid, &held.into_iter().collect::<Vec<_>>());
        }
        self.known.extend(fresh.into_iter().map(|ino| (ino, held.contains(&ino))));
    }

    /// Whether this is an end of one.
    fn has(&self, d: &Descriptor) -> bool {
        self.known.get(&d.meta.ino()).is_some_and(|held| *held)
    }
}

/// Which of these pipes other processes have.
fn held_by_others(pid: i32, inodes: &[u64]) -> HashSet<u64> {
    let names: HashMap<String, u64> = inodes.iter().map(|ino| (format!("pipe:[{ino}]"), *ino)).collect();
    let own = [pid, std::process::id() as i32];
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(|name| name.parse::<i32>().ok()).is_some_and(|pid| !own.contains(&pid))
    });
    let fds = others.flat_map(|entry| std::fs::read_dir(entry.path().join("fd"))).flatten().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter_map(|link| names.get(link.to_str()?).copied()).collect()
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

    /// Whether a descriptor is an end of a pipe all of whose ends are here.
    pub fn is_inside(&self, d: &Descriptor, outside: &Outside) -> bool {
        let both = |pipe: &Pipe| pipe.reader.is_some() && pipe.writer;
        d.link.starts_with(b"pipe:[") && self.0.get(&d.meta.ino()).is_some_and(both) && !outside.has(d)
    }
}

pub(crate) fn capture(fds: &mut Fds<'_>, d: &Descriptor, all: &[Descriptor]) -> Result<OpenFileKind> {
    if !d.link.starts_with(b"pipe:[") {
        return fds.refuse(d, format!("the fifo {}, which cannot be moved yet", d.link_text()));
    }
    let Some(pipe) = fds.pipes.0.get_mut(&d.meta.ino()) else { return Ok(external::pipe(fds, d, all)) };
    let (number, writer, packets) = (pipe.number, pipe.writer, pipe.packets);
    let first = !std::mem::replace(&mut pipe.told, true);
    let Some(reader) = pipe.reader.filter(|_| writer && !fds.outside.has(d)) else {
        return Ok(external::pipe(fds, d, all));
    };
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
    if pc_sys::fcntl::unread(end.as_fd())? == 0 {
        return Ok(Vec::new());
    }
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
