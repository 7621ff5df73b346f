//! Judging whether this machine can take the process, before anything is built.

use std::fs;

use pc_image::Machine;

use crate::error::{Context, RebuildError};
use crate::group;
use crate::layout::{KernelMaps, own_mappings};

/// Refuses what this machine cannot do, by name.
pub fn judge(machine: &Machine) -> Result<(), RebuildError> {
    cpu(machine)?;
    vdso(machine)?;
    memory(machine.memory_needed)
}

fn refuse(why: String) -> Result<(), RebuildError> {
    Err(RebuildError::Unsupported(why))
}

fn cpu(machine: &Machine) -> Result<(), RebuildError> {
    let here = own_flags().what("reading /proc/cpuinfo")?;
    let missing: Vec<&str> =
        machine.cpu.flags.iter().map(String::as_str).filter(|flag| !here.iter().any(|h| h == flag)).collect();
    if !missing.is_empty() {
        return refuse(format!("the CPU here lacks {}", missing.join(", ")));
    }
    let xcr0 = pc_sys::cpu::xcr0();
    if machine.cpu.xcr0 & !xcr0 != 0 {
        let lacking = machine.cpu.xcr0 & !xcr0;
        return refuse(format!(
            "the CPU state components {lacking:#x} are not enabled here (XCR0 is {xcr0:#x})"
        ));
    }
    Ok(())
}

fn own_flags() -> std::io::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let line = text.lines().find(|l| l.starts_with("flags")).and_then(|l| l.split_once(':'));
    Ok(line.map_or(Vec::new(), |(_, words)| words.split_whitespace().map(str::to_owned).collect()))
}

fn vdso(machine: &Machine) -> Result<(), RebuildError> {
    let maps = KernelMaps::of(&own_mappings().what("reading our mappings")?);
    let lens = (maps.len_of("[vvar]"), maps.len_of("[vvar_vclock]"));
    if lens != (machine.vdso.vvar_len, machine.vdso.vvar_vclock_len) {
        return refuse(format!(
            "the vDSO's data have another layout here ({}+{} bytes, {}+{} at the source, kernel {})",
            lens.0, lens.1, machine.vdso.vvar_len, machine.vdso.vvar_vclock_len, machine.kernel
        ));
    }
    let own = match maps.find("[vdso]") {
        Some((start, end)) => {
            let mut image = vec![0; (end - start) as usize];
            pc_sys::mem::read_remote(std::process::id() as i32, start, &mut image)
                .what("reading our vDSO")?;
            image
        }
        None => Vec::new(),
    };
    if own != machine.vdso.image {
        return refuse(format!("the vDSO is not that of the source's kernel ({})", machine.kernel));
    }
    Ok(())
}

fn memory(needed: u64) -> Result<(), RebuildError> {
    let text = fs::read_to_string("/proc/meminfo").what("reading /proc/meminfo")?;
    let kib = |key: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let available = (kib("MemAvailable") + kib("SwapFree")) * 1024;
    if needed > available {
        return refuse(format!("it needs {needed} bytes of memory, {available} are available here"));
    }
    match group::room(&group::limited()) {
        Some(room) if needed > room => {
            refuse(format!("it needs {needed} bytes of memory, our cgroup allows {room} more"))
        }
        _ => Ok(()),
    }
}
