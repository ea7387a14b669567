//! Measured numbers as several tasks read and move them.
//!
//! Readers take no lock. Two answers that end in the same instant may lose one of two samples
//! of many, which is why no lock is taken to write either.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::balance::rates::{self, Estimate, Sample};
use crate::types::{ClientKind, Moment};

/// An `f64` that several tasks may read and move.
#[derive(Debug, Default)]
struct AtomicF64(AtomicU64);

impl AtomicF64 {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

/// A measured rate.
#[derive(Debug, Default)]
pub struct Rate {
    value: AtomicF64,
    trust: AtomicF64,
    /// When it was last measured, in milliseconds since the start: before it, if an earlier
    /// run did. One more than that, so that 0 is never.
    at: AtomicI64,
}

impl Rate {
    /// The value; 0 = never measured, or by too little.
    pub fn get(&self) -> f64 {
        self.estimate().known().unwrap_or(0.0)
    }

    /// Replaces the value, as something measured well.
    pub fn set(&self, value: f64) {
        self.value.set(value);
        self.trust.set(1.0);
    }

    /// The value and how far it is trusted.
    pub fn estimate(&self) -> Estimate {
        Estimate { value: self.value.get(), trust: self.trust.get() }
    }

    /// Moves it by what was measured at `now`; `weight` is a whole sample's in the long run.
    pub fn learn(&self, sample: Sample, weight: f64, now: Moment) {
        let after = self.estimate().learn(sample, weight);
        self.value.set(after.value);
        self.trust.set(after.trust);
        self.at.store(i64::try_from(now.millis()).unwrap_or(i64::MAX - 1) + 1, Relaxed);
    }

    /// Takes over what an earlier run measured that long before this one, where this one has
    /// measured nothing.
    pub fn recall(&self, was: Estimate, age: Duration) {
        if was.known().is_none() || self.estimate().value > 0.0 {
            return;
        }
        let was = was.aged(age);
        self.value.set(was.value);
        self.trust.set(was.trust);
        self.at.store(-i64::try_from(age.as_millis()).unwrap_or(i64::MAX), Relaxed);
        // The start itself would be never.
        let _ = self.at.compare_exchange(0, 1, Relaxed, Relaxed);
    }

    /// How long ago it was last measured; `None` = never.
    pub fn age(&self, now: Moment) -> Option<Duration> {
        let at = self.at.load(Relaxed);
        let now = i64::try_from(now.millis()).unwrap_or(i64::MAX);
        let age = now.saturating_sub(if at > 0 { at - 1 } else { at });
        (at != 0).then(|| Duration::from_millis(u64::try_from(age).unwrap_or(0)))
    }

    /// Forgets what was measured: it was of something else.
    pub fn reset(&self) {
        self.value.set(0.0);
        self.trust.set(0.0);
        self.at.store(0, Relaxed);
    }
}

/// How long answers of one model are, by who asks.
#[derive(Debug, Default)]
pub struct Lengths {
    all: Rate,
    by: [Rate; ClientKind::ALL.len()],
}

impl Lengths {
    /// Tokens of an answer to this client: as seen, as seen of all clients, or the usual.
    pub fn of(&self, client: ClientKind) -> f64 {
        let own = self.rate(client).get();
        let all = if own > 0.0 { own } else { self.all.get() };
        if all > 0.0 { all } else { rates::USUAL_LENGTH }
    }

    /// What is known of one family of clients.
    pub fn rate(&self, client: ClientKind) -> &Rate {
        self.by.get(client.number()).unwrap_or(&self.all)
    }

    /// An answer to this client was so long.
    pub fn learn(&self, client: ClientKind, sample: Sample, now: Moment) {
        for rate in [self.rate(client), &self.all] {
            if rate.estimate().value <= 0.0 {
                // One answer is not yet a habit.
                rate.set(rates::USUAL_LENGTH);
            }
            rate.learn(sample, rates::LENGTH, now);
        }
    }

    /// Takes over what an earlier run saw.
    pub fn recall(&self, client: ClientKind, was: Estimate, age: Duration) {
        self.rate(client).recall(was, age);
        self.all.recall(was, age);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(value: f64) -> Sample {
        Sample { value, trust: 1.0 }
    }

    #[test]
    fn a_rate_says_when_it_was_measured() {
        let rate = Rate::default();
        assert_eq!((rate.get(), rate.age(Moment::ZERO)), (0.0, None));
        rate.learn(whole(10.0), 0.25, Moment::from_millis(500));
        rate.learn(whole(20.0), 0.25, Moment::from_millis(1000));
        assert_eq!(rate.get(), 15.0);
        assert_eq!(rate.age(Moment::from_millis(1500)), Some(Duration::from_millis(500)));
        rate.reset();
        assert_eq!((rate.get(), rate.age(Moment::ZERO)), (0.0, None));
    }

    #[test]
    fn an_earlier_runs_rate_is_taken_over_older_and_only_once() {
        let hour = Duration::from_secs(3600);
        let rate = Rate::default();
        let was = |value| Estimate { value, trust: 3.0 };
        rate.recall(was(30.0), hour);
        rate.recall(was(90.0), hour);
        assert_eq!(rate.get(), 30.0);
        assert_eq!(rate.age(Moment::new(hour)), Some(2 * hour));
        rate.learn(whole(60.0), 0.25, Moment::new(hour));
        assert!((rate.get() - 45.0).abs() < 1.0, "{}", rate.get());
        assert_eq!(rate.age(Moment::new(hour)), Some(Duration::ZERO));
        let fresh = Rate::default();
        fresh.recall(was(30.0), Duration::ZERO);
        assert_eq!(fresh.age(Moment::ZERO), Some(Duration::ZERO));
        fresh.reset();
        fresh.recall(Estimate { value: 9.0, trust: 0.0 }, hour);
        assert_eq!(fresh.get(), 0.0);
    }

    #[test]
    fn answers_are_as_long_as_that_client_likes_them() {
        let lengths = Lengths::default();
        assert_eq!(lengths.of(ClientKind::Claude), 200.0);
        for _ in 0..60 {
            lengths.learn(ClientKind::Openclaw, whole(900.0), Moment::ZERO);
        }
        assert!(lengths.of(ClientKind::Openclaw) > 850.0);
        assert_eq!(lengths.of(ClientKind::Claude), lengths.of(ClientKind::Openclaw));
        lengths.learn(ClientKind::Claude, whole(100.0), Moment::ZERO);
        assert_eq!(lengths.of(ClientKind::Claude), 150.0);
        lengths.learn(ClientKind::Claude, whole(f64::NAN), Moment::ZERO);
        assert_eq!(lengths.of(ClientKind::Claude), 150.0);
    }
}
