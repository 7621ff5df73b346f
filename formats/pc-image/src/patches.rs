//! The body of a Patches frame: `u32` space, `u32` number of patches, for each patch `u64` address and `u16` length, then
//! the patches' bytes. All little-endian.

use crate::{PAGE_SIZE, Patch, Patches, SpaceId};

/// Bytes before the patches.
const HEAD: usize = 8;
/// Bytes of a patch's address and length.
const PATCH: usize = 10;

/// What stands before the bytes.
pub(crate) fn encode_head(space: SpaceId, patches: &[Patch]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + patches.len() * PATCH);
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
        behind = patch.addr.checked_add(len).ok_or("a patch at the end of the address space")?;
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
    let table = (count as usize).checked_mul(PATCH).and_then(|len| rest.get(..len));
    let table = table.ok_or_else(|| format!("{count} patches in {} bytes", payload.len()))?;
    let patches: Vec<Patch> = table
        .chunks_exact(PATCH)
        .map(|patch| Patch {
            addr: u64::from_le_bytes(std::array::from_fn(|i| patch[i])),
            len: u16::from_le_bytes([patch[8], patch[9]]),
        })
        .collect();
    let data_offset = HEAD + table.len();
    check(&patches, payload.len() - data_offset)?;
    Ok(Patches { space: SpaceId(space), patches, payload, data_offset })
}
