//! The queue in front of one engine, as a pure machine.
//!
//! What flows in: requests that want the engine, what became of them, what the engine says is in
//! memory, and the moment of each. What flows out: which of them start, which model is loaded
//! next, which are refused. It never waits and never reads a clock: `gate` turns its words into
//! deeds, and a simulator can too.
//!
//! The rules, in the order in which they bind:
//!
//! 1. At most `slots` requests run per loaded model (an embedding-only model: one). Ollama would
//!    take more, but lines them up unseen, first come first served.
//! 2. What an engine keeps in memory is one [`Target`]: weights and the options that make Ollama
//!    start its runner anew. A request runs only on its own target. Weights held under other
//!    options are loaded anew, once their last request has ended.
//! 3. One load at a time. A load goes on although all who wanted it have left.
//! 4. Classes are strict ([`Class::Own`] first), also towards a reload: nobody is let in on weights
//!    that a better class waits to have reloaded. Inside a class principals share by predicted
//!    seconds (start-time fair queueing, Goyal et al. 1996), and each runs at most its
//!    `max_inflight`.
//! 5. No load starves. A request that has waited [`PATIENCE`] is *overdue*: overdue requests are
//!    loaded for in the order of their arrival, whatever their class, and while one waits for
//!    weights held under other options, only older ones are let in on those. A load that takes [`PATIENCE`] longer than twice its
//!    prediction is taken to wait inside Ollama for a busy model to go (Ollama itself would let
//!    that one take new requests for ever): admission to all other models stops until each has
//!    drained once.
//! 6. Guests run at most as many at once as they may together, and who may not push out what
//!    the owner has in memory has loaded only what surely fits beside it ([`OWNED`]).
//! 7. Prompts are read one after the other, shorter ones first (`beside.rs`).
//! 8. The queue is bounded; a quarter of it is kept for this node's own requests. Who is refused
//!    learns the predicted wait.

mod beside;
mod lane;
mod owner;
mod room;
#[cfg(test)]
mod tests;
mod view;
mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Class, Moment};
use lane::{Lane, Memory, Running, Urgency, Waiting};
pub use owner::OWNED;
use owner::Owner;
use room::Room;
pub(super) use view::GOES_ON;
pub use view::Standing;
pub use words::{
    Action, Entry, LoadId, LoadPlan, LoadWhy, Refusal, Row, Seen, Target, Waiter, WaiterId, Why,
};

/// After how long of waiting a load makes busy models drain for it. Not earlier: a trial of 20 s
/// cost 15 % of the mean and 44 % of the p99 time to first token in the simulation, since moving
/// away is cheaper.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The queue of one engine.
#[derive(Debug)]
pub struct Queue {
    /// Whether the engine has to be told to load (Ollama), or sees to it itself.
    loads: bool,
    slots: u32,
    limit: usize,
    lanes: Vec<Lane>,
    /// In memory, but put there by somebody else, so that the options are not known.
    foreign: Vec<Seen>,
    load: Option<Loading>,
    room: Room,
    owner: Owner,
    /// Most requests of guests that run at once.
    guests: Option<u32>,
    /// The last load, until the engine's list tells what it pushed out.
    settled: Option<Settled>,
    accounts: HashMap<Arc<str>, Account>,
    /// Requests that ever began, by weights.
    begun: HashMap<Arc<str>, u32>,
    /// Virtual time of each class: the start tag of the last request that began.
    virtual_time: [f64; 3],
    waiting: usize,
    arrivals: u64,
    next_load: u64,
}

#[derive(Debug)]
struct Loading {
    id: LoadId,
    weights: Arc<str>,
    since: Moment,
    predicted: Duration,
    /// All other models have been idle at least once since it was found to be late.
    drained: bool,
    /// What was in memory when it began.
    beside: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Settled {
    at: Moment,
    weights: Arc<str>,
    beside: Vec<Arc<str>>,
}

#[derive(Debug, Default)]
struct Account {
    running: u32,
    waiting: u32,
    /// Finish tags, by class.
    finish: [f64; 3],
}

/// Smallest first: class, start tag of the principal, arrival.
type Rank = (Class, f64, u64);

impl Queue {
    /// An empty queue. `loads`: the engine is told to load before it serves (Ollama); otherwise
    /// every model counts as loaded. `limit`: most requests that wait.
    pub fn new(loads: bool, slots: u32, limit: usize) -> Queue {
        Queue {
            loads,
            slots: slots.max(1),
            limit,
            lanes: Vec::new(),
            foreign: Vec::new(),
            load: None,
            room: Room::new(),
            owner: Owner::default(),
            guests: None,
            settled: None,
            accounts: HashMap::new(),
            begun: HashMap::new(),
            virtual_time: [0.0; 3],
            waiting: 0,
            arrivals: 0,
            next_load: 0,
        }
    }

