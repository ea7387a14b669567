//! Live numbers, shared by all snapshots.
//!
//! A snapshot is rebuilt when membership, paths or offers change. What changes with every
//! request lives here, in atomics, so that the data side reads and writes it without a lock
//! and without a new snapshot.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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
}

impl PathCell {
    /// Something came back.
    pub fn ok(&self, now: Moment, rtt: Option<Duration>) {
        self.alive.store(true, Relaxed);
        self.misses.store(0, Relaxed);
        self.last_ok.store(now.millis().max(1), Relaxed);
        if let Some(rtt) = rtt {
            let new = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
            let old = self.rtt_us.load(Relaxed);
            self.rtt_us.store(if old == 0 { new } else { (old * 7 + new) / 8 }, Relaxed);
        }
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
