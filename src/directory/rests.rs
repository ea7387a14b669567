//! A [`Breaker`] that several tasks share.
//!
//! Nearly always there is nothing to say, and then no reader takes a lock.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::balance::Breaker;
use crate::types::Moment;

/// What is known of failures at one place, and of its coming back.
#[derive(Debug, Default)]
pub struct Rests {
    /// Whether there is anything to read.
    any: AtomicBool,
    breaker: Mutex<Breaker>,
}

impl Rests {
    /// [`Breaker::fault`].
    pub fn fault(&self, began: Moment, now: Moment, steps: &[Duration]) -> bool {
        self.write(|breaker| breaker.fault(began, now, steps))
    }

    /// [`Breaker::busy`].
    pub fn busy(&self, began: Moment, now: Moment, usual: Duration, said: Option<Duration>) {
        self.write(|breaker| breaker.busy(began, now, usual, said));
    }

    /// [`Breaker::back`].
    pub fn back(&self, now: Moment) {
        self.write(|breaker| breaker.back(now));
    }

    /// [`Breaker::answered`].
    pub fn answered(&self, began: Moment, now: Moment) -> bool {
        self.any.load(Relaxed) && self.breaker.lock().answered(began, now)
    }

    /// [`Breaker::until`] and [`Breaker::room`].
    pub fn read(&self, slots: u32, now: Moment) -> (Moment, u32, &'static str) {
        if !self.any.load(Relaxed) {
            return (Moment::ZERO, u32::MAX, "");
        }
        let breaker = self.breaker.lock();
        if breaker.is_closed(now) {
            self.any.store(false, Relaxed);
        }
        let (room, word) = breaker.room(slots, now);
        (breaker.until(), room, word)
    }

    /// How many failures there were in a row.
    pub fn faults(&self) -> u32 {
        self.breaker.lock().faults()
    }

    /// How long it still rests.
    pub fn left(&self, now: Moment) -> Duration {
        self.read(1, now).0.since(now)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock();
        let changed = change(&mut breaker);
        self.any.store(true, Relaxed);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written_until_it_is_over() {
        let (rests, s) = (Rests::default(), Duration::from_secs);
        let at = |second| Moment::new(s(second));
        assert_eq!(rests.read(4, at(0)), (Moment::ZERO, u32::MAX, ""));
        assert!(!rests.answered(at(0), at(0)));
        assert!(rests.fault(at(1), at(1), &[s(30)]));
        assert_eq!(rests.read(4, at(2)), (at(31), 1, "half-open"));
        assert_eq!((rests.left(at(11)), rests.left(at(40))), (s(20), s(0)));
        assert!(rests.answered(at(40), at(41)));
        assert_eq!(rests.read(4, at(46)).1, 2);
        assert_eq!(rests.read(4, at(51)), (Moment::ZERO, u32::MAX, ""));
        rests.back(at(60));
        assert_eq!(rests.read(4, at(60)).1, 1, "it is read again");
    }
}