    /// A request comes in. It may make room for others in turn (its principal now runs as many as
    /// it may, say); they hear of it with the next event.
    pub fn enter(&mut self, waiter: Waiter, now: Moment) -> Entry {
        for lane in &mut self.lanes {
            lane.expire(now);
        }
        self.note_drained(now);
        self.note_asked(&waiter, now);
        let mut predicted = self.waits(&waiter.target, waiter.class, waiter.load, now);
        if waiter.guest {
            predicted = predicted.max(self.guest_in(now));
        }
        let refuse = |why| Entry::Refuse(Refusal { why, retry_after: predicted });
        let may_load = waiter.may_load && (waiter.evicts || self.spares_owner(&waiter.target, now));
        if !may_load && !self.may_wait_unloaded(&waiter.target, now) {
            return refuse(Why::NotLoaded);
        }
        if waiter.budget.is_some_and(|budget| predicted > budget) {
            return refuse(Why::Wait);
        }

        let id = waiter.id;
        let class = waiter.class;
        let lane = self.push(waiter, now);
        if self.next_start(now).is_some_and(|(l, w)| self.lanes[l].waiting[w].id == id) {
            let at = self.lanes[lane].waiting.len() - 1;
            self.start(lane, at, now);
            return Entry::Start;
        }
        if self.waiting > self.room(class) {
            self.take(lane, self.lanes[lane].waiting.len() - 1);
            self.tidy();
            return refuse(Why::Full);
        }
        match self.begin_load(now) {
            Some(plan) => Entry::Load(plan),
            None => Entry::Wait,
        }
    }

    /// A running request ended.
    pub fn ended(&mut self, id: WaiterId, now: Moment) -> Vec<Action> {
        for lane in &mut self.lanes {
            if let Some(at) = lane.running.iter().position(|r| r.id == id) {
                let run = lane.running.swap_remove(at);
                lane.touched = now;
                if let Some(account) = self.accounts.get_mut(&run.principal) {
                    account.running = account.running.saturating_sub(1);
                }
                if run.own {
                    let weights = lane.target.weights.clone();
                    self.note_used(&weights, now);
                }
                self.count_others();
                break;
            }
        }
        self.settle(now)
    }

    /// A waiting request goes away. If it was started meanwhile, its slot is free again.
    pub fn withdraw(&mut self, id: WaiterId, now: Moment) -> Vec<Action> {
        let place =
            self.lanes.iter().enumerate().find_map(|(l, lane)| {
                lane.waiting.iter().position(|w| w.id == id).map(|at| (l, at))
            });
        match place {
            Some((lane, at)) => {
                self.take(lane, at);
                self.settle(now)
            }
            None => self.ended(id, now),
        }
    }

    /// A load ended. If it failed, all who waited for its target get [`Action::Failed`].
    pub fn loaded(&mut self, id: LoadId, ok: bool, now: Moment) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(load) = self.load.take_if(|load| load.id == id) else { return out };
        if ok {
            self.count_begun(&load.weights, self.slots);
            self.settled = Some(Settled { at: now, weights: load.weights, beside: load.beside });
        }
        if let Some(at) = self.lanes.iter().position(|lane| lane.loading) {
            let lane = &mut self.lanes[at];
            lane.loading = false;
            lane.touched = now;
            if ok {
                lane.memory = Some(Memory { since: now, ..Memory::default() });
            } else {
                while !self.lanes[at].waiting.is_empty() {
                    out.push(Action::Failed(self.take(at, 0).id));
                }
            }
        }
        out.append(&mut self.settle(now));
        out
    }

