//! When something that failed is tried again, and how many requests at a time it then gets.
//!
//! In: how tries ended, and when. Out: until when it is left alone, and how many requests of
//! ours it may have. After a rest one try shows what it is worth; only when one has succeeded do
//! more go there, ever more over [`RAMP`], so that what is back is not overrun. Never decides
//! that nobody is asked: what rests or is being tried comes after others, and is used when there
//! is no other.

use std::time::Duration;

use crate::types::Moment;

/// From the first answer after a rest until it is asked as if nothing had been.
pub const RAMP: Duration = Duration::from_secs(10);
/// The longest rest of what is busy, as a multiple of the usual first one.
const MOST_BUSY: u32 = 10;

/// The rest after `failures` failures in a row: step by step, then the last step for good.
/// No failure, or no steps, means no rest.
fn rest(failures: u32, steps: &[Duration]) -> Duration {
    let Some(step) = failures.checked_sub(1) else { return Duration::ZERO };
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    steps.get(step).or(steps.last()).copied().unwrap_or_default()
}

/// What is known of the failures of one thing that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Breaker {
    phase: Phase,
    /// Failures in a row.
    faults: u32,
    /// In a row: it said that it was busy.
    busy: u32,
    /// How many failures an answer ended, and when that answer's try was begun.
    ended: (u32, Moment),
    /// When the last of either was. What was begun before says nothing of the time since.
    failed: Moment,
    until: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Nothing is wrong.
    #[default]
    Closed,
    /// It rests, and then gets one try at a time.
    Open,
    /// It has answered since then.
    Ramp(Moment),
}

impl Breaker {
    /// A try that was begun at `began` failed: it rests, longer each time in a row. Tries that
    /// fail together count as one, and a row goes on if the very answer that ended it breaks.
    /// True if this opened it, or kept it open for longer.
    pub fn fault(&mut self, began: Moment, now: Moment, steps: &[Duration]) -> bool {
        if self.is_known(began) {
            return false;
        }
        let (ended, by) = std::mem::take(&mut self.ended);
        let row = if by == began { self.faults.max(ended) } else { self.faults };
        self.faults = row.saturating_add(1);
        self.open(now, rest(self.faults, steps));
        true
    }

    /// It said that it was busy, and perhaps for how long: it rests about `usual`, twice as long
    /// each time in a row.
    pub fn busy(&mut self, began: Moment, now: Moment, usual: Duration, said: Option<Duration>) {
        if self.is_known(began) {
            return;
        }
        let first = said.unwrap_or(usual).clamp(usual * 2 / 3, usual * 5 / 3);
        let long = first * 2_u32.saturating_pow(self.busy.min(MOST_BUSY));
        self.busy = self.busy.saturating_add(1);
        self.open(now, long.min(usual * MOST_BUSY));
    }

    /// It was away and is back: no rest, but one try before all others.
    pub fn back(&mut self, now: Moment) {
        self.open(now, Duration::ZERO);
    }

    /// A try that was begun at `began` was answered. True if that ended a row of failures.
    pub fn answered(&mut self, began: Moment, now: Moment) -> bool {
        if self.phase != Phase::Open || began < self.failed {
            return false;
        }
        let had = self.faults > 0;
        *self = Breaker {
            phase: Phase::Ramp(now),
            failed: self.failed,
            ended: (self.faults, began),
            ..Breaker::default()
        };
        had
    }

    /// Failures in a row.
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// Until when it is left alone; zero if it is not.
    pub fn until(&self) -> Moment {
        self.until
    }

    /// How many requests of ours it may have at a time now, if it runs `slots` at once, and the
    /// word for it.
    pub fn room(&self, slots: u32, now: Moment) -> (u32, &'static str) {
        match self.phase {
            Phase::Open => (1, "half-open"),
            Phase::Ramp(since) if now.since(since) < RAMP => {
                let part = now.since(since).as_secs_f64() / RAMP.as_secs_f64();
                let more = f64::from(slots.saturating_sub(1)) * part;
                (1 + more as u32, "slow start")
            }
            Phase::Closed | Phase::Ramp(_) => (u32::MAX, ""),
        }
    }

    /// Whether all is as if nothing had been.
    pub fn is_closed(&self, now: Moment) -> bool {
        match self.phase {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::Ramp(since) => now.since(since) >= RAMP,
        }
    }

    /// Whether a try of that time belongs to a failure that is known already.
    fn is_known(&self, began: Moment) -> bool {
        self.phase == Phase::Open && began < self.failed
    }

