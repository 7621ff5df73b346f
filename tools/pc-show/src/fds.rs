//! `--fds`.

use std::io::{self, Write};

use pc_image::{FdTableId, Task};

use crate::describe::describe;
use crate::model::Model;
use crate::text::plain;

/// Every descriptor of every table with what it refers to.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>5} {:>5} {:>7} WHAT", "FD", "FILE", "FLAGS")?;
    for (id, table) in &model.fd_tables {
        if model.fd_tables.len() > 1 {
            writeln!(out, "{}:", owners(model, *id))?;
        }
        for fd in &table.fds {
            let file = model.open_files.get(&fd.file);
            let flags = file.map_or(0, |file| file.flags);
            let cloexec = if fd.cloexec { " (close-on-exec)" } else { "" };
            let what = file.map_or_else(|| "?".to_owned(), |file| describe(model, file));
            writeln!(out, "{:>5} {:>5} {flags:>7o} {what}{cloexec}", fd.fd, fd.file.0)?;
        }
    }
    Ok(())
}

/// The processes that use a table.
fn owners(model: &Model, id: FdTableId) -> String {
    let owns = |task: &&Task| task.fds == Some(id);
    let names: Vec<_> =
        model.tasks.values().filter(owns).map(|task| format!("{} {}", task.pid, plain(&task.comm))).collect();
    if names.is_empty() { "nobody's".to_owned() } else { names.join(", ") }
}
