//! A program of a certain size, to see what the stop grows with. It answers any line with +PONG.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::str::FromStr;
use std::thread;

use anyhow::Context as _;
use memmap2::MmapMut;
use serde::Serialize;

/// How large; written `threads=1,mappings=0,files=0,memory=0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub threads: usize,
    /// Mappings beside those that every program has.
    pub mappings: usize,
    /// Descriptors beside those that every program has.
    pub files: usize,
    /// Bytes of memory that are filled.
    pub memory: u64,
}

impl Shape {
    pub const SMALL: Shape = Shape { threads: 1, mappings: 0, files: 0, memory: 1 << 20 };
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shape = Shape::SMALL;
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or("expected name=value")?;
            let value = pc_cli::parse_size(value)?;
            match name {
                "threads" => shape.threads = value as usize,
                "mappings" => shape.mappings = value as usize,
                "files" => shape.files = value as usize,
                "memory" => shape.memory = value,
                _ => return Err(format!("unknown: {name}")),
            }
        }
        Ok(shape)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { threads, mappings, files, memory } = self;
        write!(f, "threads={threads},mappings={mappings},files={files},memory={memory}")
    }
}

/// Takes the shape and answers clients until it is killed, one at a time.
pub fn run(shape: Shape) -> anyhow::Result<()> {
    let _memory = memory(shape.memory)?;
    let _mappings = mappings(shape.mappings)?;
    let files: Result<Vec<_>, _> = (0..shape.files).map(|_| File::open("/dev/null")).collect();
    let _files = files.context("files")?;
    for _ in 1..shape.threads {
        thread::spawn(|| {
            loop {
                thread::park()
            }
        });
    }
    let listener = TcpListener::bind("0.0.0.0:6379").context("cannot listen")?;
    for stream in listener.incoming() {
        // A client that goes away, or a connection that the move has closed, is nothing special.
        let Ok(mut stream) = stream else { continue };
        let mut line = [0; 64];
        while stream.read(&mut line).is_ok_and(|n| n > 0) && stream.write_all(b"+PONG\r\n").is_ok() {}
    }
    Ok(())
}

fn memory(bytes: u64) -> anyhow::Result<MmapMut> {
    let mut memory = MmapMut::map_anon((bytes as usize).max(1)).context("memory")?;
    for (number, page) in memory.chunks_mut(4096).enumerate() {
        // No page is empty, and none equals another.
        let mark = (number as u64 + 1).to_le_bytes();
        let len = mark.len().min(page.len());
        page[..len].copy_from_slice(&mark[..len]);
    }
    Ok(memory)
}

/// Pages of two kinds in turn, which the kernel cannot merge into one mapping.
fn mappings(count: usize) -> anyhow::Result<Vec<Box<dyn Send>>> {
    (0..count)
        .map(|number| {
            let mut page = MmapMut::map_anon(4096).context("mapping")?;
            page[0] = 1;
            Ok(if number % 2 == 0 {
                Box::new(page) as Box<dyn Send>
            } else {
                Box::new(page.make_read_only().context("mapping")?)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_as_it_is_written() {
        let shape = Shape { threads: 3, mappings: 100, files: 9, memory: 1 << 30 };
        assert_eq!(shape.to_string().parse(), Ok(shape));
        assert!("legs=4".parse::<Shape>().is_err());
    }
}
