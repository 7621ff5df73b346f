//! The code that makes system calls in the target, and the memory that it works on.

use crate::call::ENTRY;

/// Walks an array of calls (`rbx`: next entry, `r12`: how many are left), writes each result into its entry, then
/// signals its own thread (`r13`: tgid, `r14`: tid, `r15`: signal), which a living tracer sees as a
/// signal-delivery-stop, and ends in rt_sigreturn(2) from the frame that `rsp` points to. Without a tracer the signal is
/// one that the process ignores, so that the thread takes up its old context by itself. Position-independent.
pub(crate) const CODE: [u8; CODE_LEN] = [
    0x4d, 0x85, 0xe4, // loop: test r12, r12
    0x74, 0x2a, // jz done
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10, // mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18, // mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20, // mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28, // mov r8, [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30, // mov r9, [rbx+48]
    0x0f, 0x05, // syscall
    0x48, 0x89, 0x43, 0x38, // mov [rbx+56], rax
    0x48, 0x83, 0xc3, 0x40, // add rbx, 64
    0x49, 0xff, 0xcc, // dec r12
    0xeb, 0xd1, // jmp loop
    0x4c, 0x89, 0xef, // done: mov rdi, r13
    0x4c, 0x89, 0xf6, // mov rsi, r14
    0x4c, 0x89, 0xfa, // mov rdx, r15
    0xb8, 0xea, 0x00, 0x00, 0x00, // mov eax, tgkill
    0x0f, 0x05, // syscall
    0xb8, 0x0f, 0x00, 0x00, 0x00, // signalled: mov eax, rt_sigreturn
    0x0f, 0x05, // syscall
];
/// Bytes of [`CODE`].
pub(crate) const CODE_LEN: usize = 70;
/// Offset of the code that takes up the old context.
pub(crate) const SIGNALLED: u64 = CODE_LEN as u64 - 7;
/// Offset after the call of rt_sigreturn.
pub(crate) const CODE_END: u64 = CODE_LEN as u64;
/// Stack left free below a frame, for a handler that runs before the signal mask is set.
pub(crate) const STACK_ROOM: u64 = 4096;

/// An array of call entries in the target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entries {
    pub addr: u64,
    pub capacity: usize,
}

impl Entries {
    pub fn bytes(capacity: usize) -> u64 {
        (capacity * ENTRY) as u64
    }
}

/// Room for arguments and results of remote calls: a bump allocator over an area of the target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataArea {
    start: u64,
    end: u64,
    next: u64,
}

impl DataArea {
    pub fn new(start: u64, len: u64) -> Self {
        Self { start, end: start + len, next: start }
    }

    /// Takes `len` bytes, aligned to 16.
    pub fn take(&mut self, len: usize) -> Option<u64> {
        let addr = self.next;
        let next = addr.checked_add(len as u64)?.checked_next_multiple_of(16)?;
        (next <= self.end).then(|| {
            self.next = next;
            addr
        })
    }

    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_the_code_land_where_they_should() {
        assert_eq!(5 + usize::from(CODE[4]), 47, "jz leaves the loop at `done`");
        assert_eq!(&CODE[47..50], &[0x4c, 0x89, 0xef]);
        assert_eq!(47 + i32::from(CODE[46].cast_signed()), 0, "jmp goes back to `loop`");
        assert_eq!(CODE[SIGNALLED as usize], 0xb8);
    }

    #[test]
    fn data_area_refuses_what_does_not_fit() {
        let mut area = DataArea::new(0x1000, 64);
        assert_eq!(area.take(10), Some(0x1000));
        assert_eq!(area.take(48), Some(0x1010));
        assert_eq!(area.take(1), None);
        area.reset();
        assert_eq!(area.take(64), Some(0x1000));
        assert_eq!(area.take(usize::MAX), None);
    }
}
