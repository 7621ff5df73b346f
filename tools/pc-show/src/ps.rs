//! `--ps`.

use std::io::{self, Write};

use pc_image::{Task, TaskId};

use crate::model::Model;
use crate::text::plain;

/// Levels that are shown: a stream may hold a chain of any length, a stack may not.
pub const DEEPEST: usize = 100;

/// The process tree, each process with its threads.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>8} {:>8} {:>8} {:>8}  COMMAND", "PID", "PPID", "PGID", "SID")?;
    for task in roots(model) {
        tree(model, task, 0, out)?;
    }
    Ok(())
}

/// The tasks that have no parent, or none that still is.
pub fn roots(model: &Model) -> impl Iterator<Item = &Task> {
    let orphan = |task: &&Task| task.parent.is_none_or(|parent| !model.tasks.contains_key(&parent));
    model.tasks.values().filter(orphan)
}

fn tree(model: &Model, task: &Task, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let parent =
        task.parent.and_then(|id| model.tasks.get(&id)).map_or("-".to_owned(), |t| t.pid.to_string());
    let indent = "  ".repeat(depth);
    writeln!(
        out,
        "{:>8} {:>8} {:>8} {:>8}  {indent}{}",
        task.pid,
        parent,
        task.pgid,
        task.sid,
        plain(&task.comm)
    )?;
    for (_, thread) in model.threads.iter().filter(|((id, tid), _)| *id == task.id && *tid != task.pid) {
        let name = plain(&thread.comm);
        writeln!(out, "{:>8} {:>8} {:>8} {:>8}  {indent}  {{{name}}}", thread.tid, task.pid, "-", "-")?;
    }
    if depth < DEEPEST {
        for child in children(model, task.id) {
            tree(model, child, depth + 1, out)?;
        }
    }
    Ok(())
}

/// The children of a task.
pub fn children(model: &Model, id: TaskId) -> impl Iterator<Item = &Task> {
    model.tasks.values().filter(move |task| task.parent == Some(id))
}
