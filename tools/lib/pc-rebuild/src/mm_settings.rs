//! Settings of an address space that few programs have: protection keys, memory policies, the LDT, seals, and what may be
//! executed.

use pc_image::{MemPolicy, MmSettings, Vma, prot, vma_flag};
use pc_trace::{Call, Husk};

use crate::error::{Context, RebuildError, raw_ok};
use crate::image::Image;
use crate::mapping::by_kernel;
use crate::thread::Tids;

/// Protection keys of x86-64, key 0 among them.
const PKEYS: u8 = 16;

/// Gives mappings their protection keys, and those that may only be executed their protection: until here they could be
/// read too, as the kernel would have taken a key of its own choice for them.
pub fn keys(husk: &mut Husk, image: &Image) -> Result<(), RebuildError> {
    let settings = image.mm_settings.as_ref();
    let allocated = settings.map_or(0, |settings| settings.pkeys);
    let execute_only = settings.and_then(|settings| settings.execute_only_pkey);
    let vmas = || image.vmas.values().filter(|vma| !by_kernel(&vma.backing));
    let of_mappings = vmas().map(|vma| vma.pkey).max().unwrap_or(0);
    let of_program = (32 - allocated.leading_zeros()).saturating_sub(1) as u8;
    let highest = of_mappings.max(of_program).max(execute_only.unwrap_or(0));
    if highest >= PKEYS {
        return Err(RebuildError::Contradiction(format!("the protection key {highest}")));
    }
    allocate(husk, highest)?;
    let pid = husk.pid();
    let mut calls = Vec::new();
    if let Some(key) = execute_only {
        // The kernel takes the lowest that is free: this one.
        calls.push(pkey_free(key));
        calls.extend(vmas().filter(|vma| is_execute_only(vma, execute_only)).map(protect));
    }
    for vma in vmas().filter(|vma| !is_execute_only(vma, execute_only)) {
        if vma.pkey != 0 {
            let args = [vma.start, vma.end - vma.start, u64::from(vma.prot), u64::from(vma.pkey)];
            calls.push(Call::new(libc::SYS_pkey_mprotect, args));
        }
    }
    let free = (1..=highest).filter(|key| allocated & 1 << key == 0 && Some(*key) != execute_only);
    calls.extend(free.map(pkey_free));
    husk.batch_ok(pid, &calls).what("setting protection keys")?;
    let plain: Vec<&Vma> = vmas().filter(|vma| vma.prot == prot::EXEC && vma.pkey == 0).collect();
    execute_only_without_key(husk, &plain)
}

/// Mappings that may only be executed, and have no key: where there are keys, only the explicit key 0 says so.
fn execute_only_without_key(husk: &mut Husk, vmas: &[&Vma]) -> Result<(), RebuildError> {
    let args = |vma: &Vma| [vma.start, vma.end - vma.start, u64::from(vma.prot), 0];
    let calls: Vec<Call> = vmas.iter().map(|vma| Call::new(libc::SYS_pkey_mprotect, args(vma))).collect();
    let results = husk.batch(husk.pid(), &calls)?;
    let without = |result: i64| [libc::EINVAL, libc::ENOSYS].map(i64::from).contains(&-result);
    let left = vmas.iter().zip(&results).filter(|(_, result)| without(**result));
    let left: Vec<Call> = left.map(|(vma, _)| protect(vma)).collect();
    husk.batch_ok(husk.pid(), &left).what("protecting mappings")?;
    results
        .into_iter()
        .filter(|result| !without(*result))
        .try_for_each(|result| raw_ok(result, || "protecting mappings".into()).map(drop))
}

