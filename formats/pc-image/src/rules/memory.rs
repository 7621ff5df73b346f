//! Address spaces.

use super::{Refusal, Subject, refuse};
use crate::MmSettings;

/// Of an address space's settings.
pub(super) fn settings(settings: &MmSettings) -> Option<Refusal> {
    reason(settings).map(|why| refuse(Subject::Process, why))
}

fn reason(settings: &MmSettings) -> Option<String> {
    const MDWE: u32 = 3;
    const EXCEPT_ADVISED: u32 = 2;
    const LDT_ENTRIES: u32 = 8192;
    if settings.mdwe & !MDWE != 0 {
        return Some(format!(
            "it has a setting of PR_SET_MDWE ({:#x}) that is not known here",
            settings.mdwe
        ));
    }
    if settings.thp_flags & !EXCEPT_ADVISED != 0 {
        let flags = settings.thp_flags;
        return Some(format!("it has a setting of PR_SET_THP_DISABLE ({flags:#x}) that is not known here"));
    }
    let odd = |(number, bytes): &&(u32, u64)| *number >= LDT_ENTRIES || !is_ldt_segment(*bytes);
    settings.ldt.iter().find(odd).map(|(number, _)| {
        format!("entry {number} of its LDT is of a kind that no call makes, which cannot be moved")
    })
}

/// Whether a descriptor is one that modify_ldt(2) can have made: a code or data segment for user code, which the kernel
/// marks as accessed.
fn is_ldt_segment(descriptor: u64) -> bool {
    const TYPE_ACCESSED: u64 = 1 << 40;
    const SEGMENT: u64 = 1 << 44;
    const DPL: u64 = 3 << 45;
    const LONG: u64 = 1 << 53;
    descriptor & (TYPE_ACCESSED | SEGMENT | DPL | LONG) == TYPE_ACCESSED | SEGMENT | DPL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_nothing_here_makes_are_refused_by_name() {
        let refused = |it| settings(&it).is_some();
        let code = 0x00cf_fb00_0000_ffff;
        let good = MmSettings { mdwe: 3, thp_flags: 2, ldt: vec![(0, code)], ..MmSettings::default() };
        assert!(!refused(good.clone()));
        assert!(refused(MmSettings { mdwe: 4, ..good.clone() }));
        assert!(refused(MmSettings { thp_flags: 1, ..good.clone() }));
        assert!(refused(MmSettings { ldt: vec![(8192, code)], ..good.clone() }));
        assert!(refused(MmSettings { ldt: vec![(0, 1 << 40)], ..good }));
    }
}
