//! A process that changes one of each kind of its settings at a signal, for the census to notice.
//!
//! `guest-census REPORT`: `REPORT.ready` appears once it waits; at SIGUSR1 it changes them, and REPORT appears.

use std::fs;
use std::net::UdpSocket;
use std::process::ExitCode;
use std::ptr::null_mut;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use pc_tests::guest::finish;

const LEN: usize = 4096;

fn main() -> ExitCode {
    let report = std::env::args().nth(1).expect("a report");
    let go = SigSet::from_iter([Signal::SIGUSR1]);
    go.thread_block().expect("a mask");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // SAFETY: a new mapping.
    let area = unsafe {
        libc::mmap(null_mut(), LEN, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(area, libc::MAP_FAILED);
    // So that it is not joined with a neighbour.
    // SAFETY: advice about this program's own mapping.
    assert_eq!(unsafe { libc::madvise(area, LEN, libc::MADV_DONTFORK) }, 0);
    fs::write(format!("{report}.ready"), "").expect("a report");
    go.wait().expect("a signal");
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGUSR2, SigHandler::SigIgn) }.expect("an action");
    setsockopt(&socket, sockopt::Broadcast, &true).expect("an option");
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
    // SAFETY: advice about this program's own mapping.
    assert_eq!(unsafe { libc::madvise(area, LEN, libc::MADV_DONTDUMP) }, 0);
    // SAFETY: prctl with integers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    // SAFETY: prctl with integers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1234, 0, 0, 0) }, 0);
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("a limit");
    let code = finish(&report, &[]);
    go.wait().expect("a signal");
    code
}
