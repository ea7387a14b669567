//! What the engine's owner has in memory, and who may have something loaded.
//!
//! The owner's is whatever he used within [`OWNED`], or used and told the engine to keep for
//! longer, and whatever somebody loaded past this queue: that was a program here. A guest who
//! may not push it out has something loaded only if none of it is there, or if the engine
//! surely holds all of it and the new one together: it has held as much before, and the new
//! one is asked for with the engine's own options, of which nobody can make it larger.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::lane::Waiting;
use super::{Action, Queue, Refusal, Target, Waiter, Why};
use crate::types::{LoadKey, Moment};

/// For how long a model is its owner's after he has used it. Longer than any pause in a
/// conversation; what is kept longer was asked for.
pub const OWNED: Duration = Duration::from_secs(30 * 60);

/// So many weights are remembered; an engine has fewer.
const MOST: usize = 4096;

/// Who used what.
#[derive(Debug, Default)]
pub(super) struct Owner {
    /// When its owner last used it; `None` = only others did.
    used: HashMap<Arc<str>, Option<Moment>>,
}

impl Owner {
    fn note(&mut self, weights: &Arc<str>, own: bool, now: Moment) {
        if self.used.len() >= MOST && !self.used.contains_key(weights) {
            self.used.clear();
        }
        let used = self.used.entry(weights.clone()).or_default();
        if own {
            *used = Some(now);
        }
    }

    /// Whether weights in memory are the owner's, which the engine lets go at that time.
    fn has(&self, weights: &str, expires: Option<Moment>, now: Moment) -> bool {
        match self.used.get(weights) {
            None => true,
            Some(None) => false,
            Some(Some(at)) => {
                now.since(*at) < OWNED || expires.is_some_and(|end| end > now + OWNED)
            }
        }
    }
}

impl Queue {
    /// Somebody asks for these weights.
    pub(super) fn note_asked(&mut self, waiter: &Waiter, now: Moment) {
        let weights = &waiter.target.weights;
        self.room.know(weights, waiter.size);
        // Who loaded it past this queue is its owner, whoever asks for it next.
        let past = !self.owner.used.contains_key(weights)
            && self.foreign.iter().any(|s| s.weights == *weights);
        self.owner.note(weights, waiter.own || past, now);
    }

    /// These weights have so many bytes.
    pub fn know(&mut self, weights: &Arc<str>, size: u64) {
        self.room.know(weights, size);
    }

    /// A request of the owner's on these weights ends.
    pub(super) fn note_used(&mut self, weights: &Arc<str>, now: Moment) {
        self.owner.note(weights, true, now);
    }

    /// Most requests of guests that run at once; `None` = any number.
    pub fn set_guests(&mut self, most: Option<u32>, now: Moment) -> Vec<Action> {
        self.guests = most;
        self.settle(now)
    }

    /// Whether a guest may have this loaded without pushing out anything of the owner's.
    pub fn spares_owner(&self, target: &Target, now: Moment) -> bool {
        if !self.loads {
            return true;
        }
        let lanes = self.lanes.iter().filter(|lane| lane.loading || lane.in_memory(now));
        let lanes = lanes.map(|lane| {
            let expires = lane.memory.as_ref().and_then(|memory| memory.expires);
            (&lane.target.weights, expires, lane.target == *target)
        });
        let fits = self.foreign_fits(target, now);
        let foreign = self.foreign.iter().filter(|s| s.expires.is_none_or(|at| at > now));
        let foreign = foreign.map(|s| (&s.weights, s.expires, fits));
        let there: Vec<(&Arc<str>, Option<Moment>, bool)> = lanes.chain(foreign).collect();
        let his = |w: &Arc<str>, expires| self.owner.has(w, expires, now);
        let (same, others): (Vec<_>, Vec<_>) =
            there.into_iter().partition(|(weights, ..)| **weights == target.weights);
        if same.iter().any(|(weights, expires, fits)| !fits && his(weights, *expires)) {
            return false;
        }
        if !others.iter().any(|(weights, expires, _)| his(weights, *expires)) {
            return true;
        }
        let all = others.iter().map(|(weights, ..)| *weights);
        target.key == LoadKey::default()
            && self.room.surely_holds(all.chain(std::iter::once(&target.weights)))
    }