    fn open(&mut self, now: Moment, rest: Duration) {
        self.phase = Phase::Open;
        self.failed = now;
        self.until = self.until.max(now + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Duration; 3] =
        [Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(300)];
    const USUAL: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    /// A try fails at that second; until when it rests.
    fn fault(b: &mut Breaker, second: u64) -> u64 {
        b.fault(at(second), at(second), &STEPS);
        b.until().millis() / 1000
    }

    #[test]
    fn rests_grow_step_by_step_and_stay_at_the_last() {
        let mut b = Breaker::default();
        assert_eq!(b.until(), Moment::ZERO);
        let rests: Vec<u64> =
            [100, 200, 300, 1000].map(|at| fault(&mut b, at) - at).into_iter().collect();
        assert_eq!(rests, [30, 60, 300, 300]);
        assert!(b.answered(at(2000), at(2001)));
        assert_eq!((fault(&mut b, 2005), b.until()), (2035, at(2035)), "the row had ended");
        let mut b = Breaker::default();
        b.fault(at(1), at(1), &[]);
        assert_eq!(b.until(), at(1), "no steps, no rest");
    }

    #[test]
    fn tries_that_fail_together_are_one_failure() {
        let mut b = Breaker::default();
        let all: Vec<bool> = (0..4).map(|n| b.fault(at(5), at(10 + n), &STEPS)).collect();
        assert_eq!((all, b.until()), (vec![true, false, false, false], at(40)));
    }

    #[test]
    fn who_begins_to_answer_and_breaks_again_and_again_rests_ever_longer() {
        let mut b = Breaker::default();
        assert_eq!(fault(&mut b, 100), 130);
        assert!(b.answered(at(140), at(141)));
        b.fault(at(140), at(160), &STEPS);
        assert_eq!(b.until(), at(220), "the answer that ended the row broke");
        assert!(b.answered(at(230), at(231)));
        b.fault(at(229), at(250), &STEPS);
        assert_eq!(b.until(), at(280), "another one broke");
    }

    #[test]
    fn busy_rests_shortly_and_twice_as_long_if_it_goes_on() {
        let s = Duration::from_secs;
        let mut b = Breaker::default();
        let mut rests = Vec::new();
        for n in 0..6 {
            let now = at(100 * (n + 1));
            b.busy(now, now, USUAL, None);
            rests.push(b.until().since(now).as_secs());
        }
        assert_eq!(rests, [3, 6, 12, 24, 30, 30]);
        for (said, rest) in [(0, 2), (4, 4), (600, 5)] {
            let mut b = Breaker::default();
            b.busy(at(9), at(9), USUAL, Some(s(said)));
            assert_eq!(b.until(), at(9 + rest), "{said}");
        }
        assert!(!b.answered(at(900), at(901)), "nothing was broken");
        b.busy(at(999), at(999), USUAL, None);
        assert_eq!(b.until(), at(1002), "the row had ended");
    }

    #[test]
    fn after_a_rest_one_try_then_ever_more() {
        let mut b = Breaker::default();
        let room = |b: &Breaker, second| b.room(4, at(second)).0;
        assert_eq!(b.room(4, at(0)), (u32::MAX, ""));
        fault(&mut b, 100);
        assert_eq!(b.room(4, at(130)), (1, "half-open"));
        assert_eq!(room(&b, 9000), 1, "no time makes up for an answer");
        assert!(!b.answered(at(99), at(131)), "it was begun before the failure");
        assert_eq!(room(&b, 131), 1);
        assert!(b.answered(at(131), at(200)) && !b.answered(at(131), at(205)));
        assert_eq!(b.until(), Moment::ZERO);
        let ramp: Vec<u32> = [200, 204, 207, 209].map(|second| room(&b, second)).into();
        assert_eq!(ramp, [1, 2, 3, 3]);
        assert!(!b.is_closed(at(209)) && b.is_closed(at(210)));
        assert_eq!((room(&b, 210), b.room(1, at(205)).0), (u32::MAX, 1));
        assert_eq!((fault(&mut b, 206), room(&b, 206)), (236, 1), "it breaks again");
    }

    #[test]
    fn what_is_back_gets_one_try_at_once() {
        let mut b = Breaker::default();
        b.back(at(50));
        assert_eq!((b.until(), b.room(4, at(50)).0), (at(50), 1));
        assert!(!b.answered(at(51), at(52)), "that was no failure");
        assert_eq!(b.room(4, at(57)), (2, "slow start"));
        fault(&mut b, 60);
        b.back(at(70));
        assert_eq!(b.until(), at(90), "coming back ends no rest");
    }
}
