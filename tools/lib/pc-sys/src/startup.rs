//! Which standard descriptors were closed as the program began.
//!
//! Rust's runtime opens `/dev/null` for reading and writing in the place of each closed one before `main`
//! (`library/std/src/sys/pal/unix/mod.rs`), which afterwards looks just like what Python's `subprocess.DEVNULL`, node's
//! `'ignore'` and systemd give. So it is looked at before that, by a function among those that the C library calls as the program is
//! loaded (`.init_array`; ELF gABI, "Initialization and Termination Functions").

use std::sync::atomic::{AtomicU8, Ordering};

/// A bit for each of 0, 1 and 2.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Whether a standard descriptor (0, 1 or 2) was closed as the program began.
pub fn was_closed(fd: i32) -> bool {
    (0..3).contains(&fd) && CLOSED.load(Ordering::Relaxed) & 1 << fd != 0
}

// SAFETY: the section holds addresses of functions of the C calling convention that are called once, by one thread, before
// `main`; this is one. It is called before Rust's runtime has begun, and uses nothing of it: an atomic, and fcntl(2).
#[allow(unsafe_code)]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let mut closed = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD takes any number and changes nothing. It fails with EBADF alone.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            closed |= 1 << fd;
        }
    }
    CLOSED.store(closed, Ordering::Relaxed);
}