    /// What the engine says it has in memory, asked for at `asked`. What it does not name is no
    /// longer there, unless we have used it since.
    pub fn observed(&mut self, seen: &[Seen], asked: Moment, now: Moment) -> Vec<Action> {
        for lane in &mut self.lanes {
            let row = seen.iter().find(|s| s.weights == lane.target.weights);
            lane.observe(row, asked);
        }
        self.learn_room(seen, asked);
        self.foreign = seen
            .iter()
            .filter(|s| {
                !self.lanes.iter().any(|lane| {
                    lane.target.weights == s.weights && (lane.memory.is_some() || lane.loading)
                })
            })
            .cloned()
            .collect();
        self.settle(now)
    }

    /// Somebody had these weights unloaded: they go when their last request has ended.
    pub fn unloaded(&mut self, weights: &str, now: Moment) -> Vec<Action> {
        self.foreign.retain(|s| &*s.weights != weights);
        for lane in self.lanes.iter_mut().filter(|l| &*l.target.weights == weights) {
            if let Some(memory) = &mut lane.memory {
                memory.expires = Some(now);
            }
        }
        self.settle(now)
    }

    /// Another number of slots.
    pub fn set_slots(&mut self, slots: u32, now: Moment) -> Vec<Action> {
        self.slots = slots.max(1);
        self.settle(now)
    }

    /// Another bound of the queue; who waits already stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many requests run.
    pub fn running(&self) -> usize {
        self.lanes.iter().map(|lane| lane.running.len()).sum()
    }

    /// Lets everything happen that can happen now.
    fn settle(&mut self, now: Moment) -> Vec<Action> {
        let mut out = Vec::new();
        for lane in &mut self.lanes {
            lane.expire(now);
        }
        self.note_drained(now);
        while let Some((lane, at)) = self.next_start(now) {
            out.push(Action::Start(self.start(lane, at, now)));
        }
        if let Some(plan) = self.begin_load(now) {
            out.push(Action::Load(plan));
        }
        self.refuse_stranded(now, &mut out);
        self.tidy();
        out
    }

    fn push(&mut self, waiter: Waiter, now: Moment) -> usize {
        let lane = match self.lanes.iter().position(|lane| lane.target == waiter.target) {
            Some(lane) => lane,
            None => {
                self.lanes.push(Lane::new(waiter.target.clone(), now));
                self.lanes.len() - 1
            }
        };
        self.arrivals += 1;
        self.waiting += 1;
        self.accounts.entry(waiter.principal.clone()).or_default().waiting += 1;
        self.lanes[lane].solo = waiter.solo;
        self.lanes[lane].waiting.push(Waiting::new(waiter, self.arrivals, now));
        lane
    }

    /// Takes a waiter out of its lane.
    fn take(&mut self, lane: usize, at: usize) -> Waiting {
        let waiter = self.lanes[lane].waiting.remove(at);
        self.waiting -= 1;
        if let Some(account) = self.accounts.get_mut(&waiter.principal) {
            account.waiting = account.waiting.saturating_sub(1);
        }
        waiter
    }

    fn start(&mut self, lane: usize, at: usize, now: Moment) -> WaiterId {
        let waiter = self.take(lane, at);
        let class = waiter.class as usize;
        let account = self.accounts.entry(waiter.principal.clone()).or_default();
        let tag = account.finish[class].max(self.virtual_time[class]);
        // Even a request that costs nothing moves its principal behind the others.
        account.finish[class] = tag + waiter.cost.as_secs_f64().max(0.001);
        account.running += 1;
        self.virtual_time[class] = tag;
        let lane = &mut self.lanes[lane];
        lane.touched = now;
        if let Some(memory) = &mut lane.memory {
            // The engine counts its keep-alive anew; until it says so we do not know how long.
            memory.expires = None;
        }
        lane.running.push(Running {
            id: waiter.id,
            principal: waiter.principal,
            own: waiter.own,
            guest: waiter.guest,
            since: now,
            cost: waiter.cost,
            reads: waiter.reads,
            read: false,
        });
        let weights = lane.target.weights.clone();
        self.count_begun(&weights, 1);
        self.count_others();
        waiter.id
    }

