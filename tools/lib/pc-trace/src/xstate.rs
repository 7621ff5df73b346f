//! The extended state (XSAVE standard format): which part of it is in use.

use std::arch::x86_64::__cpuid_count;

/// Bytes of the legacy region and the XSAVE header: the least there can be.
pub const XSTATE_MIN: usize = 512 + 64;
/// Where XSTATE_BV stands.
const XSTATE_BV: usize = 512;

/// `XSTATE_BV`: which components are not in their initial state.
pub fn features(xstate: &[u8]) -> u64 {
    xstate.get(XSTATE_BV..XSTATE_BV + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
}

/// Bytes up to the end of the last component in use.
pub fn used_len(xstate: &[u8]) -> usize {
    let bv = features(xstate);
    let mut len = XSTATE_MIN.min(xstate.len());
    for component in 2..63 {
        if bv & (1 << component) != 0 {
            let leaf = cpuid(0xd, component);
            len = len.max((leaf.0 + leaf.1) as usize);
        }
    }
    len.min(xstate.len())
}

/// Size and offset (eax, ebx) of a component by CPUID leaf 0xd.
fn cpuid(leaf: u32, sub: u32) -> (u32, u32) {
    // SAFETY: every x86-64 CPU has CPUID; an unknown leaf gives zeroes.
    #[allow(unused_unsafe)]
    let r = unsafe { __cpuid_count(leaf, sub) };
    (r.eax, r.ebx)
}
