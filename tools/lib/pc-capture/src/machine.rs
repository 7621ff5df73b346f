//! What the source machine is.

use std::fs;
use std::io::{BufRead, BufReader};

use nix::time::{ClockId, clock_gettime};
use pc_image::{Clocks, CpuFeatures, Machine, Vdso};
use pc_sys::cpu;
use pc_sys::mem::ProcMem;

use crate::error::{Context, Result};
use crate::procfs::Area;

/// A reading of the clocks as process `pid` reads them.
pub fn clocks(pid: i32) -> Result<Clocks> {
    let (monotonic_offset, boottime_offset) = offsets(pid);
    let ours = offsets("self");
    let read = |clock: ClockId| -> Result<i64> {
        let t = clock_gettime(clock).of(pid, "reading the clocks")?;
        Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
    };
    Ok(Clocks {
        realtime: read(ClockId::CLOCK_REALTIME)? as u64,
        monotonic: read(ClockId::CLOCK_MONOTONIC)? - ours.0 + monotonic_offset,
        boottime: read(ClockId::CLOCK_BOOTTIME)? - ours.1 + boottime_offset,
        monotonic_offset,
        boottime_offset,
    })
}

/// Offsets of the monotonic and the boot-time clock: see time_namespaces(7). (The file shows those of the namespace for
/// its children, which nearly always is its own.)
fn offsets(who: impl std::fmt::Display) -> (i64, i64) {
    let text = fs::read_to_string(format!("/proc/{who}/timens_offsets")).unwrap_or_default();
    let find = |clock: &str| text.lines().find_map(|line| offset(line.strip_prefix(clock)?));
    (find("monotonic").unwrap_or(0), find("boottime").unwrap_or(0))
}

fn offset(rest: &str) -> Option<i64> {
    let mut words = rest.split_whitespace();
    let seconds: i64 = words.next()?.parse().ok()?;
    let nanoseconds: i64 = words.next()?.parse().ok()?;
    Some(seconds * 1_000_000_000 + nanoseconds)
}

/// The vDSO as it lies in the process; an empty image where it has none. To be read before remote calls begin, which put code after its own.
pub(crate) fn vdso(pid: i32, areas: &[&Area]) -> Result<Vdso> {
    let find = |name: &[u8]| areas.iter().find(|area| area.name == name);
    let mut image = Vec::new();
    if let Some(area) = find(b"[vdso]") {
        image.resize(area.len() as usize, 0);
        let mem = ProcMem::open(pid).of(pid, "opening its memory")?;
        mem.read(area.start, &mut image).of(pid, "reading its vDSO")?;
        pc_trace::without_our_code(&mut image);
    }
    let len = |name| find(name).map_or(0, |area| area.len());
    Ok(Vdso { image, vvar_len: len(b"[vvar]"), vvar_vclock_len: len(b"[vvar_vclock]") })
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The machine, and what of it the process can rely on.
pub(crate) fn machine(pid: i32, vdso: Vdso, memory_needed: u64) -> Result<Machine> {
    Ok(Machine {
        kernel: line("/proc/sys/kernel/osrelease"),
        hostname: line("/proc/sys/kernel/hostname"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        producer: concat!("pc-tools ", env!("CARGO_PKG_VERSION")).to_owned(),
        cpu: cpu_features(),
        vdso,
        clocks: clocks(pid)?,
        memory_needed,
        namespaces: namespaces(pid),
    })
}

fn cpu_features() -> CpuFeatures {
    CpuFeatures {
        vendor: cpu::vendor(),
        xcr0: cpu::xcr0(),
        xsave_size: cpu::xsave_size(),
        leaves: cpu::feature_words(),
        flags: cpu_flags(),
    }
}

/// The flags of the first CPU. The file grows with the CPUs, so only its beginning is read.
fn cpu_flags() -> Vec<String> {
    let Ok(file) = fs::File::open("/proc/cpuinfo") else { return Vec::new() };
    let flags = BufReader::new(file).lines().map_while(std::result::Result::ok).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "flags").then(|| value.split_whitespace().map(str::to_owned).collect())
    });
    flags.unwrap_or_default()
}

fn namespaces(pid: i32) -> Vec<(String, String)> {
    const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    KINDS
        .iter()
        .filter_map(|kind| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
            Some(((*kind).to_owned(), link.to_string_lossy().into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_clock_offset_keeps_its_fraction() {
        assert_eq!(offset("           -3    500000000"), Some(-2_500_000_000));
        assert_eq!(offset(" 86400 0"), Some(86_400_000_000_000));
        assert_eq!(offset(""), None);
    }
}
