//! Controls that few programs set: prctl(2), arch_prctl(2), membarrier(2), sched_setattr(2), security labels.

use std::fs;

use pc_image::{Speculation, TaskSettings, Thread, ThreadSettings};
use pc_sys::prctl;
use pc_trace::{Call, Husk};

use crate::error::{Context, RebuildError, raw_ok};
use crate::fdtable::words;
use crate::image::Image;
use crate::thread::Tids;

const PR_SET_TSC: u64 = 26;
const PR_TSC_SIGSEGV: u64 = 2;
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_SET: u64 = 1;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const PR_RSEQ_SLICE_EXTENSION: u64 = 79;

/// Our own security label, which the copy will have.
fn own_label() -> Vec<u8> {
    let mut label = fs::read("/proc/self/attr/current").unwrap_or_default();
    while label.last().is_some_and(|last| matches!(last, 0 | b'\n')) {
        label.pop();
    }
    label
}

/// Sets the controls of the process.
pub fn task(husk: &mut Husk, settings: &TaskSettings) -> Result<(), RebuildError> {
    if let Some(label) = &settings.label {
        let own = own_label();
        if *label != own {
            let show = |label: &[u8]| String::from_utf8_lossy(label).into_owned();
            return Err(RebuildError::Unsupported(format!(
                "it is confined by the security label “{}”, and we run under “{}”: start pc-restore under its label \
                 (runcon, aa-exec)",
                show(label),
                show(&own)
            )));
        }
    }
    let pid = husk.pid();
    for command in bits(settings.membarrier.into()) {
        let call = Call::new(libc::SYS_membarrier, [1 << command, 0, 0]);
        husk.call(pid, call).what("registering for membarrier(2)")?;
    }
    Ok(())
}

/// What has to come after timers were made with their ids.
pub fn task_last(husk: &mut Husk, settings: &TaskSettings) -> Result<(), RebuildError> {
    if settings.chooses_timer_ids {
        let call = Call::new(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0]);
        husk.call(husk.pid(), call).what("having it choose ids of timers")?;
    }
    Ok(())
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| mask & 1 << bit != 0)
}

/// Sets the controls of the threads that have any.
pub fn threads(husk: &mut Husk, tids: &Tids, image: &Image) -> Result<(), RebuildError> {
    for settings in image.thread_settings.values() {
        let Some((thread, tid)) = image.threads.get(&settings.tid).zip(tids.get(&settings.tid)) else {
            return Err(RebuildError::Contradiction(format!(
                "controls of thread {}, which is not",
                settings.tid
            )));
        };
        for (what, call) in calls(husk, thread, settings)? {
            let result = husk.batch(*tid, &[call])?.first().copied().unwrap_or(-i64::from(libc::EIO));
            raw_ok(result, || format!("giving thread {} its {what}", settings.tid))?;
        }
        husk.reset();
    }
    Ok(())
}

fn calls(
    husk: &mut Husk,
    thread: &Thread,
    settings: &ThreadSettings,
) -> Result<Vec<(&'static str, Call)>, RebuildError> {
    let prctl = |option: u64, a: u64, b: u64| Call::new(libc::SYS_prctl, [option, a, b, 0, 0]);
    let mut calls = Vec::new();
    if let Some(personality) = settings.personality {
        calls.push(("personality", Call::new(libc::SYS_personality, [personality.into()])));
    }
    if settings.util_clamp.is_some() || settings.sched_flags != 0 {
        calls.push(("scheduling", scheduling(husk, thread, settings)?));
    }
    if let Some(kind) = settings.mce_kill {
        calls.push(("PR_MCE_KILL", prctl(PR_MCE_KILL, PR_MCE_KILL_SET, kind.into())));
    }
    for control in &settings.speculation {
        if judge_speculation(control, prctl::speculation(control.feature))? {
            let call = prctl(PR_SET_SPECULATION_CTRL, control.feature.into(), control.state.into());
            calls.push(("speculation control", call));
        }
    }
    if settings.tsc_trapped {
        calls.push(("trap for the time-stamp counter", prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0)));
    }
    if settings.rseq_slice {
        calls.push(("rseq slice extension", prctl(PR_RSEQ_SLICE_EXTENSION, 2, 1)));
    }
    Ok(calls)
}

/// Whether to set a speculation control where our own is in state `own`. Refuses to go without a restriction that the process
/// has.
fn judge_speculation(control: &Speculation, own: Option<u32>) -> Result<bool, RebuildError> {
    const NOT_AFFECTED: u32 = 0;
    const PR_SPEC_PRCTL: u32 = 1;
    const PR_SPEC_ENABLE: u32 = 2;
    match own {
        Some(own) if own & PR_SPEC_PRCTL != 0 => Ok(true),
        Some(NOT_AFFECTED) => Ok(false),
        // Restricted for all here.
        Some(own) if control.state != PR_SPEC_ENABLE && own & PR_SPEC_ENABLE == 0 => Ok(false),
        _ => Err(RebuildError::Unsupported(format!(
            "a thread has set the speculation control {} of PR_SET_SPECULATION_CTRL, which cannot be set on this machine",
            control.feature
        ))),
    }
}

/// All of sched_setattr(2), with what a Thread lacks.
fn scheduling(husk: &mut Husk, thread: &Thread, settings: &ThreadSettings) -> Result<Call, RebuildError> {
    const RESET_ON_FORK: u32 = 0x4000_0000;
    const FLAG_RESET_ON_FORK: u64 = 1;
    const FLAG_UTIL_CLAMP: u64 = 0x60;
    let sched = &thread.sched;
    let mut flags = settings.sched_flags;
    flags |= if sched.policy & RESET_ON_FORK != 0 { FLAG_RESET_ON_FORK } else { 0 };
    flags |= if settings.util_clamp.is_some() { FLAG_UTIL_CLAMP } else { 0 };
    let (least, greatest) = settings.util_clamp.unwrap_or((0, 0));
    let attr = words(&[
        56 | u64::from(sched.policy & !RESET_ON_FORK) << 32,
        flags,
        sched.nice as u32 as u64 | u64::from(sched.priority) << 32,
        sched.deadline[0],
        sched.deadline[1],
        sched.deadline[2],
        u64::from(least) | u64::from(greatest) << 32,
    ]);
    Ok(Call::new(libc::SYS_sched_setattr, [0, husk.put(&attr)?, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_thread_comes_to_speculate_where_it_did_not() {
        let judge = |feature, state, own| judge_speculation(&Speculation { feature, state }, own);
        assert!(judge(0, 4, Some(3)).unwrap(), "it is set");
        assert!(!judge(0, 8, Some(0)).unwrap(), "a CPU that is not affected");
        assert!(!judge(0, 8, Some(4)).unwrap() && !judge(1, 4, Some(8)).unwrap(), "disabled for all");
        assert!(judge(0, 8, Some(2)).unwrap_err().to_string().contains("cannot be set"), "enabled for all");
        assert!(judge(2, 2, Some(8)).is_err() && judge(0, 4, None).is_err());
    }
}
