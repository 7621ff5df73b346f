//! The body of a Patches frame: `u32` space, `u32` number of patches, for each patch `u64` address and `u16` length, then
//! the patches' bytes. All little-endian.

use crate::{PAGE_SIZE, Patch, Patches, SpaceId};

/// Bytes before the patches.
const HEAD: usize = 8;

/// What stands before the bytes.
pub(crate) fn encode_head(space: SpaceId, patches: &[Patch]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + patches.len() * Patch::HEAD);
    head.extend(space.0.to_le_bytes());
    head.extend((patches.len() as u32).to_le_bytes());
    for patch in patches {
        head.extend(patch.addr.to_le_bytes());
        head.extend(patch.len.to_le_bytes());
    }
    head
}

/// Checks the patches: each in one page, ascending, not overlapping, and of just as many bytes as there are data.
pub(crate) fn check(patches: &[Patch], data_len: usize) -> Result<(), String> {
    let mut behind = 0;
    let mut total = 0u64;
    for patch in patches {
        let len = u64::from(patch.len);
        if len == 0 || patch.addr % PAGE_SIZE + len > PAGE_SIZE {
            return Err(format!("a patch of {len} bytes at {:#x}, which is not within a page", patch.addr));
        }
        if patch.addr < behind {
            return Err(format!("patches that do not ascend: {:#x} behind {behind:#x}", patch.addr));
        }
        // A page that ends where addresses do has no end to be told of; nor has one of Pages.
        patch.page().checked_add(PAGE_SIZE).ok_or("a patch at the end of the address space")?;
        behind = patch.addr + len;
        total += len;
    }
    if total != data_len as u64 || patches.is_empty() {
        return Err(format!("patches of {total} bytes with {data_len} bytes of data"));
    }
    Ok(())
}

/// Takes a payload apart.
pub(crate) fn decode(payload: Vec<u8>) -> Result<Patches, String> {
    let Some((head, rest)) = payload.split_first_chunk::<HEAD>() else { return Err("too short".to_owned()) };
    let [space, count] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| head[at + i])));
    let table = (count as usize).checked_mul(Patch::HEAD).and_then(|len| rest.get(..len));
    let table = table.ok_or_else(|| format!("{count} patches in {} bytes", payload.len()))?;
    let patches: Vec<Patch> = table
        .chunks_exact(Patch::HEAD)
        .map(|patch| Patch {
            addr: u64::from_le_bytes(std::array::from_fn(|i| patch[i])),
            len: u16::from_le_bytes([patch[8], patch[9]]),
        })
        .collect();
    let data_offset = HEAD + table.len();
    check(&patches, payload.len() - data_offset)?;
    Ok(Patches { space: SpaceId(space), patches, payload, data_offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::patched_pages;

    fn patch(addr: u64) -> Patch {
        Patch { addr, len: 1 }
    }

    #[test]
    fn the_last_page_of_all_addresses_has_no_end_and_no_patch() {
        const LAST: u64 = u64::MAX / PAGE_SIZE * PAGE_SIZE;
        let before = patch(LAST - 1);
        assert_eq!(check(&[before], 1), Ok(()));
        assert_eq!(patched_pages(&[before]), [(LAST - PAGE_SIZE, LAST)]);
        for last in [LAST, LAST + 9, u64::MAX - 1, u64::MAX] {
            assert!(check(&[before, patch(last)], 2).is_err(), "{last:#x}");
        }
    }

    #[test]
    fn patches_lie_in_a_page_each_ascend_and_have_bytes() {
        let of = |addr, len| Patch { addr, len };
        assert_eq!(check(&[of(0x1000, 4096), of(0x2001, 4095)], 8191), Ok(()));
        assert!(check(&[of(0x1001, 4096)], 4096).is_err());
        assert!(check(&[of(0x1000, 0)], 0).is_err());
        assert!(check(&[of(0x1000, 2), of(0x1001, 2)], 4).is_err());
        assert!(check(&[of(0x1000, 2)], 3).is_err());
        assert!(check(&[], 0).is_err());
    }
}
