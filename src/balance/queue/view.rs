//! What a queue looks like from outside: how long somebody would wait, and what stands where.
//!
//! Questions only: nothing here changes the queue.

use std::sync::Arc;
use std::time::Duration;

use super::lane::Lane;
use super::{Queue, Row, Target, WaiterId};
use crate::types::{Class, LoadKey, Moment};

/// Busy models stay busy for this many times what runs and waits on them now: more requests for
/// them come in meanwhile. In the simulation waits for room were 1.6 times as long as what was there
/// when they were predicted; 1 costs 6 % of the mean at load 0.1 and 2 % at 0.3, 3 costs 1 % at 0.4.
pub(in crate::balance) const GOES_ON: f64 = 2.0;

/// One file of weights at an engine, whatever the options it is asked for with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The options it is in memory with, or is being brought in with; the engine's own if it
    /// is not there.
    pub key: LoadKey,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Whether it is being loaded.
    pub loading: bool,
    /// How many requests run on it.
    pub running: usize,
    /// How many wait for it.
    pub queued: usize,
    /// How many ever began on it ([`Queue::begun`]).
    pub begun: u32,
    /// How long a new request of this node's own would wait, if it has these options.
    pub own: Duration,
    /// How long a new interactive one of another node would.
    pub interactive: Duration,
    /// Whether a guest's request would find it there or could have it loaded, pushing out
    /// nothing of the owner's.
    pub spares: bool,
    /// Whether nothing would be let go for it, were it loaded now, as far as has been seen.
    pub fits: bool,
}

impl Queue {
    /// How long a request that came in now would wait, its load (of this length, if it needs one)
    /// included.
    pub fn waits(&self, target: &Target, class: Class, load: Duration, now: Moment) -> Duration {
        let lane = self.lanes.iter().find(|lane| lane.target == *target);
        let slot = lane.map(|lane| lane.slot_free_in(class, self.slots, now));
        let start = self.ready_in(target, class, load, now) + slot.unwrap_or_default();
        // A prompt of usual length is behind those that are being read.
        start.max(self.reads_left(now))
    }

    /// How long a request that waits here will still wait; `None` if it does not wait.
    pub fn left(&self, id: WaiterId, now: Moment) -> Option<Duration> {
        let (lane, waiter) = self.lanes.iter().find_map(|lane| {
            lane.waiting.iter().find(|w| w.id == id).map(|waiter| (lane, waiter))
        })?;
        let ready = self.ready_in(&lane.target, waiter.class, waiter.load, now);
        let turn = if waiter.guest { self.guest_in(now) } else { Duration::ZERO };
        Some((ready + lane.slot_free_for(waiter, self.slots, now)).max(turn))
    }

    /// With which options these weights are in memory, if it was this queue that had them loaded.
    pub fn held(&self, weights: &str, now: Moment) -> Option<LoadKey> {
        let mut lanes = self.lanes.iter().filter(|lane| &*lane.target.weights == weights);
        lanes.find(|lane| lane.in_memory(now) && !lane.loading).map(|lane| lane.target.key.clone())
    }

    /// What stands in the queue.
    pub fn rows(&self, now: Moment) -> impl Iterator<Item = Row<'_>> {
        self.lanes.iter().map(move |lane| Row {
            target: &lane.target,
            loaded: !self.loads || lane.in_memory(now),
            loading: lane.loading,
            running: lane.running.len(),
            queued: lane.waiting.len(),
        })
    }

    /// How these weights stand here, whose load takes this long.
    pub fn standing(&self, target: Target, load: Duration, now: Moment) -> Standing {
        let weights = target.weights.clone();
        let lanes = || self.lanes.iter().filter(|lane| lane.target.weights == weights);
        let there = lanes().find(|lane| lane.in_memory(now));
        let coming = lanes().find(|lane| lane.loading);
        let foreign = there.is_none() && self.foreign_fits(&target, now);
        let target = there.or(coming).map_or(target, |lane| lane.target.clone());
        let wait = |class| self.waits(&target, class, load, now);
        Standing {
            loaded: !self.loads || there.is_some() || foreign,
            loading: coming.is_some(),
            running: lanes().map(|lane| lane.running.len()).sum(),
            queued: lanes().map(|lane| lane.waiting.len()).sum(),
            begun: self.begun(&weights),
            own: wait(Class::Own),
            interactive: wait(Class::Interactive).max(self.guest_in(now)),
            spares: self.may_wait_unloaded(&target, now) || self.spares_owner(&target, now),
            fits: self.fits_beside(&weights, now),
            key: target.key,
        }
    }

    /// How many requests run at once per model.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How long it takes until these weights are in memory with these options.
    fn ready_in(&self, target: &Target, class: Class, load: Duration, now: Moment) -> Duration {
        match self.lanes.iter().find(|lane| lane.target == *target) {
            _ if !self.loads => Duration::ZERO,
            Some(lane) if lane.in_memory(now) => Duration::ZERO,
            Some(lane) if lane.loading => self.load_left(now),
            _ if self.foreign_fits(target, now) => self.load_left(now),
            _ => {
                // Loads that come first, the requests that keep the same weights or the memory
                // it needs, and its own.
                let first: Duration = self
                    .lanes
                    .iter()
                    .filter(|l| l.target != *target && !l.loading && !l.in_memory(now))
                    .filter(|l| l.waiting.iter().any(|w| w.class <= class))
                    .map(Lane::load_time)
                    .sum();
                let drain = self.lanes.iter().filter(|l| l.target.weights == target.weights);
                let drain = drain.filter_map(|l| l.drained_in(now)).max().unwrap_or_default();
                let drain = drain.max(self.room_in(&target.weights, now));
                self.load_left(now) + first.max(drain) + load
            }
        }
    }

    /// How long until enough busy models will have ended for these weights to fit in.
    pub(super) fn room_in(&self, weights: &Arc<str>, now: Moment) -> Duration {
        let mut busy: Vec<(Duration, &Arc<str>)> = self
            .busy_beside(weights)
            .map(|lane| (lane.idle_in(self.slots, now), &lane.target.weights))
            .collect();
        busy.sort_unstable();
        let mut end = Duration::ZERO;
        while !busy.is_empty() {
            let together = busy.iter().map(|(_, weights)| *weights);
            if self.room.holds(together.chain(std::iter::once(weights))) {
                break;
            }
            end = busy.remove(0).0;
        }
        end.mul_f64(GOES_ON)
    }

    /// The lanes of other weights that are in use.
    pub(super) fn busy_beside(&self, weights: &Arc<str>) -> impl Iterator<Item = &Lane> {
        let busy = |l: &&Lane| l.target.weights != *weights && !l.running.is_empty();
        self.lanes.iter().filter(busy)
    }
}
