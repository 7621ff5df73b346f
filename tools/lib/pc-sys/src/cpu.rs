//! What the CPU offers to user space: CPUID and XCR0 (x86-64).

use std::arch::x86_64::__cpuid_count;

/// A word of CPUID: leaf, subleaf, register (0..=3 for eax..edx), value.
pub type Word = (u32, u32, u8, u32);

/// The registers of one CPUID leaf, eax to edx.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has CPUID; an unknown leaf gives zeroes or the highest leaf's values.
    #[allow(unused_unsafe)]
    let r = unsafe { __cpuid_count(leaf, sub) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The vendor string of leaf 0.
pub fn vendor() -> String {
    let [_, b, c, d] = cpuid(0, 0);
    let bytes: Vec<u8> = [b, d, c].into_iter().flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The extended-state components that the operating system has enabled, 0 without XSAVE.
pub fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if cpuid(1, 0)[2] & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that xgetbv may be executed in user mode; it changes only these two registers.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Bytes of the standard-format XSAVE area for the components enabled.
pub fn xsave_size() -> u32 {
    if xcr0() == 0 { 512 } else { cpuid(0xd, 0)[1] }
}

/// The words of CPUID that name features which programs use without asking the kernel.
pub fn feature_words() -> Vec<Word> {
    const WORDS: [(u32, u32, u8); 9] = [
        (1, 0, 2),
        (1, 0, 3),
        (7, 0, 1),
        (7, 0, 2),
        (7, 0, 3),
        (7, 1, 0),
        (0xd, 1, 0),
        (0x8000_0001, 0, 2),
        (0x8000_0001, 0, 3),
    ];
    let highest = (cpuid(0, 0)[0], cpuid(0x8000_0000, 0)[0]);
    let known = |leaf: u32| leaf <= if leaf >= 0x8000_0000 { highest.1 } else { highest.0 };
    WORDS
        .into_iter()
        .filter(|(leaf, ..)| known(*leaf))
        .map(|(leaf, sub, reg)| (leaf, sub, reg, cpuid(leaf, sub)[usize::from(reg)] & mask(leaf, reg)))
        .collect()
}

/// Leaves out what differs from CPU to CPU or moment to moment: OSXSAVE and OSPKE say what the kernel enabled, which
/// XCR0 and the protection keys say better.
fn mask(leaf: u32, reg: u8) -> u32 {
    match (leaf, reg) {
        (1, 2) => !(1 << 27),
        (7, 2) => !(1 << 4),
        _ => !0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sse2_and_its_state_are_there() {
        let edx = feature_words().into_iter().find(|w| (w.0, w.1, w.2) == (1, 0, 3)).unwrap().3;
        assert_ne!(edx & (1 << 26), 0);
        assert!(xcr0() == 0 || xcr0() & 3 == 3);
        assert!(xsave_size() >= 512);
        assert_eq!(vendor().len(), 12);
    }
}
