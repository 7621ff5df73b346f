//! `--threads`.

use std::io::{self, Write};

use crate::model::Model;
use crate::text::plain;

/// Names of the words of `struct user_regs_struct`.
pub const NAMES: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];

/// Registers and signal state of each thread.
pub fn write(model: &Model, out: &mut impl Write) -> io::Result<()> {
    for thread in model.threads.values() {
        let name = plain(&thread.comm);
        writeln!(out, "thread {} ({name})", thread.tid)?;
        for row in NAMES.iter().zip(thread.regs).collect::<Vec<_>>().chunks(4) {
            let words: Vec<String> =
                row.iter().map(|(name, value)| format!("{name:>8} {value:016x}")).collect();
            writeln!(out, " {}", words.join(" "))?;
        }
        writeln!(
            out,
            "  blocked {:016x}, {} pending, extended state {} bytes, {:?}",
            thread.sigmask,
            thread.pending.len(),
            thread.xstate.len(),
            thread.restart
        )?;
    }
    Ok(())
}
