//! One target of an engine: who runs on it and who waits for it.

use std::sync::Arc;
use std::time::Duration;

use super::super::choose::SHARING;
use super::{PATIENCE, Seen, Target, Waiter, WaiterId};
use crate::types::{Class, Moment};

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) target: Target,
    /// Whether, and how long, it stays in memory.
    pub(super) memory: Option<Memory>,
    pub(super) loading: bool,
    /// One request at a time, whatever the slots.
    pub(super) solo: bool,
    /// Requests that run on other models of the engine.
    pub(super) others: usize,
    /// When a load or a request last began or ended on it.
    pub(super) touched: Moment,
    pub(super) running: Vec<Running>,
    /// In the order of arrival.
    pub(super) waiting: Vec<Waiting>,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The window the engine says it has; a load for a larger one than the model's is cut, so
    /// this may differ from what was asked for.
    pub(super) num_ctx: Option<u64>,
    /// When the engine lets it go.
    pub(super) expires: Option<Moment>,
    /// Since when it is there.
    pub(super) since: Moment,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) id: WaiterId,
    pub(super) principal: Arc<str>,
    pub(super) own: bool,
    pub(super) guest: bool,
    pub(super) since: Moment,
    pub(super) cost: Duration,
    /// The part of it in which its prompt is read, and whether that is over.
    pub(super) reads: Duration,
    pub(super) read: bool,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: WaiterId,
    pub(super) class: Class,
    pub(super) principal: Arc<str>,
    pub(super) cost: Duration,
    pub(super) reads: Duration,
    pub(super) load: Duration,
    pub(super) may_load: bool,
    pub(super) own: bool,
    pub(super) guest: bool,
    pub(super) evicts: bool,
    pub(super) max_inflight: Option<u32>,
    pub(super) since: Moment,
    pub(super) arrival: u64,
}

impl Waiting {
    pub(super) fn new(waiter: Waiter, arrival: u64, since: Moment) -> Waiting {
        Waiting {
            id: waiter.id,
            class: waiter.class,
            principal: waiter.principal,
            cost: waiter.cost,
            reads: waiter.reads,
            load: waiter.load,
            may_load: waiter.may_load,
            own: waiter.own,
            guest: waiter.guest,
            evicts: waiter.evicts,
            max_inflight: waiter.max_inflight.map(|most| most.max(1)),
            since,
            arrival,
        }
    }

    pub(super) fn is_overdue(&self, now: Moment) -> bool {
        now.since(self.since) >= PATIENCE
    }

    pub(super) fn urgency(&self, now: Moment) -> Urgency {
        if self.is_overdue(now) {
            Urgency::Overdue(self.arrival)
        } else {
            Urgency::Class(self.class)
        }
    }
}

/// How much a load is wanted, most urgent first: who waited too long, by arrival; then by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    Overdue(u64),
    Class(Class),
}

impl Lane {
    pub(super) fn new(target: Target, now: Moment) -> Lane {
        Lane {
            target,
            memory: None,
            loading: false,
            solo: false,
            others: 0,
            touched: now,
            running: Vec::new(),
            waiting: Vec::new(),
        }
    }

    pub(super) fn in_memory(&self, now: Moment) -> bool {
        self.memory.as_ref().is_some_and(|memory| {
            !self.running.is_empty() || memory.expires.is_none_or(|at| at > now)
        })
    }