    /// The waiter that may start next: its lane and its place there.
    fn next_start(&self, now: Moment) -> Option<(usize, usize)> {
        let mut best: Option<(Rank, usize, usize)> = None;
        let behind = self.class_behind(now);
        for (l, lane) in self.lanes.iter().enumerate() {
            let free = lane.running.len() < lane.slots(self.slots);
            if lane.waiting.is_empty() || !free || (self.loads && !lane.in_memory(now)) {
                continue;
            }
            let Some(rival) = self.rival(l, now) else { continue };
            for (w, waiter) in lane.waiting.iter().enumerate() {
                if rival.is_some_and(|rival| rival < waiter.urgency(now))
                    || self.is_capped(waiter)
                    || behind.is_some_and(|class| class < waiter.class)
                    || self.is_behind(waiter, now)
                {
                    continue;
                }
                let rank = (waiter.class, self.tag(waiter), waiter.arrival);
                if best.as_ref().is_none_or(|(b, _, _)| rank < *b) {
                    best = Some((rank, l, w));
                }
            }
        }
        best.map(|(_, l, w)| (l, w))
    }

    /// The most urgent request that waits for a lane's weights under other options: nobody less
    /// urgent is let in. `None` = nobody at all is, as a load waits for every other model to drain.
    fn rival(&self, at: usize, now: Moment) -> Option<Option<Urgency>> {
        if !self.loads {
            return Some(None);
        }
        let lane = &self.lanes[at];
        if self.load.as_ref().is_some_and(|load| {
            load.is_late(now) && !load.drained && load.weights != lane.target.weights
        }) {
            return None;
        }
        let same = |other: &&Lane| other.target.weights == lane.target.weights;
        let others = self.lanes.iter().enumerate().filter(|(l, _)| *l != at).map(|(_, l)| l);
        let urgencies = |lane: &Lane| {
            let can = |w: &&Waiting| self.can_load(w, &lane.target, now) && !self.is_capped(w);
            let waiters = lane.waiting.iter().filter(can);
            waiters.map(|w| w.urgency(now)).min()
        };
        let reload = others.clone().filter(same).filter_map(urgencies).min();
        // Whoever waits for memory is patient, but not for ever. And whatever was loaded has its
        // turn: many impatient ones would have it loaded and let go for one request each.
        let turn = lane.memory.as_ref().map_or(Duration::ZERO, |m| now.since(m.since));
        let room = others
            .filter(|_| turn >= PATIENCE)
            .filter(|l| !same(l) && !l.loading && !l.in_memory(now))
            .filter(|l| self.is_crowded_out(l, Some(lane)))
            .filter_map(urgencies)
            .filter(|urgency| matches!(urgency, Urgency::Overdue(_)))
            .min();
        Some(reload.into_iter().chain(room).min())
    }

    /// Whether what a lane would load does not fit beside what is in use, and this one.
    fn is_crowded_out(&self, lane: &Lane, with: Option<&Lane>) -> bool {
        let weights = &lane.target.weights;
        let with = with.filter(|with| with.running.is_empty()).into_iter();
        let mut busy = self.busy_beside(weights).chain(with).map(|l| &l.target.weights).peekable();
        // An engine with nothing to do has room for whatever it has room for at all.
        busy.peek().is_some() && !self.room.holds(busy.chain(std::iter::once(weights)))
    }

    fn learn_room(&mut self, seen: &[Seen], asked: Moment) {
        for one in seen {
            self.room.know(&one.weights, one.size);
        }
        let is_there = |weights: &Arc<str>| seen.iter().any(|s| s.weights == *weights);
        if let Some(last) = self.settled.take_if(|last| asked >= last.at)
            && is_there(&last.weights)
            && !last.beside.iter().all(is_there)
        {
            self.room.burst(last.beside.iter().chain(std::iter::once(&last.weights)));
        }
        self.room.held(seen.iter().map(|s| &s.weights));
    }

