//! Files of /proc that mean the process: opened by itself, in its own /proc, once all else is there.

use pc_image::{Creds, FdTable, OpenFile, OpenFileKind, ProcFile};
use pc_trace::Call;

use crate::creds::{self, capset};
use crate::error::{Context, RebuildError};
use crate::image::Image;
use crate::newborn::Newborn;
use crate::thread;

/// A table without the descriptors that [`install`] puts in place.
pub fn others(image: &Image, table: &FdTable) -> FdTable {
    let fds = table.fds.iter().copied();
    let is_proc = |fd: &pc_image::Fd| image.open_files.get(&fd.file).is_some_and(|open| of(open).is_some());
    FdTable { id: table.id, fds: fds.filter(|fd| !is_proc(fd)).collect() }
}

fn of(open: &OpenFile) -> Option<&ProcFile> {
    match &open.kind {
        OpenFileKind::Proc(file) => Some(file),
        _ => None,
    }
}

/// Opens them under their numbers, which are free.
pub fn install(newborn: &mut Newborn, image: &Image, table: &FdTable) -> Result<(), RebuildError> {
    let files: Vec<_> = image.open_files.values().filter_map(|open| Some((open, of(open)?))).collect();
    if files.is_empty() {
        return Ok(());
    }
    if files.iter().any(|(_, file)| file.thread.is_some()) {
        let wanted: Vec<u32> = image.threads.keys().copied().collect();
        thread::follow(&mut newborn.husk, image.task()?.pid, &wanted)?;
    }
    let own = creds::of(newborn.husk.pid())?;
    let might = restrained(image, own.cap_effective)?;
    let limited = might != own.cap_effective;
    if limited {
        effective(newborn, &own, might)?;
    }
    files.iter().try_for_each(|(open, file)| put(newborn, image, table, open, file))?;
    if limited { effective(newborn, &own, own.cap_effective) } else { Ok(()) }
}

/// Makes these capabilities of the husk effective.
fn effective(newborn: &mut Newborn, own: &Creds, capabilities: u64) -> Result<(), RebuildError> {
    let call = capset(&mut newborn.husk, capabilities, own.cap_permitted, own.cap_inheritable)?;
    newborn.husk.batch_ok(newborn.husk.pid(), &[call]).what("choosing capabilities")?;
    newborn.husk.reset();
    Ok(())
}

/// Some files remember what whoever opened them was allowed to (`file_ns_capable` in the kernel; page numbers in pagemap): no
/// more than the process itself. It may open its own files in any case.
fn restrained(image: &Image, own: u64) -> Result<u64, RebuildError> {
    const DAC_OVERRIDE_AND_READ_SEARCH: u64 = 1 << 1 | 1 << 2;
    let main = image.threads.get(&image.task()?.pid);
    Ok(own & (main.map_or(0, |thread| thread.creds.cap_effective) | DAC_OVERRIDE_AND_READ_SEARCH))
}

fn put(
    newborn: &mut Newborn,
    image: &Image,
    table: &FdTable,
    open: &OpenFile,
    file: &ProcFile,
) -> Result<(), RebuildError> {
    let pid = newborn.husk.pid();
    let path = path(image, file)?;
    let what = || format!("opening {}", String::from_utf8_lossy(&path));
    let at = newborn.husk.put(&[&path[..], b"\0"].concat())?;
    let flags = open.flags as i32 & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC);
    let args = [libc::AT_FDCWD as u64, at, (flags | libc::O_NOCTTY | libc::O_CLOEXEC) as u64, 0];
    let opened = newborn.husk.call(pid, Call::new(libc::SYS_openat, args)).what_of(what)?;
    newborn.husk.reset();
    let mut calls = Vec::new();
    if file.offset != 0 && flags & libc::O_PATH == 0 {
        calls.push(Call::new(libc::SYS_lseek, [opened, file.offset, libc::SEEK_SET as u64]));
    }
    let wanted = table.fds.iter().filter(|fd| fd.file == open.id);
    let mut stays = false;
    for fd in wanted {
        let to = u64::from(fd.fd);
        if to == opened {
            stays = true;
            let flag = if fd.cloexec { libc::FD_CLOEXEC as u64 } else { 0 };
            calls.push(Call::new(libc::SYS_fcntl, [to, libc::F_SETFD as u64, flag]));
        } else {
            let flag = if fd.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
            calls.push(Call::new(libc::SYS_dup3, [opened, to, flag]));
        }
    }
    if !stays {
        calls.push(Call::new(libc::SYS_close, [opened]));
    }
    newborn.husk.batch_ok(pid, &calls).what_of(what)?;
    Ok(())
}

/// Where it is in the process's own /proc.
fn path(image: &Image, file: &ProcFile) -> Result<Vec<u8>, RebuildError> {
    let task = image.task()?;
    if file.task != task.id {
        return Err(RebuildError::Contradiction("a file in /proc of another task".into()));
    }
    let thread = file.thread.map_or(String::new(), |tid| format!("task/{tid}/"));
    let mut path = format!("/proc/{}/{thread}", task.pid).into_bytes();
    path.extend(&file.path);
    Ok(path)
}
