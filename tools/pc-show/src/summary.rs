//! The summary for people.

use std::collections::BTreeMap;
use std::io::{self, Write};

use pc_cli::show_size;
use pc_image::{Backing, PAGE_SIZE, Task, prot};

use crate::describe::describe;
use crate::model::{Mapping, Model, Round};
use crate::ps;
use crate::text::plain;

/// A stream in a page of text.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    let id: String = model.stream_id.iter().flatten().map(|b| format!("{b:02x}")).collect();
    let segments = if model.segments > 1 { format!(", {} segments", model.segments) } else { String::new() };
    writeln!(out, "stream     {id}, {}{segments}", show_size(model.bytes))?;
    if let Some(machine) = &model.machine {
        let [host, kernel, producer] = [&machine.hostname, &machine.kernel, &machine.producer].map(plain);
        writeln!(out, "source     {host}, Linux {kernel}, by {producer}")?;
    }
    match (&model.commit, &model.cancel) {
        (Some(_), _) if model.wrong.is_none() => {
            writeln!(out, "complete   yes: committed, all checksums right")?
        }
        (_, Some(cancel)) => {
            writeln!(out, "complete   no: cancelled by the source: {}", plain(&cancel.reason))?;
        }
        _ => writeln!(out, "complete   no")?,
    }
    processes(model, out)?;
    memory(model, out)?;
    objects(model, out)?;
    rounds(model, out)?;
    descriptors(model, out)
}

/// Begins a table, if there is anything to put in it.
fn heading(out: &mut impl Write, empty: bool, text: &str) -> io::Result<bool> {
    if !empty {
        writeln!(out, "\n{text}")?;
    }
    Ok(!empty)
}

fn processes(model: &Model, out: &mut impl Write) -> io::Result<()> {
    if heading(out, model.tasks.is_empty(), &format!("{:>8} {:>8}  PROCESS", "PID", "THREADS"))? {
        for task in ps::roots(model) {
            process(model, task, 0, out)?;
        }
    }
    Ok(())
}

fn process(model: &Model, task: &Task, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let exe = task.space.and_then(|space| model.mm.get(&space)).map(|mm| model.path(mm.exe));
    let exe = match (exe, task.space) {
        (Some(exe), _) => format!("  {exe}"),
        (None, None) => "  (zombie)".to_owned(),
        (None, Some(_)) => String::new(),
    };
    let indent = "  ".repeat(depth);
    writeln!(out, "{:>8} {:>8}  {indent}{}{exe}", task.pid, task.tids.len(), plain(&task.comm))?;
    if depth < ps::DEEPEST {
        for child in ps::children(model, task.id) {
            process(model, child, depth + 1, out)?;
        }
    }
    Ok(())
}

/// What a mapping is, in a word.
fn kind(mapping: &Mapping) -> &'static str {
    match mapping.vma.backing {
        Backing::Anonymous => "anonymous",
        Backing::File { .. } if mapping.vma.prot & prot::WRITE != 0 => "file, writable",
        Backing::File { .. } => "file",
        Backing::Shm { .. } => "shared",
        Backing::Hugetlb { .. } => "huge pages",
        Backing::Vdso | Backing::Vvar | Backing::VvarVclock | Backing::Vsyscall => "the kernel's",
    }
}

fn memory(model: &Model, out: &mut impl Write) -> io::Result<()> {
    // Mappings, bytes mapped, pages sent, pages of zeroes.
    let mut kinds: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for mapping in model.maps.values().flat_map(BTreeMap::values) {
        let sum = kinds.entry(kind(mapping)).or_default();
        let more = [1, mapping.vma.end - mapping.vma.start, mapping.sent, mapping.zero];
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum = sum.saturating_add(more);
        }
    }
    let columns =
        format!("{:<15} {:>8} {:>10} {:>10} {:>10}", "MEMORY", "MAPPINGS", "MAPPED", "SENT", "ZERO");
    heading(out, kinds.is_empty(), &columns)?;
    for (kind, [count, mapped, sent, zero]) in kinds {
        let [mapped, sent, zero] =
            [mapped, sent.saturating_mul(PAGE_SIZE), zero.saturating_mul(PAGE_SIZE)].map(show_size);
        writeln!(out, "{kind:<15} {count:>8} {mapped:>10} {sent:>10} {zero:>10}")?;
    }
    Ok(())
}

fn objects(model: &Model, out: &mut impl Write) -> io::Result<()> {
    if heading(
        out,
        model.objects.is_empty(),
        &format!("{:>8} {:>10} {:>5}  SHARED MEMORY", "SPACE", "SIZE", "SEALS"),
    )? {
        for (id, state) in &model.objects {
            let (name, size) = (model.object(*id), show_size(state.size));
            writeln!(out, "{:>8} {size:>10} {:>#5x}  {name}", id.0, state.seals)?;
        }
    }
    Ok(())
}

fn rounds(model: &Model, out: &mut impl Write) -> io::Result<()> {
    const SHOWN: usize = 40;
    let columns = format!(
        "{:>5} {:>12} {:>12} {:>10} {:>10} {:>10} {:>10}",
        "ROUND", "AT", "TOOK", "PAGES", "PATCHED", "ZERO", "ZAPPED"
    );
    heading(out, model.rounds.is_empty(), &columns)?;
    let skipped = model.rounds.len().saturating_sub(SHOWN);
    for (i, round) in model.rounds.iter().enumerate() {
        // The first and the last ones.
        if i >= SHOWN / 2 && i < SHOWN / 2 + skipped {
            if i == SHOWN / 2 {
                writeln!(out, "    … {skipped} more (--json)")?;
            }
            continue;
        }
        let first = model.rounds.iter().find(|other| other.segment == round.segment).unwrap_or(round);
        let next = model.rounds.get(i + 1).filter(|next| next.segment == round.segment);
        let took = next.map_or("-".to_owned(), |next| since(round, next));
        let note = match round {
            Round { ended: false, .. } => "  (not complete)",
            Round { last: true, .. } => "  the processes stand still",
            _ => "",
        };
        let counts = round.counts;
        writeln!(
            out,
            "{:>5} {:>12} {took:>12} {:>10} {:>10} {:>10} {:>10}{note}",
            round.number,
            since(first, round),
            counts.pages,
            counts.patched_pages,
            counts.zero_pages,
            counts.zapped_pages,
        )?;
    }
    Ok(())
}

/// The time from one round's start to another's.
fn since(from: &Round, to: &Round) -> String {
    let ns = i128::from(to.clocks.monotonic) - i128::from(from.clocks.monotonic);
    format!("{:.1} ms", ns as f64 / 1e6)
}

fn descriptors(model: &Model, out: &mut impl Write) -> io::Result<()> {
    const SHOWN: usize = 20;
    let all: Vec<_> = model.fd_tables.values().flat_map(|table| &table.fds).collect();
    heading(out, all.is_empty(), &format!("{:>8}  DESCRIPTOR", "FD"))?;
    for fd in all.iter().take(SHOWN) {
        let file = model.open_files.get(&fd.file);
        let what = file.map_or("?".to_owned(), |file| describe(model, file));
        writeln!(out, "{:>8}  {what}", fd.fd)?;
    }
    if all.len() > SHOWN {
        writeln!(out, "       …  and {} more (--fds)", all.len() - SHOWN)?;
    }
    Ok(())
}