    /// Begins the load that comes next, if none is going on and one is wanted and can be made.
    fn begin_load(&mut self, now: Moment) -> Option<LoadPlan> {
        if !self.loads || self.load.is_some() {
            return None;
        }
        let mut best: Option<((Urgency, f64, u64), usize, usize)> = None;
        for (l, lane) in self.lanes.iter().enumerate() {
            if lane.waiting.is_empty()
                || lane.in_memory(now)
                || self.is_held(&lane.target)
                || self.is_crowded_out(lane, None)
            {
                continue;
            }
            let confirms = self.foreign_fits(&lane.target, now);
            for (w, waiter) in lane.waiting.iter().enumerate() {
                let can = confirms || self.can_load(waiter, &lane.target, now);
                if !can || self.is_capped(waiter) {
                    continue;
                }
                let rank = (waiter.urgency(now), self.tag(waiter), waiter.arrival);
                if best.as_ref().is_none_or(|(b, _, _)| rank < *b) {
                    best = Some((rank, l, w));
                }
            }
        }
        let (_, at, by) = best?;
        let target = self.lanes[at].target.clone();
        let confirms = self.foreign_fits(&target, now);
        let mut held = self.foreign.iter().any(|s| s.weights == target.weights);
        self.foreign.retain(|s| s.weights != target.weights);
        for lane in self.lanes.iter_mut().filter(|lane| lane.target.weights == target.weights) {
            held |= lane.in_memory(now);
            lane.memory = None;
        }
        let why = match (confirms, held) {
            (true, _) => LoadWhy::Confirm,
            (false, true) => LoadWhy::Reload,
            (false, false) => LoadWhy::Cold,
        };
        let others = self.lanes.iter().filter(|l| l.in_memory(now)).map(|l| &l.target.weights);
        let others = others.chain(self.foreign.iter().map(|s| &s.weights));
        let beside: Vec<Arc<str>> = others.cloned().collect();
        if !self.room.holds(beside.iter().chain(std::iter::once(&target.weights))) {
            // The engine lets idle ones go for it, and does not say which: those that stay are
            // in its next list.
            for lane in self.lanes.iter_mut().filter(|lane| lane.running.is_empty()) {
                lane.memory = None;
            }
        }
        let lane = &mut self.lanes[at];
        lane.loading = true;
        let id = LoadId(self.next_load);
        self.next_load += 1;
        self.load = Some(Loading {
            id,
            weights: target.weights.clone(),
            since: now,
            predicted: if confirms { Duration::ZERO } else { lane.waiting[by].load },
            drained: false,
            beside,
        });
        Some(LoadPlan { id, target, by: lane.waiting[by].id, why })
    }

    /// Whether requests run on these weights under other options.
    fn is_held(&self, target: &Target) -> bool {
        self.lanes.iter().any(|lane| {
            lane.target.weights == target.weights
                && lane.target != *target
                && !lane.running.is_empty()
        })
    }

    fn tag(&self, waiter: &Waiting) -> f64 {
        let class = waiter.class as usize;
        let finish = self.accounts.get(&waiter.principal).map_or(0.0, |a| a.finish[class]);
        finish.max(self.virtual_time[class])
    }

    fn room(&self, class: Class) -> usize {
        match class {
            Class::Own => self.limit,
            _ => self.limit - self.limit / 4,
        }
    }

    fn load_left(&self, now: Moment) -> Duration {
        let Some(load) = &self.load else { return Duration::ZERO };
        let elapsed = now.since(load.since);
        let left = lane::left(load.predicted, elapsed);
        // What should have ended by now probably waits for a busy model to go.
        let room = if elapsed > load.predicted {
            self.room_in(&load.weights, now) + load.predicted
        } else {
            Duration::ZERO
        };
        left.max(room)
    }

    fn note_drained(&mut self, now: Moment) {
        if let Some(load) = &mut self.load
            && load.is_late(now)
        {
            let others = self.lanes.iter().filter(|l| l.target.weights != load.weights);
            load.drained |= others.map(|l| l.running.len()).sum::<usize>() == 0;
        }
    }

    /// Forgets what is empty.
    fn tidy(&mut self) {
        self.lanes.retain(|lane| !lane.is_empty());
        // A principal's finish tag is its memory of what it had; with many principals those
        // that are idle lose it, which at worst lets one of them come first once.
        if self.accounts.len() > 64 {
            self.accounts.retain(|_, a| a.running > 0 || a.waiting > 0);
        }
    }
}

impl Loading {
    fn is_late(&self, now: Moment) -> bool {
        now.since(self.since) >= PATIENCE + 2 * self.predicted
    }
}
