//! The flags of mappings: what /proc/PID/smaps shows as `VmFlags` (proc_pid_smaps(5), fs/proc/task_mmu.c), and what becomes
//! of each in a copy.

use crate::procfs::Smaps;

/// A flag of mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmFlag {
    /// The two letters that smaps shows.
    pub letters: &'static str,
    /// What it says, for people.
    pub meaning: &'static str,
    /// What becomes of it.
    pub becomes: Becomes,
}

/// What becomes of a flag in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// It is the same.
    Carried,
    /// It follows from something else that is carried, or says nothing that a program could rely on.
    Follows,
    /// A mapping that has it cannot be moved. The text follows "its mapping at N ".
    Refused(&'static str),
}

use Becomes::{Carried, Follows, Refused};

const fn flag(letters: &'static str, meaning: &'static str, becomes: Becomes) -> VmFlag {
    VmFlag { letters, meaning, becomes }
}

const DEVICE: Becomes = Refused("is memory of a device, which cannot be moved");
const WATCHED: Becomes = Refused("is watched by a userfaultfd, which cannot be moved yet");

/// Every flag of x86-64 up to Linux 6.18 (and `gu` of 6.19). A mapping with another is refused.
pub const VM_FLAGS: &[VmFlag] = &[
    flag("rd", "may be read", Carried),
    flag("wr", "may be written", Carried),
    flag("ex", "may be executed", Carried),
    flag("sh", "shared", Carried),
    flag("mr", "may be made readable: by how its file was opened", Follows),
    flag("mw", "may be made writable", Carried),
    flag("me", "may be made executable: by how its file system is mounted", Follows),
    flag("ms", "may be shared", Follows),
    flag("gd", "a stack that grows down", Carried),
    flag("pf", "page frames without a struct page", DEVICE),
    flag("dw", "its file may not be written (before Linux 5.16)", Follows),
    flag("lo", "locked in memory", Carried),
    flag("io", "memory of a device", DEVICE),
    flag("sr", "advised to be read in order", Carried),
    flag("rr", "advised to be read at random", Carried),
    flag("dc", "not inherited by children", Carried),
    flag("de", "cannot be made longer: of huge pages and of the kernel's own", Follows),
    flag("ac", "accounted for: of what may be written", Follows),
    flag("nr", "no swap space is reserved", Carried),
    flag("ht", "huge pages of their own (hugetlb)", Carried),
    flag(
        "sf",
        "written through to persistent memory (MAP_SYNC)",
        Refused("is persistent memory, which cannot be moved yet"),
    ),
    flag("ar", "page attributes of a device (PAT)", DEVICE),
    flag("wf", "empty in children", Carried),
    flag("dd", "not in core dumps", Carried),
    flag("sd", "soft-dirty: for those who track writing", Follows),
    flag("mm", "page frames of a device or of persistent memory among others", DEVICE),
    flag("hg", "huge pages are wanted", Carried),
    flag("nh", "huge pages are not wanted", Carried),
    flag("mg", "equal pages may be merged (KSM)", Carried),
    flag("um", "missing pages are reported to a userfaultfd", WATCHED),
    // pc-dump's own tracking sets it, too: one that is there before that is refused by the preflight.
    flag("uw", "writing is reported to a userfaultfd", Follows),
    flag("ui", "minor faults are reported to a userfaultfd", WATCHED),
    flag("ss", "a shadow stack", Refused("is a shadow stack, which cannot be moved yet")),
    flag("lf", "locked once it is touched", Carried),
    flag("dp", "may be dropped when memory is short (MAP_DROPPABLE)", Carried),
    flag("sl", "sealed: it cannot be changed (mseal)", Carried),
    flag("gu", "has guard pages; they are found by themselves", Follows),
];

/// Why a mapping with these flags cannot be moved; follows "its mapping at N ".
pub(crate) fn refusal(smaps: &Smaps) -> Option<String> {
    smaps.flags.iter().find_map(|letters| {
        match VM_FLAGS.iter().find(|flag| flag.letters.as_bytes() == letters).map(|flag| flag.becomes) {
            Some(Refused(why)) => Some(why.to_owned()),
            Some(Carried | Follows) => None,
            None => {
                let letters = super::procfs::shown(letters);
                Some(format!("has a flag that is not known here (VmFlags “{letters}”)"))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smaps(flags: &[&[u8; 2]]) -> Smaps {
        Smaps { flags: flags.iter().map(|letters| **letters).collect(), ..Smaps::default() }
    }

    #[test]
    fn a_flag_that_nobody_knows_is_refused_by_its_letters() {
        assert_eq!(refusal(&smaps(&[b"rd", b"wr", b"mr", b"ac", b"sl", b"dp"])), None);
        assert!(refusal(&smaps(&[b"rd", b"??"])).is_some_and(|why| why.contains("“??”")));
        assert!(refusal(&smaps(&[b"rd", b"pf"])).is_some_and(|why| why.contains("device")));
    }

    #[test]
    fn each_flag_stands_in_the_table_once() {
        for (i, flag) in VM_FLAGS.iter().enumerate() {
            assert!(VM_FLAGS[i + 1..].iter().all(|other| other.letters != flag.letters), "{flag:?}");
        }
    }
}
