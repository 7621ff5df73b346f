//! The frame from which rt_sigreturn(2) puts a thread's whole context back: `struct rt_sigframe` of
//! arch/x86/include/asm/sigframe.h without its first word, followed by the floating-point state.

use crate::{Regs, xstate};

/// Offset of `uc_mcontext` in `struct ucontext`.
const MCONTEXT: usize = 40;
/// Size of `struct ucontext` with an 8-byte signal mask.
const UCONTEXT: usize = MCONTEXT + 256 + 8;
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// `ss_flags` that the kernel refuses, so that it leaves the alternate stack as it is.
const LEAVE_ALTSTACK: u32 = 0x7fff_0000;

/// Most bytes that a frame for this extended state takes.
pub(crate) fn len(xstate: &[u8]) -> usize {
    UCONTEXT + 64 + xstate::used_len(xstate) + 4
}

/// The frame to be placed at `addr` (where the stack pointer is to point at the time of rt_sigreturn).
pub(crate) fn build(addr: u64, regs: &Regs, mask: u64, xstate: &[u8]) -> Vec<u8> {
    let fp_addr = (addr + UCONTEXT as u64).next_multiple_of(64);
    let mut frame = vec![0u8; (fp_addr - addr) as usize];
    let mut put = |at: usize, value: u64| frame[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS);
    put(24, u64::from(LEAVE_ALTSTACK));
    let words = [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
        regs.cs & 0xffff | (regs.ss & 0xffff) << 48,
        0,
        0,
        0,
        0,
        fp_addr,
    ];
    for (i, word) in words.into_iter().enumerate() {
        put(MCONTEXT + 8 * i, word);
    }
    put(MCONTEXT + 256, mask);
    frame.extend(float_state(xstate));
    frame
}

/// The state as the kernel lays it in signal frames: with `struct _fpx_sw_bytes` and the second magic after it.
fn float_state(xstate: &[u8]) -> Vec<u8> {
    let len = xstate::used_len(xstate);
    let mut fp = xstate[..len].to_vec();
    let sw = &mut fp[464..512];
    sw.fill(0);
    sw[0..4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
    sw[4..8].copy_from_slice(&(len as u32 + 4).to_le_bytes());
    sw[8..16].copy_from_slice(&xstate::features(xstate).to_le_bytes());
    sw[16..20].copy_from_slice(&(len as u32).to_le_bytes());
    fp.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    fp
}
