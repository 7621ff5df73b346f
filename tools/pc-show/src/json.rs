//! `--json`: the schema is in pc-show(1).

use std::io::{self, Write};

use pc_image::{
    Cgroup, File, IdRange, MemPolicy, MmSettings, MmState, NamespaceKind, Task, TaskNamespaces, TaskSettings,
    TaskState, Thread, ThreadSettings,
};
use serde_json::{Map, Value, json};

use crate::describe::describe;
use crate::maps::permissions;
use crate::model::{Mapping, Model, Round};
use crate::text::plain;
use crate::threads;

/// Writes the whole model as one object.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &view(model))?;
    writeln!(out)
}

/// The model as JSON. Addresses, masks and registers are strings in hex: not every reader's numbers hold 64 bits.
pub fn view(model: &Model) -> Value {
    let id: String = model.stream_id.iter().flatten().map(|b| format!("{b:02x}")).collect();
    json!({
        "stream_id": id,
        "bytes": model.bytes,
        "segments": model.segments,
        "complete": model.complete(),
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
        "rounds": model.rounds.iter().map(round).collect::<Vec<_>>(),
        "processes": model.tasks.values().map(|task| process(model, task)).collect::<Vec<_>>(),
        "files": model.files.values().map(file).collect::<Vec<_>>(),
        "spaces": model.maps.iter().map(|(space, maps)| json!({
            "space": space.0,
            "layout": model.mm.get(space).map(layout),
            "settings": model.mm_settings.get(space).map(settings),
            "mappings": maps.values().map(|m| mapping(m, &model.backing(*space, &m.vma))).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "shared_memory": model.objects.values().map(|state| json!({
            "space": state.space.0,
            "name": model.object(state.space),
            "size": state.size,
            "seals": state.seals,
            "mode": format!("{:o}", state.mode),
            "uid": state.uid,
            "gid": state.gid,
        })).collect::<Vec<_>>(),
    })
}

fn hex(word: u64) -> String {
    format!("{word:#x}")
}

fn round(round: &Round) -> Value {
    json!({
        "segment": round.segment,
        "number": round.number,
        "last": round.last,
        "complete": round.ended,
        "monotonic_ns": round.clocks.monotonic,
        "pages": round.counts.pages,
        "zero_pages": round.counts.zero_pages,
        "zapped_pages": round.counts.zapped_pages,
        "patched_pages": round.counts.patched_pages,
        "patch_bytes": round.patch_bytes,
        "records": round.records,
    })
}

fn file(file: &File) -> Value {
    json!({
        "file": file.id.0,
        "path": plain(&file.path),
        "mode": format!("{:o}", file.mode),
        "size": file.size,
        "mtime_ns": file.mtime,
        "build_id": file.build_id.as_ref().map(|id| id.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        "need": format!("{:?}", file.need).to_lowercase(),
    })
}

fn layout(mm: &MmState) -> Value {
    json!({
        "start_code": hex(mm.start_code),
        "end_code": hex(mm.end_code),
        "start_data": hex(mm.start_data),
        "end_data": hex(mm.end_data),
        "start_brk": hex(mm.start_brk),
        "brk": hex(mm.brk),
        "start_stack": hex(mm.start_stack),
    })
}

fn settings(settings: &MmSettings) -> Value {
    let policy = |it: &MemPolicy| json!({"mode": it.mode, "nodes": format!("{:02x?}", it.nodes)});
    json!({
        "protection_keys": (1..16).filter(|key| settings.pkeys & 1 << key != 0).collect::<Vec<u32>>(),
        "execute_only_key": settings.execute_only_pkey,
        "memory_deny_write_execute": settings.mdwe,
        "thp_disable_flags": settings.thp_flags,
        "memory_merge": settings.memory_merge,
        "ldt": settings.ldt.iter().map(|(n, it)| json!({"entry": n, "descriptor": hex(*it)})).collect::<Vec<_>>(),
        "sealed": settings.sealed.iter().map(|(start, end)| json!([hex(*start), hex(*end)])).collect::<Vec<_>>(),
        "policies": settings.policies.iter().map(|it| json!({
            "start": hex(it.start),
            "end": hex(it.end),
            "policy": policy(&it.policy),
        })).collect::<Vec<_>>(),
        "thread_policies": settings.thread_policies.iter().map(|it| json!({
            "tid": it.tid,
            "policy": policy(&it.policy),
        })).collect::<Vec<_>>(),
    })
}

fn mapping(mapping: &Mapping, what: &str) -> Value {
    json!({
        "start": hex(mapping.vma.start),
        "end": hex(mapping.vma.end),
        "permissions": permissions(&mapping.vma),
        "what": what,
        "flags": mapping.vma.flags,
        "pages_sent": mapping.sent,
        "zero_pages": mapping.zero,
    })
}

fn process(model: &Model, task: &Task) -> Value {
    let threads = model.threads.values().filter(|thread| thread.task == task.id);
    let proc = model.procs.get(&task.id);
    let table = task.fds.and_then(|id| model.fd_tables.get(&id));
    let exe = task.space.and_then(|space| model.mm.get(&space)).map(|mm| model.path(mm.exe));
    json!({
        "pid": task.pid,
        "parent": task.parent.and_then(|id| model.tasks.get(&id)).map(|parent| parent.pid),
        "pgid": task.pgid,
        "sid": task.sid,
        "comm": plain(&task.comm),
        "space": task.space.map(|space| space.0),
        "exe": exe,
        "namespaces": model.namespaces.get(&task.id).map(namespaces).unwrap_or_default(),
        "cgroups": model.cgroups.get(&task.id).map(cgroups).unwrap_or_default(),
        "autogroup_nice": proc.map(|proc| proc.autogroup_nice),
        "loginuid": proc.map(|proc| proc.loginuid).filter(|uid| *uid != u32::MAX),
        "state": model.states.get(&task.id).map(|state| state_of(model, state)),
        "settings": model.controls.get(&task.id).map(controls),
        "timer_dates": model.dates.get(&task.id).map(|dates| json!(dates.dates)),
        "threads": threads.map(|it| thread(it, model.thread_controls.get(&(task.id, it.tid)))).collect::<Vec<_>>(),
        "descriptors": table.map(|table| table.fds.iter().map(|fd| json!({
            "fd": fd.fd,
            "file": fd.file.0,
            "cloexec": fd.cloexec,
            "what": model.open_files.get(&fd.file).map(|file| describe(model, file)),
        })).collect::<Vec<_>>()).unwrap_or_default(),
    })
}

fn namespaces(namespaces: &TaskNamespaces) -> Vec<Value> {
    let map = |ranges: &[IdRange]| {
        let lines = ranges.iter().map(|r| format!("{} {} {}", r.inside, r.outside, r.count));
        lines.collect::<Vec<_>>()
    };
    let others = namespaces.others.iter().map(|other| match other.kind {
        NamespaceKind::User => json!({
            "kind": other.kind.name(),
            "inode": other.inode,
            "uid_map": map(&namespaces.uid_map),
            "gid_map": map(&namespaces.gid_map),
        }),
        kind => json!({ "kind": kind.name(), "inode": other.inode, "copied": other.copied }),
    });
    others.collect()
}

fn cgroups(cgroup: &Cgroup) -> Vec<Value> {
    let paths = cgroup.paths.iter();
    paths.map(|at| json!({ "controllers": plain(&at.controllers), "path": plain(&at.path) })).collect()
}

fn state_of(model: &Model, state: &TaskState) -> Value {
    json!({
        "cwd": model.path(state.cwd),
        "root": state.root.map(|root| model.path(root)),
        "umask": format!("{:o}", state.umask),
        "timers": state.timers.len(),
        "pending_signals": state.pending.len(),
        "oom_score_adj": state.oom_score_adj,
        "stopped_by": state.stopped,
    })
}

fn controls(settings: &TaskSettings) -> Value {
    json!({
        "membarrier": hex(settings.membarrier.into()),
        "chooses_timer_ids": settings.chooses_timer_ids,
        "label": settings.label.as_ref().map(plain),
    })
}

fn thread_controls(settings: &ThreadSettings) -> Value {
    let speculation = settings.speculation.iter();
    json!({
        "tsc_trapped": settings.tsc_trapped,
        "mce_kill": settings.mce_kill,
        "speculation": speculation.map(|it| json!([it.feature, it.state])).collect::<Vec<_>>(),
        "util_clamp": settings.util_clamp,
        "sched_flags": settings.sched_flags,
        "personality": settings.personality.map(|it| hex(it.into())),
        "rseq_slice": settings.rseq_slice,
    })
}

fn thread(thread: &Thread, settings: Option<&ThreadSettings>) -> Value {
    let registers = threads::NAMES.iter().zip(thread.regs);
    let registers: Map<_, _> =
        registers.map(|(name, value)| ((*name).to_owned(), json!(hex(value)))).collect();
    json!({
        "tid": thread.tid,
        "comm": plain(&thread.comm),
        "registers": registers,
        "sigmask": hex(thread.sigmask),
        "pending_signals": thread.pending.len(),
        "uids": thread.creds.uids,
        "gids": thread.creds.gids,
        "capabilities": hex(thread.creds.cap_effective),
        "nice": thread.sched.nice,
        "settings": settings.map(thread_controls),
    })
}
