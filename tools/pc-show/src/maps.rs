//! `--maps`.

use std::io::{self, Write};

use pc_image::{Backing, Vma, prot, vma_flag};

use crate::model::Model;

/// The mappings of every address space, like /proc/PID/maps, with the pages sent for each.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    for (space, maps) in &model.maps {
        if model.maps.len() > 1 {
            writeln!(out, "space {}:", space.0)?;
        }
        for mapping in maps.values() {
            let vma = &mapping.vma;
            let range = format!("{:08x}-{:08x} {} {:08x}", vma.start, vma.end, permissions(vma), offset(vma));
            let sent = format!("{}+{}z", mapping.sent, mapping.zero);
            let line = format!("{range} {sent:>12} {}", model.backing(*space, vma));
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

/// `rwxp` as /proc/PID/maps has it.
pub fn permissions(vma: &Vma) -> String {
    let bit = |bit: u8, c: char| if vma.prot & bit != 0 { c } else { '-' };
    let shared = if vma.flags & vma_flag::SHARED != 0 { 's' } else { 'p' };
    [bit(prot::READ, 'r'), bit(prot::WRITE, 'w'), bit(prot::EXEC, 'x'), shared].iter().collect()
}

fn offset(vma: &Vma) -> u64 {
    match vma.backing {
        Backing::File { offset, .. } | Backing::Shm { offset, .. } => offset,
        _ => 0,
    }
}
