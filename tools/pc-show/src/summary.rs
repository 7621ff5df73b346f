//! The summary for people.

use std::collections::BTreeMap;
use std::io::{self, Write};

use pc_image::{Backing, PAGE_SIZE, prot};

use crate::fds;
use crate::model::{Mapping, Model};

/// A stream in a page of text.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    let id: String = model.stream_id.iter().flatten().map(|b| format!("{b:02x}")).collect();
    writeln!(out, "stream     {id}, {}", pc_cli::show_size(model.bytes))?;
    if let Some(machine) = &model.machine {
        writeln!(out, "source     {}, Linux {}, by {}", machine.hostname, machine.kernel, machine.producer)?;
    }
    for task in model.tasks.values() {
        let exe = task.space.and_then(|space| model.mm.get(&space)).map(|mm| model.path(mm.exe));
        let name = String::from_utf8_lossy(&task.comm);
        let exe = exe.map_or(String::new(), |exe| format!(", {exe}"));
        writeln!(out, "process    {} ({name}), {} threads{exe}", task.pid, task.tids.len())?;
    }
    memory(model, out)?;
    rounds(model, out)?;
    descriptors(model, out)?;
    match (&model.commit, &model.cancel) {
        (Some(_), _) if model.wrong.is_none() => {
            writeln!(out, "complete   yes: committed, all checksums right")
        }
        (_, Some(cancel)) => writeln!(out, "complete   no: cancelled by the source: {}", cancel.reason),
        _ => writeln!(out, "complete   no"),
    }
}

/// What a mapping is, in a word.
fn kind(mapping: &Mapping) -> &'static str {
    match mapping.vma.backing {
        Backing::Anonymous => "anonymous",
        Backing::File { .. } if mapping.vma.prot & prot::WRITE != 0 => "file, private",
        Backing::File { .. } => "file",
        Backing::Shm { .. } => "shared",
        Backing::Hugetlb { .. } => "huge pages",
        Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Vsyscall => "kernel's",
    }
}

fn memory(model: &Model, out: &mut impl Write) -> io::Result<()> {
    let mut kinds: BTreeMap<&str, (u64, u64, u64, u64)> = BTreeMap::new();
    for mapping in model.maps.values().flat_map(BTreeMap::values) {
        let sum = kinds.entry(kind(mapping)).or_default();
        sum.0 += 1;
        sum.1 += mapping.vma.end - mapping.vma.start;
        sum.2 += mapping.sent * PAGE_SIZE;
        sum.3 += mapping.zero * PAGE_SIZE;
    }
    for (kind, (count, size, sent, zero)) in kinds {
        writeln!(
            out,
            "memory     {kind}: {count} mappings, {} mapped, {} sent, {} zero",
            pc_cli::show_size(size),
            pc_cli::show_size(sent),
            pc_cli::show_size(zero)
        )?;
    }
    Ok(())
}

fn rounds(model: &Model, out: &mut impl Write) -> io::Result<()> {
    let start = model.rounds.first().map_or(0, |round| round.clocks.monotonic);
    for round in &model.rounds {
        let ms = (round.clocks.monotonic - start) as f64 / 1e6;
        writeln!(
            out,
            "round      {:>3} at {ms:>9.1} ms: {} pages, {} zero, {} zapped{}",
            round.number,
            round.counts.pages,
            round.counts.zero_pages,
            round.counts.zapped_pages,
            if round.last { ", the process stopped" } else { "" }
        )?;
    }
    Ok(())
}

fn descriptors(model: &Model, out: &mut impl Write) -> io::Result<()> {
    const SHOWN: usize = 20;
    let all: Vec<_> = model.fd_tables.values().flat_map(|table| &table.fds).collect();
    for fd in all.iter().take(SHOWN) {
        let what =
            model.open_files.get(&fd.file).map_or("?".to_owned(), |file| fds::describe(model, &file.kind));
        writeln!(out, "descriptor {:>3} {what}", fd.fd)?;
    }
    if all.len() > SHOWN {
        writeln!(out, "descriptor … and {} more (--fds)", all.len() - SHOWN)?;
    }
    Ok(())
}
