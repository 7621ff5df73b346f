//! Signal actions, and what is pending.

use pc_image::{SigAction, SigInfo, SigTable, SigTableId};
use pc_trace::Call;

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
pub(crate) const ACTION_LEN: usize = 32;
/// Signals 1..=64.
pub(crate) const SIGNALS: usize = 64;

/// Calls that read the actions of all signals into `room`.
pub(crate) fn action_calls(room: u64) -> impl Iterator<Item = Call> {
    (0..SIGNALS as u64)
        .map(move |i| Call::new(libc::SYS_rt_sigaction, [i + 1, 0, room + i * ACTION_LEN as u64, 8]))
}

/// What those calls have read.
pub(crate) fn table(id: SigTableId, bytes: &[u8]) -> SigTable {
    let actions = bytes.chunks_exact(ACTION_LEN).map(action).collect();
    SigTable { id, actions }
}

fn action(bytes: &[u8]) -> SigAction {
    let mut words = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    let mut word = || words.next().unwrap_or(0);
    SigAction { handler: word(), flags: word(), restorer: word(), mask: word() }
}

pub(crate) fn pending(infos: Vec<[u8; 128]>) -> Vec<SigInfo> {
    infos.into_iter().map(|info| SigInfo(info.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_order_of_an_action_is_handler_flags_restorer_mask() {
        let bytes: Vec<u8> = [1u64, 2, 3, 4].into_iter().flat_map(u64::to_le_bytes).collect();
        let table = table(SigTableId(0), &bytes);
        assert_eq!(table.actions, [SigAction { handler: 1, flags: 2, restorer: 3, mask: 4 }]);
    }
}
