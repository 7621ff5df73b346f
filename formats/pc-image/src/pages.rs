//! The body of a Pages frame: `u32` space, `u32` number of runs, for each run `u64` address and `u64` pages, then the
//! pages' bytes. All little-endian.

use crate::{PAGE_SIZE, PageRun, Pages, SpaceId};

/// Bytes before the runs.
const HEAD: usize = 8;
/// Bytes of a run.
const RUN: usize = 16;

/// What stands before the page data.
pub(crate) fn encode_head(space: SpaceId, runs: &[PageRun]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + runs.len() * RUN);
    head.extend(space.0.to_le_bytes());
    head.extend((runs.len() as u32).to_le_bytes());
    for run in runs {
        head.extend(run.addr.to_le_bytes());
        head.extend(run.pages.to_le_bytes());
    }
    head
}

/// Checks the runs: aligned, ascending, not overlapping, and of just as many bytes as there are data.
pub(crate) fn check_runs(runs: &[PageRun], data_len: usize) -> Result<(), String> {
    let mut behind = 0;
    let mut total = 0u64;
    for run in runs {
        let len =
            run.pages.checked_mul(PAGE_SIZE).filter(|len| *len > 0).ok_or("a run of impossible length")?;
        if !run.addr.is_multiple_of(PAGE_SIZE) || run.addr < behind {
            return Err(format!(
                "runs that are not aligned and ascending: {:#x} behind {behind:#x}",
                run.addr
            ));
        }
        behind = run.addr.checked_add(len).ok_or("a run beyond the end of the address space")?;
        total = total.saturating_add(len);
    }
    if total != data_len as u64 || runs.is_empty() {
        return Err(format!("runs of {total} bytes with {data_len} bytes of data"));
    }
    Ok(())
}

/// Takes a payload apart.
pub(crate) fn decode(payload: Vec<u8>) -> Result<Pages, String> {
    let u32_at = |at: usize| payload.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let u64_at = |at: usize| payload.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(space), Some(count)) = (u32_at(0), u32_at(4)) else { return Err("too short".to_owned()) };
    let data_offset = HEAD + count as usize * RUN;
    if data_offset > payload.len() {
        return Err(format!("{count} runs in {} bytes", payload.len()));
    }
    let runs: Vec<PageRun> = (0..count as usize)
        .filter_map(|i| {
            let at = HEAD + i * RUN;
            Some(PageRun { addr: u64_at(at)?, pages: u64_at(at + 8)? })
        })
        .collect();
    check_runs(&runs, payload.len() - data_offset)?;
    Ok(Pages { space: SpaceId(space), runs, payload, data_offset })
}