/// Allocates all keys up to this one. A new process has none but key 0, and the kernel gives the lowest that is free.
fn allocate(husk: &mut Husk, highest: u8) -> Result<(), RebuildError> {
    let calls = vec![Call::new(libc::SYS_pkey_alloc, [0, 0]); usize::from(highest)];
    let results = husk.batch(husk.pid(), &calls)?;
    for (key, result) in (1..).zip(results) {
        match -result {
            errno if [libc::ENOSPC, libc::ENOSYS, libc::EINVAL].map(i64::from).contains(&errno) => {
                let why = "it uses protection keys, which the CPU or the kernel here does not have";
                return Err(RebuildError::Unsupported(why.into()));
            }
            _ if raw_ok(result, || "allocating a protection key".into())? != key => {
                return Err(RebuildError::Contradiction(format!("protection key {key} got another number")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_execute_only(vma: &Vma, key: Option<u8>) -> bool {
    vma.prot == prot::EXEC && Some(vma.pkey) == key
}

fn protect(vma: &Vma) -> Call {
    Call::new(libc::SYS_mprotect, [vma.start, vma.end - vma.start, u64::from(vma.prot)])
}

fn pkey_free(key: u8) -> Call {
    Call::new(libc::SYS_pkey_free, [u64::from(key)])
}

/// Memory policies and the LDT; then the seals, after which no mapping can be changed. Once everything is mapped and
/// filled, and the threads are there.
pub fn settle(husk: &mut Husk, image: &Image, tids: &Tids) -> Result<(), RebuildError> {
    let Some(settings) = &image.mm_settings else { return Ok(()) };
    local_descriptors(husk, &settings.ldt)?;
    policies(husk, settings, tids)?;
    merging(husk, image, settings)?;
    let pid = husk.pid();
    let seal = |(start, end): &(u64, u64)| Call::new(SYS_MSEAL, [*start, end - start, 0]);
    let calls: Vec<Call> = settings.sealed.iter().map(seal).collect();
    husk.batch_ok(pid, &calls).what("sealing mappings")?;
    Ok(())
}

const SYS_MSEAL: i64 = 462;

/// What restrains the process: as late as can be.
pub fn restrain(husk: &mut Husk, image: &Image) -> Result<(), RebuildError> {
    const PR_SET_MDWE: u64 = 65;
    let mdwe = image.mm_settings.as_ref().map_or(0, |settings| settings.mdwe);
    if mdwe != 0 {
        let call = Call::new(libc::SYS_prctl, [PR_SET_MDWE, u64::from(mdwe), 0, 0, 0]);
        husk.call(husk.pid(), call).what("denying memory that is written and executed (PR_SET_MDWE)")?;
    }
    Ok(())
}

/// Entries of the LDT: `struct user_desc` of modify_ldt(2) from the descriptors of the CPU (fill_ldt() in the kernel's
/// arch/x86/include/asm/desc.h).
fn local_descriptors(husk: &mut Husk, ldt: &[(u32, u64)]) -> Result<(), RebuildError> {
    const WRITE: u64 = 0x11;
    const LEN: usize = 16;
    const GROUP: usize = 4096;
    for group in ldt.chunks(GROUP) {
        let bytes: Vec<u8> = group.iter().flat_map(|(number, entry)| user_desc(*number, *entry)).collect();
        let at = husk.put(&bytes)?;
        let write = |i: usize| Call::new(libc::SYS_modify_ldt, [WRITE, at + (i * LEN) as u64, LEN as u64]);
        let calls: Vec<Call> = (0..group.len()).map(write).collect();
        husk.batch_ok(husk.pid(), &calls).what("setting the LDT")?;
        husk.reset();
    }
    Ok(())
}

fn user_desc(number: u32, descriptor: u64) -> [u8; 16] {
    let bits = |from: u32, count: u32| (descriptor >> from) as u32 & ((1 << count) - 1);
    let base = bits(16, 24) | bits(56, 8) << 24;
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let (writable, contents, present) = (bits(41, 1), bits(42, 2), bits(47, 1));
    let (available, big, in_pages) = (bits(52, 1), bits(54, 1), bits(55, 1));
    let flags =
        big | contents << 1 | (writable ^ 1) << 3 | in_pages << 4 | (present ^ 1) << 5 | available << 6;
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip([number, base, limit, flags]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Policies hold for pages that come; those that are here stay where they are.
fn policies(husk: &mut Husk, settings: &MmSettings, tids: &Tids) -> Result<(), RebuildError> {
    /// Ranges whose masks fit into the scratch area.
    const GROUP: usize = 1000;
    let pid = husk.pid();
    for group in settings.policies.chunks(GROUP) {
        let mut calls = Vec::new();
        for range in group {
            let (nodes, count) = nodes(husk, &range.policy)?;
            let len = range.end - range.start;
            let mode = u64::from(range.policy.mode);
            calls.push(Call::new(libc::SYS_mbind, [range.start, len, mode, nodes, count, 0]));
        }
        let results = husk.batch(pid, &calls)?;
        results.into_iter().zip(group).try_for_each(|(result, range)| judge(result, &range.policy))?;
        husk.reset();
    }
    for thread in &settings.thread_policies {
        let Some(tid) = tids.get(&thread.tid) else { continue };
        let (nodes, count) = nodes(husk, &thread.policy)?;
        let call = Call::new(libc::SYS_set_mempolicy, [u64::from(thread.policy.mode), nodes, count]);
        let results = husk.batch(*tid, &[call])?;
        results.into_iter().try_for_each(|result| judge(result, &thread.policy))?;
        husk.reset();
    }
    Ok(())
}

/// A mask of nodes in the husk's memory, and the count that the kernel is to get (one more than there are bits).
fn nodes(husk: &mut Husk, policy: &MemPolicy) -> Result<(u64, u64), RebuildError> {
    if policy.nodes.is_empty() {
        return Ok((0, 0));
    }
    let mut mask = policy.nodes.clone();
    mask.resize(mask.len().next_multiple_of(8), 0);
    let count = mask.len() as u64 * 8 + 1;
    Ok((husk.put(&mask)?, count))
}

fn judge(result: i64, policy: &MemPolicy) -> Result<(), RebuildError> {
    if -result == i64::from(libc::EINVAL) {
        return Err(RebuildError::Unsupported(format!(
            "its memory policy (mode {:#x}, nodes {:02x?}) is not one of this machine, whose memory nodes may be others",
            policy.mode, policy.nodes
        )));
    }
    raw_ok(result, || "setting a memory policy".into()).map(drop)
}

/// KSM for the whole process; but not for those mappings that were taken out of it.
fn merging(husk: &mut Husk, image: &Image, settings: &MmSettings) -> Result<(), RebuildError> {
    const PR_SET_MEMORY_MERGE: u64 = 67;
    if !settings.memory_merge {
        return Ok(());
    }
    let mut calls = vec![Call::new(libc::SYS_prctl, [PR_SET_MEMORY_MERGE, 1, 0, 0, 0])];
    let apart = |vma: &&Vma| !by_kernel(&vma.backing) && vma.flags & vma_flag::MERGEABLE == 0;
    let unmerge = |vma: &Vma| {
        Call::new(libc::SYS_madvise, [vma.start, vma.end - vma.start, libc::MADV_UNMERGEABLE as u64])
    };
    calls.extend(image.vmas.values().filter(apart).map(unmerge));
    husk.batch_ok(husk.pid(), &calls).what("setting what KSM may merge")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_gives_back_what_it_was_made_of() {
        // Entry 3: base 0x12345678, limit 0xabcde pages, 32-bit data that may be written, present and useable.
        let descriptor = 0x12da_f334_5678_bcde;
        let bytes = user_desc(3, descriptor);
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words[..3], [3, 0x1234_5678, 0xabcde]);
        assert_eq!(words[3], 1 | 1 << 4 | 1 << 6);
    }
}
