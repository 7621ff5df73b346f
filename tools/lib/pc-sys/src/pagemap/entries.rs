//! The entries of /proc/PID/pagemap, a word for each page (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{PageIs, PageRegion, Query};

const PAGE: u64 = 4096;
/// Pages read at a time.
const CHUNK: u64 = 8192;
/// Bits of an entry, and what they say.
const BITS: [(u32, PageIs); 4] =
    [(55, PageIs::SOFT_DIRTY), (61, PageIs::FILE), (62, PageIs::SWAPPED), (63, PageIs::PRESENT)];

/// Whether entries have the answer: not of write-protection, which only the ioctl tells and does. That a page is the zero
/// page, a huge one or a guard page they do not say; these count as none.
pub fn can_tell(query: &Query) -> bool {
    let asked = query.all | query.any | query.report;
    query.flags.is_empty() && !asked.intersects(PageIs::WPALLOWED | PageIs::WRITTEN)
}

/// Appends the runs of pages of `[start, end)` that match.
pub fn scan(
    pagemap: &File,
    start: u64,
    end: u64,
    query: &Query,
    regions: &mut Vec<PageRegion>,
) -> io::Result<()> {
    let mut buffer = vec![0u8; (CHUNK * 8) as usize];
    for from in (start..end).step_by((CHUNK * PAGE) as usize) {
        let pages = (end - from).div_ceil(PAGE).min(CHUNK);
        let words = &mut buffer[..(pages * 8) as usize];
        pagemap.read_exact_at(words, from / PAGE * 8)?;
        for (page, word) in (from..).step_by(PAGE as usize).zip(words.chunks_exact(8)) {
            let found = categories(u64::from_le_bytes(word.try_into().unwrap_or_default()));
            if matches(query, found) {
                push(regions, page, (found & query.report).bits());
            }
        }
    }
    Ok(())
}

fn categories(word: u64) -> PageIs {
    let set = BITS.iter().filter(|(bit, _)| word >> bit & 1 != 0);
    set.fold(PageIs::empty(), |all, (_, is)| all | *is)
}

/// As the ioctl does it (`pagemap_scan_is_interesting_page` of fs/proc/task_mmu.c).
fn matches(query: &Query, found: PageIs) -> bool {
    let found = found ^ query.inverted;
    found.contains(query.all) && (query.any.is_empty() || found.intersects(query.any))
}

fn push(regions: &mut Vec<PageRegion>, page: u64, categories: u64) {
    match regions.last_mut() {
        Some(last) if last.end == page && last.categories == categories => last.end += PAGE,
        _ => regions.push(PageRegion { start: page, end: page + PAGE, categories }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::{Pagemap, ScanFlags};

    #[test]
    fn entries_and_the_ioctl_tell_the_same() {
        let mut memory = vec![0u8; 64 * PAGE as usize];
        for page in [3, 4, 5, 9, 40, 63] {
            memory[page * PAGE as usize] = 1;
        }
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let end = start + 63 * PAGE;
        let own = Pagemap::open(std::process::id() as i32).unwrap();
        let content = PageIs::PRESENT | PageIs::SWAPPED;
        let queries = [
            Query::any_of(content, PageIs::PRESENT),
            Query::any_of(content, PageIs::empty()).without(PageIs::FILE),
            Query::any_of(content | PageIs::GUARD, PageIs::GUARD).without(PageIs::PFNZERO),
        ];
        for query in queries {
            let (mut by_ioctl, mut by_entries) = (Vec::new(), Vec::new());
            match own.scan_by_ioctl(start, end, query, &mut by_ioctl) {
                // A kernel without the ioctl, or without some category, has nothing to compare with.
                Err(err) if matches!(err.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => continue,
                done => done.unwrap(),
            }
            scan(&own.0, start, end, &query, &mut by_entries).unwrap();
            assert_eq!(by_ioctl, by_entries);
            assert!(!by_entries.is_empty());
        }
        std::hint::black_box(&memory);
    }

    #[test]
    fn what_only_the_ioctl_does_is_not_made_up() {
        let plain = Query::any_of(PageIs::PRESENT, PageIs::empty());
        assert!(can_tell(&plain));
        assert!(!can_tell(&plain.flags(ScanFlags::WP_MATCHING)));
        assert!(!can_tell(&plain.and_all(PageIs::WRITTEN)));
        let present = PageIs::PRESENT | PageIs::FILE;
        assert!(matches(&plain, present) && !matches(&plain.without(PageIs::FILE), present));
        assert_eq!(categories(1 << 63 | 1 << 61 | 7), present);
    }
}
