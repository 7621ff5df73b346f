//! When to stop the process. Pure.

use std::time::Duration;

use crate::settings::Rounds;

/// Below this, another round is not worth its time: bytes.
const LITTLE: u64 = 256 << 10;
/// So many rounds in a row that did not shrink what is left, and it will not converge.
const STALLED: u32 = 3;

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another round.
    GoOn,
    /// Stop the process: a short stop, or as short as it will get.
    Stop(Why),
    /// The stop would be longer than is allowed.
    GiveUp(Why),
}

/// Why no further round is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// What is left fits the limit.
    Fits,
    /// There were as many rounds as allowed.
    Rounds,
    /// The process writes as fast as it is sent.
    Stalled,
    /// What is not memory takes longer than the limit by itself.
    Rest,
}

/// A stop, as foretold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foretold {
    /// For what was written, which rounds make less.
    pub sending: Duration,
    /// For all else.
    pub rest: Duration,
}

impl Foretold {
    /// From beginning to end.
    pub fn whole(self) -> Duration {
        self.sending + self.rest
    }
}

/// Judges round after round.
#[derive(Debug)]
pub(crate) struct Rule {
    settings: Rounds,
    rounds: u32,
    before: u64,
    stalled: u32,
}

impl Rule {
    pub fn new(settings: Rounds) -> Self {
        Self { settings, rounds: 0, before: u64::MAX, stalled: 0 }
    }

    /// After a round: `left` bytes were written meanwhile, and sending them would make a stop of `stop`. Even where that
    /// fits the limit, rounds go on while each at least halves what is left: they cost nobody anything. With a limit of
    /// zero, which nothing fits, there are as many as they help.
    pub fn judge(&mut self, left: u64, stop: Foretold) -> Verdict {
        self.rounds += 1;
        let before = std::mem::replace(&mut self.before, left);
        let limit = self.settings.downtime_limit;
        let fits = stop.whole() <= limit;
        let shrinking = left < before / 10 * 9;
        self.stalled = if shrinking { 0 } else { self.stalled + 1 };
        let halved = left <= before / 2 && left > LITTLE;
        let why = if self.rounds >= self.settings.most {
            Why::Rounds
        } else if fits && !halved {
            Why::Fits
        } else if !fits && self.stalled >= STALLED {
            Why::Stalled
        } else if stop.rest > limit && !limit.is_zero() && !halved {
            Why::Rest
        } else {
            return Verdict::GoOn;
        };
        if self.settings.require_downtime && !fits { Verdict::GiveUp(why) } else { Verdict::Stop(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    fn sending(sending: Duration) -> Foretold {
        Foretold { sending, rest: Duration::ZERO }
    }

    fn rule(most: u32, require_downtime: bool) -> Rule {
        Rule::new(Rounds { most, downtime_limit: 100 * MS, require_downtime })
    }

    #[test]
    fn an_idle_process_is_stopped_after_the_first_round() {
        assert_eq!(rule(30, false).judge(4096, sending(3 * MS)), Verdict::Stop(Why::Fits));
    }

    #[test]
    fn rounds_go_on_while_they_halve_what_is_left_even_if_it_fits() {
        let mut rule = rule(30, false);
        assert_eq!(rule.judge(100 * MIB, sending(900 * MS)), Verdict::GoOn);
        assert_eq!(rule.judge(10 * MIB, sending(90 * MS)), Verdict::GoOn);
        assert_eq!(rule.judge(2 * MIB, sending(20 * MS)), Verdict::GoOn);
        assert_eq!(rule.judge(2 * MIB, sending(20 * MS)), Verdict::Stop(Why::Fits));
    }

    #[test]
    fn a_process_that_writes_faster_than_it_is_sent_is_noticed() {
        for (require, end) in [(false, Verdict::Stop(Why::Stalled)), (true, Verdict::GiveUp(Why::Stalled))] {
            let mut rule = rule(30, require);
            for _ in 0..3 {
                assert_eq!(rule.judge(500 * MIB, sending(4000 * MS)), Verdict::GoOn);
            }
            assert_eq!(rule.judge(500 * MIB, sending(4000 * MS)), end);
        }
    }

    #[test]
    fn the_number_of_rounds_is_a_limit_of_its_own() {
        assert_eq!(rule(1, false).judge(500 * MIB, sending(4000 * MS)), Verdict::Stop(Why::Rounds));
        assert_eq!(rule(1, true).judge(500 * MIB, sending(4000 * MS)), Verdict::GiveUp(Why::Rounds));
        assert_eq!(rule(1, true).judge(4096, sending(MS)), Verdict::Stop(Why::Rounds));
    }

    #[test]
    fn rounds_that_cannot_help_are_not_made() {
        let stop = Foretold { sending: 20 * MS, rest: 120 * MS };
        assert_eq!(rule(30, false).judge(4096, stop), Verdict::Stop(Why::Rest));
        assert_eq!(rule(30, true).judge(4096, stop), Verdict::GiveUp(Why::Rest));
        let mut rule = Rule::new(Rounds { most: 3, downtime_limit: Duration::ZERO, require_downtime: false });
        assert_eq!(rule.judge(4096, stop), Verdict::GoOn);
    }
}