    /// Forgets what the engine has let go by now.
    pub(super) fn expire(&mut self, now: Moment) {
        if !self.in_memory(now) {
            self.memory = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_none() && !self.loading && self.running.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn slots(&self, slots: u32) -> usize {
        if self.solo { 1 } else { slots as usize }
    }

    /// Compares with what the engine said at `asked`, if nothing has happened here since. Even a
    /// lane in use may be gone: then what was started here waits inside the engine for a load.
    pub(super) fn observe(&mut self, row: Option<&Seen>, asked: Moment) {
        if self.loading || self.touched >= asked {
            return;
        }
        let Some(memory) = &mut self.memory else { return };
        let same = |row: &&Seen| {
            memory.num_ctx.is_none() || row.num_ctx.is_none() || memory.num_ctx == row.num_ctx
        };
        match row.filter(same) {
            Some(row) => {
                memory.num_ctx = row.num_ctx.or(memory.num_ctx);
                memory.expires = row.expires;
            }
            None => self.memory = None,
        }
    }

    /// How long the load takes that its waiters want.
    pub(super) fn load_time(&self) -> Duration {
        self.waiting.iter().map(|w| w.load).max().unwrap_or_default()
    }

    /// When the last request that runs here will have ended; `None` if none runs.
    pub(super) fn drained_in(&self, now: Moment) -> Option<Duration> {
        self.running.iter().map(|r| left(r.cost, now.since(r.since))).max()
    }

    /// When all who run and wait here will have ended.
    pub(super) fn idle_in(&self, slots: u32, now: Moment) -> Duration {
        let mut ends = self.ends(slots, now);
        for waiter in &self.waiting {
            if let Some(first) = ends.iter_mut().min() {
                *first += self.cost(waiter.cost, slots);
            }
        }
        ends.into_iter().max().unwrap_or_default()
    }

    /// When each slot is free, if nobody waited.
    fn ends(&self, slots: u32, now: Moment) -> Vec<Duration> {
        let mut ends: Vec<Duration> =
            self.running.iter().map(|r| self.work_left(r, slots, now)).collect();
        ends.resize(self.slots(slots).max(ends.len()), Duration::ZERO);
        ends
    }

    /// What a request costs here when as many run beside it as there are, on other models too:
    /// they share the machine.
    fn cost(&self, lone: Duration, slots: u32) -> Duration {
        let beside = (self.running.len() + self.waiting.len()).clamp(1, self.slots(slots));
        lone.mul_f64(((beside + self.others) as f64).powf(SHARING))
    }

    fn work_left(&self, run: &Running, slots: u32, now: Moment) -> Duration {
        left(self.cost(run.cost, slots), now.since(run.since))
    }

    /// When the first of the guests that run here will have ended; `None` if none runs.
    pub(super) fn first_guest_ends_in(&self, slots: u32, now: Moment) -> Option<Duration> {
        let guests = self.running.iter().filter(|run| run.guest);
        guests.map(|run| self.work_left(run, slots, now)).min()
    }

    /// When a slot is free for a request of `class` that comes in now, once the model is loaded.
    pub(super) fn slot_free_in(&self, class: Class, slots: u32, now: Moment) -> Duration {
        self.slot_free_behind(|w| w.class <= class, slots, now)
    }

    /// When a slot is free for one that waits here.
    pub(super) fn slot_free_for(&self, waiter: &Waiting, slots: u32, now: Moment) -> Duration {
        let place = (waiter.class, waiter.arrival);
        self.slot_free_behind(|w| (w.class, w.arrival) < place, slots, now)
    }

    fn slot_free_behind(
        &self,
        is_ahead: impl Fn(&Waiting) -> bool,
        slots: u32,
        now: Moment,
    ) -> Duration {
        let all = slots;
        let slots = self.slots(slots);
        let ahead = self.waiting.iter().filter(|w| is_ahead(w));
        if self.running.len() < slots && ahead.clone().count() < slots - self.running.len() {
            return Duration::ZERO;
        }
        let mut ends = self.ends(all, now);
        for waiter in ahead {
            if let Some(first) = ends.iter_mut().min() {
                *first += self.cost(waiter.cost, all);
            }
        }
        // With fewer slots than requests running, the last of them to end frees none.
        ends.sort_unstable();
        ends.get(ends.len() - slots).copied().unwrap_or_default()
    }
}

/// What is left of something that was to take `predicted` and has taken `elapsed`. What is
/// overdue is never "done any moment": it needs a quarter more of what it was to take, or has
/// taken. The longer an answer has become, the longer it will go on.
pub(super) fn left(predicted: Duration, elapsed: Duration) -> Duration {
    predicted.saturating_sub(elapsed).max(predicted.max(elapsed) / 4)
}
