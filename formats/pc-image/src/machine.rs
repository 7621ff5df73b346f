//! What the source machine is: judged by the destination before anything is built.

use bincode::{Decode, Encode};

/// A reading of the clocks, taken together (within a few microseconds). All in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Clocks {
    /// `CLOCK_REALTIME`.
    pub realtime: u64,
    /// `CLOCK_MONOTONIC` as the moved process reads it (its time namespace's offset included).
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME` as the moved process reads it.
    pub boottime: i64,
    /// The process's time namespace offset of `CLOCK_MONOTONIC` (see time_namespaces(7)).
    pub monotonic_offset: i64,
    /// The process's time namespace offset of `CLOCK_BOOTTIME`.
    pub boottime_offset: i64,
}

/// The machine that the stream was made on. The first record of every stream segment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Machine {
    /// `uname -r` of the source.
    pub kernel: String,
    /// The host's name, for people.
    pub hostname: String,
    /// `/proc/sys/kernel/random/boot_id`: where equal, both sides read the very same clocks.
    pub boot_id: String,
    /// The name and version of the program that wrote the stream.
    pub producer: String,
    /// CPU features in use, see [`CpuFeatures`].
    pub cpu: CpuFeatures,
    /// The vDSO and its data pages as they lie in the moved process.
    pub vdso: Vdso,
    /// Clock readings at the start of the stream. Later readings come in [`crate::RoundBegin`].
    pub clocks: Clocks,
    /// Bytes of memory that the copy will need, as far as is known (present pages, without what comes from files).
    pub memory_needed: u64,
    /// Identities of the namespaces of the process, as `/proc/PID/ns/*` shows them, for people and for warnings.
    pub namespaces: Vec<(String, String)>,
}

/// What of the CPU the moved process can have come to rely on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CpuFeatures {
    /// Vendor string of CPUID leaf 0, for people.
    pub vendor: String,
    /// The extended-state components that user space may use (XCR0).
    pub xcr0: u64,
    /// Size in bytes of the standard-format XSAVE area for `xcr0`.
    pub xsave_size: u32,
    /// Feature words by CPUID (leaf, subleaf, register 0..=3 for eax..edx, value), as user space reads them.
    pub leaves: Vec<(u32, u32, u8, u32)>,
    /// The `flags` words of /proc/cpuinfo, so that a missing feature can be named.
    pub flags: Vec<String>,
}

/// The vDSO image and the layout of its data mappings.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Vdso {
    /// Bytes of the vDSO image; it has to be the same at the destination (programs keep pointers into it).
    pub image: Vec<u8>,
    /// Length in bytes of `[vvar]`.
    pub vvar_len: u64,
    /// Length in bytes of `[vvar_vclock]`, 0 where the kernel has none.
    pub vvar_vclock_len: u64,
}
