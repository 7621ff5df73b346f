//! Settings of an address space that only the process itself can tell, and few programs have: protection keys, memory
//! policies, the LDT, what may be executed.

use pc_image::{MemPolicy, MmSettings, RangePolicy, ThreadPolicy, Vma, prot};
use pc_trace::{Call, Remote, Tid};

use crate::error::{Result, unsupported};
use crate::task::SPACE;

const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const MPOL_F_ADDR: u64 = 2;
/// Protection keys of x86-64, key 0 among them.
const PKEYS: u64 = 16;
/// Bytes of a mask of memory nodes, and the count of nodes that the kernel gets for it (get_mempolicy(2)).
const NODES: usize = 128;
const MAX_NODE: u64 = NODES as u64 * 8;
/// Bytes of an LDT of full length, and of one entry.
const LDT: usize = 8192 * LDT_ENTRY;
const LDT_ENTRY: usize = 8;
/// Where no process has memory: after the last user address of every processor.
const NOWHERE: u64 = 0xffff_8000_0000_0000;
/// Mappings of which the nodes are asked for at a time.
const GROUP: usize = 64;

/// Bytes of results of a thread: its policy's mode and nodes.
pub(crate) const THREAD_ROOM: usize = 8 + NODES;

/// Calls on each thread.
pub(crate) const THREAD_CALLS: usize = 2;

/// What a thread is asked for.
pub(crate) fn thread_calls(room: u64) -> [Call; THREAD_CALLS] {
    [
        Call::new(libc::SYS_get_mempolicy, [room, room + 8, MAX_NODE, 0, 0]),
        Call::new(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0]),
    ]
}

/// What a thread has answered: its memory policy; and whether CPUID faults.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThreadTold {
    policy: Option<MemPolicy>,
    cpuid_faults: bool,
}

/// From the bytes of its room, and the results of its calls.
pub(crate) fn read_thread(room: &[u8], answers: &[i64]) -> ThreadTold {
    let asked = answers.first() == Some(&0); // a kernel without NUMA has none
    ThreadTold {
        policy: asked.then(|| policy(room)).filter(|policy| *policy != MemPolicy::default()),
        cpuid_faults: answers.get(1) == Some(&0),
    }
}

/// A mode and a mask of nodes, as get_mempolicy(2) writes them at an interval of eight bytes.
fn policy(bytes: &[u8]) -> MemPolicy {
    let (mode, nodes) = bytes.split_at(8);
    let len = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mode = mode[..4].iter().rev().fold(0, |mode, byte| mode << 8 | u32::from(*byte));
    MemPolicy { mode, nodes: nodes[..len].to_vec() }
}

/// Bytes of results of the process, with so many mappings.
pub(crate) fn room_for(mappings: usize) -> usize {
    LDT.max(mappings * 4).max(GROUP * (8 + NODES)) + 64
}

/// What the process has reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    settings: MmSettings,
    /// Components of the extended state beyond the usual that it may use.
    xcomp_perm: u64,
}

/// Asks the process. The one that is asked is the leader; what lies in the data area before is lost.
pub(crate) fn ask(remote: &mut Remote<'_>, vmas: &[Vma], sealed: &[(u64, u64)]) -> Result<Told> {
    remote.reset();
    let pid = remote.tracees().pid();
    let room = remote.space(room_for(vmas.len()))?;
    let mut calls = vec![
        Call::new(libc::SYS_prctl, [PR_GET_MDWE, 0, 0, 0, 0]),
        Call::new(libc::SYS_prctl, [PR_GET_MEMORY_MERGE, 0, 0, 0, 0]),
        Call::new(libc::SYS_arch_prctl, [ARCH_GET_XCOMP_PERM, room]),
        Call::new(libc::SYS_modify_ldt, [0, room + 8, LDT_ENTRY as u64]),
    ];
    calls.extend((1..PKEYS).map(is_allocated));
    let answers = remote.batch(pid, &calls)?;
    let mut settings = MmSettings { space: SPACE, sealed: sealed.to_vec(), ..MmSettings::default() };
    settings.mdwe = answers[0].max(0) as u32;
    settings.memory_merge = answers[1] > 0;
    let mut xcomp = [0; 8];
    remote.read(room, &mut xcomp)?;
    if answers[3] > 0 {
        settings.ldt = ldt(remote, room)?;
    }
    settings.pkeys = (1..PKEYS)
        .zip(&answers[4..])
        .filter(|(_, answer)| **answer == -i64::from(libc::ENOMEM))
        .fold(0, |keys, (key, _)| keys | 1 << key);
    settings.execute_only_pkey = execute_only(vmas, settings.pkeys);
    settings.policies = policies(remote, room, vmas)?;
    let xcomp_perm = if answers[2] == 0 { u64::from_le_bytes(xcomp) } else { 0 };
    Ok(Told { settings, xcomp_perm })
}

/// Asks whether a key is allocated, changing nothing: pkey_mprotect(2) looks at the key before it looks for a mapping, and
/// finds none (mm/mprotect.c): ENOMEM for a key that the program has allocated, else EINVAL.
fn is_allocated(key: u64) -> Call {
    Call::new(libc::SYS_pkey_mprotect, [NOWHERE, pc_image::PAGE_SIZE, 0, key])
}

