//! `--ps`.

use std::io::{self, Write};

use pc_image::{Task, TaskId};

use crate::model::Model;

/// The process tree, each process with its threads.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>8} {:>8} {:>8} {:>8}  COMMAND", "PID", "PPID", "PGID", "SID")?;
    for task in model.tasks.values().filter(|task| task.parent.is_none()) {
        tree(model, task, 0, out)?;
    }
    Ok(())
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
        String::from_utf8_lossy(&task.comm)
    )?;
    for (_, thread) in model.threads.iter().filter(|((id, tid), _)| *id == task.id && *tid != task.pid) {
        let name = String::from_utf8_lossy(&thread.comm);
        writeln!(out, "{:>8} {:>8} {:>8} {:>8}  {indent}  {{{name}}}", thread.tid, task.pid, "-", "-")?;
    }
    // A stream is not trusted: a cycle cannot come past the validator, but depth is bounded all the same.
    if depth < 100 {
        for child in children(model, task.id) {
            tree(model, child, depth + 1, out)?;
        }
    }
    Ok(())
}

fn children(model: &Model, id: TaskId) -> impl Iterator<Item = &Task> {
    model.tasks.values().filter(move |task| task.parent == Some(id))
}
