//! Live numbers, shared by all snapshots.
//!
//! A snapshot is rebuilt when membership, paths or offers change. What changes with every
//! request lives here, in atomics, so that the data side reads and writes it without a lock
//! and without a new snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::balance;
use crate::types::Moment;

/// An `f64` that several tasks may read and move.
#[derive(Debug, Default)]
pub struct AtomicF64(AtomicU64);

impl AtomicF64 {
    /// The value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }

    /// Replaces the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Moves the value towards `sample` by `weight`; the first sample is taken whole.
    /// Samples that are not finite or not positive are ignored.
    pub fn observe(&self, sample: f64, weight: f64) {
        if !sample.is_finite() || sample <= 0.0 {
            return;
        }
        let old = self.get();
        self.set(if old > 0.0 { old + weight * (sample - old) } else { sample });
    }
}

/// The live numbers of one model at one endpoint.
#[derive(Debug, Default)]
pub struct Cell {
    /// Requests of ours that are there now, from the choice to the end of the body.
    pub inflight: AtomicU32,
    /// Requests running there of all callers, ours included, as that node last said.
    pub running: AtomicU32,
    /// Requests waiting in that node's gate, as far as we know.
    pub queued: AtomicU32,
    /// Context window it is loaded with; 0 = not loaded; 1 = loaded, window unknown.
    pub loaded_ctx: AtomicU64,
    /// Whether it is being loaded.
    pub loading: AtomicBool,
    /// Prompt tokens a second, measured on prompts that were not cached. 0 = never measured.
    pub prefill: AtomicF64,
    /// Answer tokens a second. 0 = never measured.
    pub decode: AtomicF64,
    /// Bytes of weights loaded a second. 0 = never measured.
    pub load_rate: AtomicF64,
    /// Seconds to the first body byte, as seen here. 0 = never measured.
    pub ttft: AtomicF64,
    /// Tokens per answer, as seen here. 0 = never measured.
    pub out_tokens: AtomicF64,
    /// Until when it rests after a failure (milliseconds since the start).
    pub rest_until: AtomicU64,
    /// How many failures in a row.
    pub failures: AtomicU32,
}

impl Cell {
    /// Whether it rests at `now`.
    pub fn rests(&self, now: Moment) -> bool {
        self.rest_until.load(Relaxed) > now.millis()
    }

    /// Lets it rest until `until`; never shortens a rest.
    pub fn rest(&self, until: Moment) {
        self.rest_until.fetch_max(until.millis(), Relaxed);
    }

    /// A request failed there: it rests, longer each time in a row.
    pub fn failed(&self, now: Moment, steps: &[Duration]) {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        self.rest(now + balance::rest(failures, steps));
    }

    /// A request was answered there: the row of failures ends, and so does the rest.
    pub fn answered(&self) {
        self.failures.store(0, Relaxed);
        self.rest_until.store(0, Relaxed);
    }

    /// Whether it is in memory.
    pub fn is_loaded(&self) -> bool {
        self.loaded_ctx.load(Relaxed) > 0
    }
}

/// The live numbers of one path to one node.
#[derive(Debug, Default)]
pub struct PathCell {
    /// Whether the last probes or requests came through.
    pub alive: AtomicBool,
    /// Smoothed round trip of the probes, microseconds; 0 = never measured.
    pub rtt_us: AtomicU64,
    /// When something last came back on it (milliseconds since the start; 0 = never).
    pub last_ok: AtomicU64,
    /// Probes missed in a row.
    pub misses: AtomicU32,
    /// Whether the peer answers on it and would serve us on another path only. Never with
    /// `alive`.
    standby: AtomicBool,
    /// Why it is not used, for showing; empty while it is.
    why: Mutex<Arc<str>>,
}

impl PathCell {
    /// Something came back. True if the path was dead until now.
    pub fn ok(&self, now: Moment, rtt: Option<Duration>) -> bool {
        let was_alive = self.alive.swap(true, Relaxed);
        let stood_by = self.standby.swap(false, Relaxed);
        let missed = self.misses.swap(0, Relaxed) > 0;
        // Every answer comes by here: the lock is for those that change something.
        if !was_alive || stood_by || missed {
            *self.why.lock() = Arc::from("");
        }
        self.last_ok.store(now.millis().max(1), Relaxed);
        if let Some(rtt) = rtt {
            let new = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
            let old = self.rtt_us.load(Relaxed);
            self.rtt_us.store(if old == 0 { new } else { (old * 7 + new) / 8 }, Relaxed);
        }
        !was_alive
    }

