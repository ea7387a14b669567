//! How long to wait for the next meeting at one address.
//!
//! Pure: the time is told to it. An address where the peer was met lately is asked again soon;
//! one where it never was, or not for an hour, ever less often, so that what was once learned
//! of a network is not knocked at for ever. Whatever says that the peer may be there now
//! begins the waits anew.

use std::time::Duration;

use crate::types::{Moment, Timing};

/// The waits where nobody was met lately, as halves of the usual wait beside a dead tailnet: 2,
/// 5, 10, 20, 60, 120 and 300 s.
const WAITS: [u32; 7] = [2, 5, 10, 20, 60, 120, 300];

/// How a meeting went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    /// The peer answered.
    Met,
    /// Nobody did.
    Missed,
    /// Somebody who holds another key.
    OtherKey,
}

/// One address's waits.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Misses in a row since something spoke for the address.
    missed: usize,
    /// When the peer was last met there.
    met: Option<Moment>,
}

impl Pace {
    /// The wait after a meeting that went so; `carried` = the tailnet carries the peer.
    pub(super) fn after(
        &mut self,
        went: Went,
        carried: bool,
        now: Moment,
        timing: &Timing,
    ) -> Duration {
        match went {
            Went::Met => {
                *self = Pace { missed: 0, met: Some(now) };
                if carried { timing.meet } else { timing.meet_dead }
            }
            Went::OtherKey => timing.meet_stranger,
            Went::Missed => {
                let halves = WAITS[self.missed.min(WAITS.len() - 1)];
                self.missed = self.missed.saturating_add(1);
                let wait = timing.meet_dead * halves / 2;
                let lately = self.met.is_some_and(|met| now.since(met) < timing.meet_lately);
                match (lately, carried) {
                    (true, true) => timing.meet,
                    // Somebody who was there is looked for often.
                    (true, false) => wait.min(timing.meet),
                    (false, _) => wait,
                }
            }
        }
    }

    /// It may be there now.
    pub(super) fn anew(&mut self) {
        self.missed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_where_nobody_is_met_is_asked_ever_less_often_until_something_speaks_for_it() {
        let timing = Timing::default();
        let mut pace = Pace::default();
        let mut now = Moment::ZERO;
        let mut check = |went, carried, want: &[u64]| {
            for want in want {
                let wait = pace.after(went, carried, now, &timing);
                assert_eq!(wait.as_secs(), *want, "{went:?} {carried} at {now:?}");
                now = now + wait;
            }
            if went == Went::Met {
                pace.anew();
            }
        };
        // Learnt, and never met there, with or without the tailnet.
        check(Went::Missed, true, &[2, 5, 10, 20, 60]);
        check(Went::Missed, false, &[120, 300, 300]);
        check(Went::OtherKey, false, &[600, 600]);
        // Met, and gone.
        check(Went::Met, true, &[20, 20]);
        check(Went::Met, false, &[2, 2]);
        check(Went::Missed, false, &[2, 5, 10, 20, 20]);
        // For an hour, and then no more.
        check(Went::Missed, true, &[20; 178]);
        check(Went::Missed, true, &[300]);
        check(Went::Missed, false, &[300]);
        let mut pace = Pace { missed: 50, met: None };
        pace.anew();
        assert_eq!(pace.after(Went::Missed, true, now, &timing).as_secs(), 2);
    }
}