    /// Whether these weights could be loaded beside all that is in memory, as far as has been seen:
    /// nothing would be let go for them.
    pub(super) fn fits_beside(&self, weights: &Arc<str>, now: Moment) -> bool {
        let lanes = self.lanes.iter().filter(|lane| lane.loading || lane.in_memory(now));
        let foreign = self.foreign.iter().filter(|s| s.expires.is_none_or(|at| at > now));
        let there = lanes.map(|lane| &lane.target.weights).chain(foreign.map(|s| &s.weights));
        let others = there.filter(|there| *there != weights);
        !self.loads || self.room.holds(others.chain(std::iter::once(weights)))
    }

    /// Whether who waits may have his target loaded now.
    pub(super) fn can_load(&self, waiter: &Waiting, target: &Target, now: Moment) -> bool {
        waiter.may_load && (waiter.evicts || self.spares_owner(target, now))
    }

    /// Sends away who may not load and now waits for a load that nobody will make.
    pub(super) fn refuse_stranded(&mut self, now: Moment, out: &mut Vec<Action>) {
        for l in 0..self.lanes.len() {
            let lane = &self.lanes[l];
            if lane.waiting.iter().all(|w| self.can_load(w, &lane.target, now))
                || self.may_wait_unloaded(&lane.target, now)
            {
                continue;
            }
            while let Some(w) = {
                let lane = &self.lanes[l];
                lane.waiting.iter().position(|w| !self.can_load(w, &lane.target, now))
            } {
                let waiter = self.take(l, w);
                let refusal = Refusal { why: Why::NotLoaded, retry_after: Duration::ZERO };
                out.push(Action::Refuse(waiter.id, refusal));
            }
        }
    }

    /// Whether a request that may not load can hope: its target is in memory or will be.
    pub(super) fn may_wait_unloaded(&self, target: &Target, now: Moment) -> bool {
        !self.loads
            || self.foreign_fits(target, now)
            || self.lanes.iter().any(|lane| {
                lane.target == *target
                    && (lane.loading
                        || lane.in_memory(now)
                        || lane.waiting.iter().any(|w| self.can_load(w, target, now)))
            })
    }

    /// Whether weights put in memory by somebody else probably have the options asked for.
    pub(super) fn foreign_fits(&self, target: &Target, now: Moment) -> bool {
        let key = &target.key;
        self.foreign.iter().any(|s| {
            s.weights == target.weights
                && s.expires.is_none_or(|at| at > now)
                && key.runner.is_empty()
                && key.shift.is_none()
                && (key.num_ctx.is_none() || s.num_ctx.is_none() || key.num_ctx == s.num_ctx)
        })
    }

    /// Whether as many run as may: of this principal, or of guests.
    pub(super) fn is_capped(&self, waiter: &Waiting) -> bool {
        let principal = || self.accounts.get(&waiter.principal).map_or(0, |a| a.running);
        waiter.max_inflight.is_some_and(|most| principal() >= most)
            || (waiter.guest && self.guests.is_some_and(|most| self.running_guests() >= most))
    }

    fn running_guests(&self) -> u32 {
        let running = self.lanes.iter().flat_map(|lane| &lane.running);
        u32::try_from(running.filter(|run| run.guest).count()).unwrap_or(u32::MAX)
    }

    /// How long until a guest may run, if all who may do.
    pub(super) fn guest_in(&self, now: Moment) -> Duration {
        if self.guests.is_none_or(|most| self.running_guests() < most) {
            return Duration::ZERO;
        }
        let guests = |lane: &super::lane::Lane| lane.first_guest_ends_in(self.slots, now);
        self.lanes.iter().filter_map(guests).min().unwrap_or_default()
    }
}
