//! `--json`: the schema is in pc-show(1).

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::fds;
use crate::maps::permissions;
use crate::model::Model;

/// Writes the whole model as one object.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &view(model))?;
    writeln!(out)
}

/// The model as JSON. Addresses are strings in hex, as JSON's numbers do not hold 64 bits.
pub fn view(model: &Model) -> Value {
    let id: String = model.stream_id.iter().flatten().map(|b| format!("{b:02x}")).collect();
    json!({
        "stream_id": id,
        "bytes": model.bytes,
        "complete": model.commit.is_some() && model.wrong.is_none(),
        "cancelled": model.cancel.as_ref().map(|cancel| &cancel.reason),
        "error": model.wrong.as_ref().map(ToString::to_string),
        "source": model.machine.as_ref().map(|machine| json!({
            "hostname": machine.hostname,
            "kernel": machine.kernel,
            "producer": machine.producer,
            "boot_id": machine.boot_id,
            "cpu_vendor": machine.cpu.vendor,
            "memory_needed": machine.memory_needed,
        })),
        "rounds": model.rounds.iter().map(|round| json!({
            "number": round.number,
            "last": round.last,
            "monotonic_ns": round.clocks.monotonic,
            "pages": round.counts.pages,
            "zero_pages": round.counts.zero_pages,
            "zapped_pages": round.counts.zapped_pages,
            "records": round.records,
        })).collect::<Vec<_>>(),
        "processes": model.tasks.values().map(|task| process(model, task)).collect::<Vec<_>>(),
        "spaces": model.maps.iter().map(|(space, maps)| json!({
            "space": space.0,
            "mappings": maps.values().map(|mapping| json!({
                "start": format!("{:#x}", mapping.vma.start),
                "end": format!("{:#x}", mapping.vma.end),
                "permissions": permissions(&mapping.vma),
                "what": model.backing(*space, &mapping.vma),
                "flags": mapping.vma.flags,
                "pages_sent": mapping.sent,
                "zero_pages": mapping.zero,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn process(model: &Model, task: &pc_image::Task) -> Value {
    let threads = model.threads.values().filter(|thread| thread.task == task.id);
    let table = task.fds.and_then(|id| model.fd_tables.get(&id));
    let exe = task.space.and_then(|space| model.mm.get(&space)).map(|mm| model.path(mm.exe));
    let cwd = model.states.get(&task.id).map(|state| model.path(state.cwd));
    json!({
        "pid": task.pid,
        "parent": task.parent.and_then(|id| model.tasks.get(&id)).map(|parent| parent.pid),
        "pgid": task.pgid,
        "sid": task.sid,
        "comm": String::from_utf8_lossy(&task.comm),
        "space": task.space.map(|space| space.0),
        "exe": exe,
        "cwd": cwd,
        "threads": threads.map(|thread| json!({
            "tid": thread.tid,
            "comm": String::from_utf8_lossy(&thread.comm),
            "rip": format!("{:#x}", thread.regs[16]),
            "rsp": format!("{:#x}", thread.regs[19]),
            "sigmask": format!("{:#x}", thread.sigmask),
            "pending_signals": thread.pending.len(),
        })).collect::<Vec<_>>(),
        "descriptors": table.map(|table| table.fds.iter().map(|fd| json!({
            "fd": fd.fd,
            "file": fd.file.0,
            "cloexec": fd.cloexec,
            "what": model.open_files.get(&fd.file).map(|file| fds::describe(model, &file.kind)),
        })).collect::<Vec<_>>()).unwrap_or_default(),
    })
}
