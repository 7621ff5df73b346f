//! Signals: actions, and what is pending.

use pc_image::{SigInfo, SigTable};
use pc_trace::{Call, Husk, Tid};

use crate::error::{Context, RebuildError};
use crate::fdtable::words;

/// Bytes of `siginfo_t`.
const SIGINFO: usize = 128;

/// Sets all signal actions.
pub fn actions(husk: &mut Husk, table: &SigTable) -> Result<(), RebuildError> {
    let mut calls = Vec::new();
    for (signal, action) in (1..=64u64).zip(&table.actions) {
        if signal == libc::SIGKILL as u64 || signal == libc::SIGSTOP as u64 {
            continue;
        }
        let bytes = words(&[action.handler, action.flags, action.restorer, action.mask]);
        calls.push(Call::new(libc::SYS_rt_sigaction, [signal, husk.put(&bytes)?, 0, 8]));
    }
    husk.batch_ok(husk.pid(), &calls).what("setting signal actions")?;
    husk.reset();
    Ok(())
}

/// The calls by which a thread queues signals to itself (`thread` = its own tid inside), or to its process.
///
/// SIGURG ends remote batches and would get lost: those come from outside, see [`urgent`].
pub fn pending(
    husk: &mut Husk,
    pid: u32,
    thread: Option<u32>,
    infos: &[SigInfo],
) -> Result<Vec<Call>, RebuildError> {
    let mut calls = Vec::new();
    for info in infos {
        let signal = number(info)?;
        if signal == libc::SIGURG {
            continue;
        }
        let mut bytes = info.0.clone();
        bytes.resize(SIGINFO, 0);
        let (at, pid, signal) = (husk.put(&bytes)?, u64::from(pid), signal as u64);
        calls.push(match thread {
            None => Call::new(libc::SYS_rt_sigqueueinfo, [pid, signal, at]),
            Some(tid) => Call::new(libc::SYS_rt_tgsigqueueinfo, [pid, u64::from(tid), signal, at]),
        });
    }
    Ok(calls)
}

fn number(info: &SigInfo) -> Result<i32, RebuildError> {
    let signal = info.0.get(..4).map(|b| i32::from_le_bytes(b.try_into().unwrap_or_default()));
    match signal {
        Some(signal) if (1..=64).contains(&signal) && info.0.len() <= SIGINFO => Ok(signal),
        _ => Err(RebuildError::Contradiction("a pending signal without a number".into())),
    }
}

/// Whether SIGURG is among them.
pub fn urgent(infos: &[SigInfo]) -> bool {
    infos.iter().any(|info| number(info).is_ok_and(|n| n == libc::SIGURG))
}

/// Sends SIGURG to a held thread, or to its process.
pub fn send_urgent(pid: i32, thread: Option<Tid>) -> Result<(), RebuildError> {
    let sent = match thread {
        Some(tid) => pc_sys::ptrace::tgkill(pid, tid, libc::SIGURG),
        None => nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGURG)
            .map_err(Into::into),
    };
    sent.what("sending a pending signal")
}