/// The key that the kernel has given mappings that may only be executed: one that the program has not allocated
/// (mm_pkey_is_allocated() in the kernel hides it).
fn execute_only(vmas: &[Vma], allocated: u32) -> Option<u8> {
    let may = |vma: &&Vma| vma.prot == prot::EXEC && vma.pkey != 0 && allocated & 1 << vma.pkey == 0;
    vmas.iter().find(may).map(|vma| vma.pkey)
}

/// The entries of the LDT that are in use.
fn ldt(remote: &mut Remote<'_>, room: u64) -> Result<Vec<(u32, u64)>> {
    let pid = remote.tracees().pid();
    remote.call(pid, Call::new(libc::SYS_modify_ldt, [0, room, LDT as u64]))?;
    let mut bytes = vec![0; LDT];
    remote.read(room, &mut bytes)?;
    let entries = bytes.chunks_exact(LDT_ENTRY).map(|e| u64::from_le_bytes(e.try_into().unwrap_or_default()));
    Ok((0..).zip(entries).filter(|(_, entry)| *entry != 0).collect())
}

/// The policies of mappings that have one of their own.
fn policies(remote: &mut Remote<'_>, room: u64, vmas: &[Vma]) -> Result<Vec<RangePolicy>> {
    let pid = remote.tracees().pid();
    // First only the modes: nearly always they say that there is none.
    let mode = |(i, vma): (u64, &Vma)| {
        Call::new(libc::SYS_get_mempolicy, [room + 4 * i, 0, 0, vma.start, MPOL_F_ADDR])
    };
    let calls: Vec<Call> = (0..).zip(vmas).map(mode).collect();
    let answers = remote.batch(pid, &calls)?;
    if !answers.contains(&0) {
        return Ok(Vec::new());
    }
    let mut modes = vec![0; 4 * vmas.len()];
    remote.read(room, &mut modes)?;
    let own = vmas.iter().zip(&answers).zip(modes.chunks_exact(4));
    let own = own.filter(|((_, answer), mode)| **answer == 0 && mode.iter().any(|byte| *byte != 0));
    let own: Vec<&Vma> = own.map(|((vma, _), _)| vma).collect();
    let mut found = Vec::new();
    for group in own.chunks(GROUP) {
        let each = 8 + NODES as u64;
        let whole = |(i, vma): (u64, &&Vma)| {
            let at = room + each * i;
            Call::new(libc::SYS_get_mempolicy, [at, at + 8, MAX_NODE, vma.start, MPOL_F_ADDR])
        };
        let calls: Vec<Call> = (0..).zip(group).map(whole).collect();
        remote.batch(pid, &calls)?;
        let mut bytes = vec![0; group.len() * each as usize];
        remote.read(room, &mut bytes)?;
        let all = group.iter().zip(bytes.chunks_exact(each as usize));
        found.extend(all.map(|(vma, bytes)| RangePolicy {
            start: vma.start,
            end: vma.end,
            policy: policy(bytes),
        }));
    }
    Ok(found)
}

/// The record, if there is anything to say. Refuses by name what cannot be rebuilt.
pub(crate) fn settings(
    pid: i32,
    told: &Told,
    threads: &[(Tid, u32, &ThreadTold)],
    thp_disable: u32,
) -> Result<Option<MmSettings>> {
    if let Some((tid, ..)) = threads.iter().find(|(.., told)| told.cpuid_faults) {
        let what =
            format!("its thread {tid} is not to execute CPUID (ARCH_SET_CPUID), which cannot be moved yet");
        return unsupported(pid, None, what);
    }
    /// What a process has to ask for: AMX's tile data (arch/x86/kernel/fpu/xstate.h).
    const DYNAMIC: u64 = 1 << 18;
    if told.xcomp_perm & DYNAMIC != 0 {
        let what = "it may use AMX's tile registers (ARCH_REQ_XCOMP_PERM), which cannot be moved yet";
        return unsupported(pid, None, what);
    }
    let mut settings = told.settings.clone();
    settings.thp_flags = thp_disable & !1;
    settings.thread_policies = threads
        .iter()
        .filter_map(|(_, tid, told)| Some(ThreadPolicy { tid: *tid, policy: told.policy.clone()? }))
        .collect();
    settings.thread_policies.sort_by_key(|it| it.tid);
    Ok(settings.says_something().then_some(settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pc_image::Backing;

    #[test]
    fn a_policy_is_read_without_the_nodes_that_are_not_in_it() {
        let mut bytes = vec![0; THREAD_ROOM];
        bytes[..4].copy_from_slice(&0x8003u32.to_le_bytes());
        bytes[8] = 1;
        assert_eq!(policy(&bytes), MemPolicy { mode: 0x8003, nodes: vec![1] });
        assert!(read_thread(&[0; THREAD_ROOM], &[0, 1]).policy.is_none());
        assert!(read_thread(&bytes, &[-38, -19]).policy.is_none(), "a kernel without policies");
        assert!(read_thread(&bytes, &[0, 0]).cpuid_faults);
    }

    #[test]
    fn a_key_of_a_mapping_that_may_only_be_executed_is_the_kernels_unless_the_program_has_it() {
        let vma = |prot, pkey| Vma {
            start: 0x1000,
            end: 0x2000,
            prot,
            flags: 0,
            pkey,
            backing: Backing::Anonymous,
            name: None,
        };
        assert_eq!(execute_only(&[vma(prot::READ, 1), vma(prot::EXEC, 2)], 0b010), Some(2));
        assert_eq!(execute_only(&[vma(prot::EXEC, 2)], 0b100), None);
        assert_eq!(execute_only(&[vma(prot::EXEC, 0)], 0), None);
    }
}