    /// A probe got no answer. The `limit`th in a row is the path's death: true exactly then.
    pub fn miss(&self, limit: u32) -> bool {
        let misses = self.misses.fetch_add(1, Relaxed).saturating_add(1);
        misses >= limit && self.end()
    }

    /// Something that cannot be doubted (a refused connection, three unanswered pings) says
    /// the path is dead. True if it was alive or stood by until now.
    pub fn lost(&self) -> bool {
        self.misses.fetch_add(1, Relaxed);
        self.end()
    }

    fn end(&self) -> bool {
        let was_alive = self.alive.swap(false, Relaxed);
        self.standby.swap(false, Relaxed) || was_alive
    }

    /// The peer answers on it and says that it serves us on another path only: it is tried
    /// when no other is left. True if it did not stand by until now.
    pub fn stand_by(&self) -> bool {
        self.alive.store(false, Relaxed);
        self.misses.store(0, Relaxed);
        !self.standby.swap(true, Relaxed)
    }

    /// Says why it is not used, until it is.
    pub fn because(&self, why: &str) {
        let mut old = self.why.lock();
        if **old != *why {
            *old = Arc::from(why);
        }
    }

    /// Why it is not used; empty while it is, or where nobody said.
    pub fn why(&self) -> Arc<str> {
        self.why.lock().clone()
    }

    /// Whether the peer answers on it and serves us on another path only.
    pub fn is_standby(&self) -> bool {
        self.standby.load(Relaxed)
    }

    /// Whether the last probes or requests came through.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Relaxed)
    }

    /// Whether something came back within `window` before `now`.
    pub fn ok_within(&self, window: Duration, now: Moment) -> bool {
        let last = self.last_ok.load(Relaxed);
        last > 0 && now.since(Moment::from_millis(last)) <= window
    }

    /// The smoothed round trip, if known.
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_dies_of_the_second_miss_and_one_answer_revives_it() {
        let path = PathCell::default();
        let now = Moment::from_millis(5);
        assert!(path.ok(now, Some(Duration::from_millis(8))));
        assert!(!path.ok(now, Some(Duration::from_millis(16))));
        assert_eq!(path.rtt(), Some(Duration::from_millis(9)));
        assert!(!path.miss(2) && path.is_alive());
        assert!(path.miss(2) && !path.is_alive());
        assert!(!path.miss(2), "it dies once");
        assert!(path.ok(now, None) && path.is_alive());
        assert!(!path.miss(2), "the count began anew");
        assert!(path.lost() && !path.lost());
    }

    #[test]
    fn a_path_stands_by_until_it_answers_or_dies_and_says_why() {
        let path = PathCell::default();
        let now = Moment::from_millis(5);
        path.ok(now, None);
        assert!(path.stand_by() && !path.stand_by());
        path.because("it answers over the tailnet");
        assert!(path.is_standby() && !path.is_alive());
        assert_eq!(&*path.why(), "it answers over the tailnet");
        assert!(path.ok(now, None), "it was not alive");
        assert!(!path.is_standby() && path.is_alive() && path.why().is_empty());
        path.stand_by();
        assert!(path.lost() && !path.is_standby() && !path.lost());
        path.stand_by();
        assert!(!path.miss(2) && path.is_standby());
        assert!(path.miss(2) && !path.is_standby());
    }

    #[test]
    fn failures_in_a_row_rest_longer_and_an_answer_ends_it() {
        let cell = Cell::default();
        let steps = [Duration::from_secs(30), Duration::from_secs(60)];
        let now = Moment::from_millis(1000);
        cell.failed(now, &steps);
        assert!(
            cell.rests(Moment::from_millis(30_999)) && !cell.rests(Moment::from_millis(31_000))
        );
        cell.failed(now, &steps);
        assert!(cell.rests(Moment::from_millis(60_999)));
        cell.answered();
        assert!(!cell.rests(now));
    }

    #[test]
    fn speeds_ignore_what_is_no_speed() {
        let speed = AtomicF64::default();
        for nonsense in [f64::NAN, f64::INFINITY, 0.0, -3.0] {
            speed.observe(nonsense, 0.5);
        }
        assert_eq!(speed.get(), 0.0);
        speed.observe(10.0, 0.25);
        speed.observe(20.0, 0.25);
        assert_eq!(speed.get(), 12.5);
    }
}
