//! The simulation: sessions ask, nodes answer, messages take their time.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tailherd::balance::moves::Tries;
use tailherd::types::{Class, Timing};

use super::chance;
use super::fleet::Fleet;
use super::node::{Door, Node, Row};
use super::origin::{Open, Origin};
use super::policy::Policy;
use super::server::{Job, Said};
use super::trace::Session;

/// After how long whatever is not answered counts as answered, beyond the simulated time.
const AFTER: f64 = 3.0 * 3600.0;
/// A connection to a node that is gone fails after this.
const CONNECT: f64 = 3.0;
/// Two missed probes.
pub(crate) const NOTICED: f64 = 4.0;
/// What was lost with a node is sent again after this.
const LOST: f64 = 10.0;
/// How often a gate asks its own engine what it has in memory.
const OBSERVE: f64 = 2.0;
/// How wrong the estimate of a prompt's length is, and how uneven machines are.
const ESTIMATE_ERROR: f64 = 0.2;
const RATE_ERROR: f64 = 0.1;
/// Requests of a session.
pub(crate) const TURNS: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The fastest node is five times slower for 15 minutes.
    Slow,
    /// The fastest node is out of reach for 5 minutes.
    Blackhole,
}

#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) policy: Policy,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    /// Reports come every so many seconds; `None`: as the program sends them.
    pub(crate) report_interval: Option<f64>,
    pub(crate) fault: Option<Fault>,
    /// Other draws among near-equals, over the same arrivals.
    pub(crate) draw: u64,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) session: usize,
    turn: usize,
    pub(crate) origin: usize,
    /// As the engine of no particular node sees it.
    pub(crate) job: Job,
    /// Its prompt's length as the origin estimates it.
    pub(crate) prompt: f64,
    pub(crate) arrived: f64,
    pub(crate) tries: Tries,
    /// Counts attempts; what is about an older one is void.
    pub(crate) attempt: u32,
    pub(crate) place: Option<Place>,
    pub(crate) first: Option<f64>,
    pub(crate) done: Option<f64>,
}

/// Where a request was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) sent: f64,
    /// It has arrived and was let in.
    pub(crate) entered: bool,
    /// Seconds to the first token, and to the start, as predicted when it was sent.
    pub(crate) first_token: f64,
    pub(crate) wait: f64,
    /// Seconds that its prompt is read, and its answer written.
    pub(crate) reads: f64,
    pub(crate) writes: f64,
    pub(crate) budget: Option<std::time::Duration>,
    /// It was sent to be loaded for.
    pub(crate) loads: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Arrive { session: usize, turn: usize },
    Deliver { request: usize, attempt: u32 },
    Refused { request: usize, attempt: u32, row: Row },
    Withdraw { request: usize, attempt: u32 },
    Withdrawn { request: usize, attempt: u32 },
    Look { request: usize, attempt: u32 },
    Again { request: usize },
    Tick { node: usize, version: u64 },
    Report,
    Tell { node: usize },
    Observe,
    FaultBegins,
    FaultEnds,
}

/// How wrong the length of a request's prompt is estimated.
pub(crate) fn estimate(seed: u64, request: u64) -> f64 {
    chance::about_one(seed, request, 1, ESTIMATE_ERROR)
}

/// How much faster than usual a request runs at a node.
pub(crate) fn luck(seed: u64, request: u64, node: usize) -> f64 {
    chance::about_one(seed, request * 1000 + node as u64, 2, RATE_ERROR)
}

impl Request {
    /// How long it will keep a node busy, as its origin knows: all of its work until its answer
    /// begins, and what is overdue is never "done any moment".
    pub(crate) fn left(&self, place: &Place, now: f64) -> f64 {
        match self.first.filter(|heard| *heard <= now) {
            Some(first) => (place.writes - (now - first)).max(0.25),
            None => place.reads + place.writes,
        }
    }
}

struct Entry {
    at: f64,
    number: u64,
    event: Event,
}

pub(crate) struct World<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) setting: Setting,
    sessions: &'a [Session],
    pub(crate) rtt: Vec<Vec<f64>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) requests: Vec<Request>,
    pub(crate) rng: SmallRng,
    pub(crate) now: f64,
    /// What each sidecar last said it has open at bare nodes, and for how long that keeps them
    /// busy: by origin, node and model.
    pub(crate) shared: Vec<Vec<Vec<(u32, f64)>>>,
    /// The node that is out of reach, and since when.
    pub(crate) gone: Option<(usize, f64)>,
    index: HashMap<u64, usize>,
    heap: BinaryHeap<Entry>,
    numbers: u64,
    versions: Vec<u64>,
    /// When each node last looked whether it has news, and whether it is about to.
    looked: Vec<(f64, bool)>,
    timing: Timing,
    principals: Vec<Arc<str>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(fleet: &'a Fleet, sessions: &'a [Session], setting: Setting) -> World<'a> {
        let seed = setting.seed;
        let gated = |node: usize| setting.policy == Policy::Ours && !fleet.machines[node].bare;
        World {
            rtt: fleet.round_trips(seed),
            nodes: (0..fleet.len()).map(|n| Node::new(fleet, n, gated(n), seed)).collect(),
            origins: (0..fleet.len()).map(|_| Origin::new(fleet)).collect(),
            requests: Vec::new(),
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed ^ (setting.draw << 32)),
            now: 0.0,
            shared: vec![vec![vec![(0, 0.0); fleet.models.len()]; fleet.len()]; fleet.len()],
            gone: None,
            index: HashMap::new(),
            heap: BinaryHeap::new(),
            numbers: 0,
            versions: vec![0; fleet.len()],
            looked: vec![(0.0, false); fleet.len()],
            timing: Timing::default(),
            principals: (0..fleet.len()).map(|n| Arc::from(format!("user-{n}"))).collect(),
            fleet,
            setting,
            sessions,
        }
    }

    /// Runs to the end and gives what became of each request.
    pub(crate) fn run(mut self) -> (Vec<Request>, u64, f64) {
        for (session, s) in self.sessions.iter().enumerate() {
            self.at(s.start, Event::Arrive { session, turn: 0 });
        }
        self.at(0.0, Event::Report);
        self.at(0.0, Event::Observe);
        if let Some(fault) = self.setting.fault {
            let half = self.setting.seconds / 2.0;
            self.at(half, Event::FaultBegins);
            let minutes = if fault == Fault::Slow { 15.0 } else { 5.0 };
            self.at(half + minutes * 60.0, Event::FaultEnds);
        }
        let last = self.setting.seconds + AFTER;
        let mut loads = None;
        while let Some(entry) = self.heap.pop() {
            if loads.is_none() && entry.at >= self.setting.seconds {
                loads = Some(self.nodes.iter().map(|n| n.engine.loads).sum());
            }
            if entry.at > last || (loads.is_some() && self.all_answered()) {
                break;
            }
            self.now = entry.at;
            self.happen(entry.event);
        }
        let loads = loads.unwrap_or_else(|| self.nodes.iter().map(|n| n.engine.loads).sum());
        (self.requests, loads, last)
    }

    fn all_answered(&self) -> bool {
        self.requests.iter().rev().all(|r| r.done.is_some())
    }

    pub(crate) fn at(&mut self, at: f64, event: Event) {
        self.numbers += 1;
        self.heap.push(Entry { at, number: self.numbers, event });
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Arrive { session, turn } => self.arrive(session, turn),
            Event::Deliver { request, attempt } => self.deliver(request, attempt),
            Event::Refused { request, attempt, row } => self.refused(request, attempt, row),
            Event::Withdraw { request, attempt } => self.withdraw(request, attempt),
            Event::Withdrawn { request, attempt } => {
                if self.is_current(request, attempt) {
                    self.requests[request].tries.moves += 1;
                    self.dispatch(request);
                }
            }
            Event::Look { request, attempt } => {
                if self.is_current(request, attempt) {
                    self.look(request);
                }
            }
            Event::Again { request } => self.dispatch(request),
            Event::Tick { node, version } => {
                if self.versions[node] == version {
                    self.nodes[node].engine.advance(now);
                    self.touch(node);
                }
            }
            Event::Report => {
                (0..self.nodes.len()).for_each(|n| self.tell(n, true));
                self.share();
                (0..self.nodes.len()).for_each(|n| self.touch(n));
                if now < self.setting.seconds + AFTER {
                    let busy = self.timing.report_busy.as_secs_f64();
                    let pause = self.setting.report_interval.unwrap_or(busy);
                    self.at(now + pause, Event::Report);
                }
            }
            Event::Tell { node } => {
                self.tell(node, false);
                self.touch(node);
            }
            Event::Observe => {
                for node in 0..self.nodes.len() {
                    self.nodes[node].observe(now);
                    self.touch(node);
                }
                if now < self.setting.seconds + AFTER {
                    self.at(now + OBSERVE, Event::Observe);
                }
            }
            Event::FaultBegins => self.fault(true),
            Event::FaultEnds => self.fault(false),
        }
    }

    /// A node looks at its gate, and tells what has changed.
    fn tell(&mut self, node: usize, due: bool) {
        self.looked[node] = (self.now, false);
        self.nodes[node].engine.advance(self.now);
        self.nodes[node].report(self.now, self.fleet.models.len(), due);
    }

    /// Something happened at a node's gate: it looks soon whether that is news, as seldom as the
    /// program does.
    fn tell_soon(&mut self, node: usize) {
        let (last, soon) = self.looked[node];
        if self.setting.report_interval.is_none() && !soon {
            let spacing = self.timing.report_spacing.as_secs_f64();
            self.looked[node].1 = true;
            self.at(self.now.max(last + spacing), Event::Tell { node });
        }
    }

    /// Each sidecar says in its report what it has open at nodes that say nothing themselves.
    /// (That this is heard at once and not half a round trip later changes nothing at 2 s.)
    fn share(&mut self) {
        for (origin, rows) in self.origins.iter().zip(&mut self.shared) {
            rows.iter_mut().for_each(|row| row.fill((0, 0.0)));
            for (request, open) in &origin.open {
                let row = &mut rows[open.place.node][open.model];
                row.0 += 1;
                row.1 += self.requests[*request].left(&open.place, self.now);
            }
        }
    }

    fn is_current(&self, request: usize, attempt: u32) -> bool {
        let r = &self.requests[request];
        r.attempt == attempt && r.place.is_some() && r.done.is_none()
    }

    fn arrive(&mut self, session: usize, turn: usize) {
        let s = &self.sessions[session];
        let t = s.turns[turn];
        let id = session as u64 * TURNS + turn as u64;
        let seed = self.setting.seed;
        let job = Job {
            id,
            model: s.model,
            session: session as u64,
            prompt: t.prompt,
            fresh: t.fresh,
            output: t.output,
            luck: 1.0,
            preload: false,
        };
        self.requests.push(Request {
            session,
            turn,
            origin: s.origin,
            job,
            prompt: t.prompt * estimate(seed, id),
            arrived: self.now,
            tries: Tries::default(),
            attempt: 0,
            place: None,
            first: None,
            done: None,
        });
        let request = self.requests.len() - 1;
        self.index.insert(id, request);
        self.dispatch(request);
    }

    /// A request as one node's engine will find it.
    pub(crate) fn job_at(&self, request: usize, node: usize) -> Job {
        let job = self.requests[request].job;
        Job { luck: luck(self.setting.seed, job.id, node), ..job }
    }

    /// Sends it where its origin's policy says.
    pub(crate) fn send(&mut self, request: usize, place: Place) {
        let r = &mut self.requests[request];
        r.attempt += 1;
        r.place = Some(place);
        let (attempt, way) = (r.attempt, self.rtt[r.origin][place.node] / 2.0);
        self.origins[r.origin].open.insert(request, Open { model: r.job.model, place });
        self.at(self.now + way, Event::Deliver { request, attempt });
        if let Some(look) = self.next_look() {
            self.at(self.now + look, Event::Look { request, attempt });
        }
    }

    fn deliver(&mut self, request: usize, attempt: u32) {
        if !self.is_current(request, attempt) {
            return;
        }
        let r = &self.requests[request];
        let Some(place) = r.place else { return };
        let (origin, node, prompt) = (r.origin, place.node, r.prompt);
        if !self.reaches(origin, node) {
            self.origins[origin].lost(node, self.now);
            self.take_back(request);
            self.at(place.sent + CONNECT, Event::Again { request });
            return;
        }
        let job = self.job_at(request, node);
        let class = if origin == node { Class::Own } else { Class::Interactive };
        let who = self.principals[origin].clone();
        let now = self.now;
        let door = self.nodes[node].enter(job, prompt, class, &who, place.budget, now);
        match door {
            Door::In => {
                if let Some(place) = &mut self.requests[request].place {
                    place.entered = true;
                }
            }
            Door::Refused => {
                let row = self.nodes[node].row(job.model, class, now);
                let way = self.rtt[origin][node] / 2.0;
                self.at(now + way, Event::Refused { request, attempt, row });
            }
        }
        self.touch(node);
    }

    fn refused(&mut self, request: usize, attempt: u32, row: Row) {
        if !self.is_current(request, attempt) {
            return;
        }
        let r = &mut self.requests[request];
        r.tries.refusals += 1;
        let (origin, model) = (r.origin, r.job.model);
        if let Some(place) = r.place {
            let said = self.now - self.rtt[origin][place.node] / 2.0;
            let now = self.now;
            self.origins[origin].row_later(place.node, model, said, now, row);
        }
        self.dispatch(request);
    }

    fn withdraw(&mut self, request: usize, attempt: u32) {
        if !self.is_current(request, attempt) {
            return;
        }
        let r = &self.requests[request];
        let Some(place) = r.place else { return };
        let (id, origin, node) = (r.job.id, r.origin, place.node);
        if !self.reaches(origin, node) || !self.nodes[node].holds(id) {
            return;
        }
        self.nodes[node].cancel(id, self.now);
        self.touch(node);
        let way = self.rtt[origin][node] / 2.0;
        self.at(self.now + way, Event::Withdrawn { request, attempt });
    }

    /// Its origin no longer waits for where it was sent.
    pub(crate) fn take_back(&mut self, request: usize) {
        let r = &mut self.requests[request];
        r.place = None;
        self.origins[r.origin].open.remove(&request);
    }

    /// Takes in what an engine has done, and what follows from it.
    pub(crate) fn touch(&mut self, node: usize) {
        loop {
            let said = self.nodes[node].engine.take_said();
            if said.is_empty() {
                break;
            }
            for (at, said) in said {
                match said {
                    Said::FirstByte(id) => self.first_byte(node, id, at),
                    Said::Loaded(id) => self.nodes[node].loaded(id, at),
                    Said::Done(id, numbers) => {
                        self.nodes[node].done(id, &numbers, at);
                        self.done(node, id, &numbers, at);
                    }
                }
            }
        }
        if self.nodes[node].has_moved() {
            self.tell_soon(node);
        }
        self.versions[node] += 1;
        if let Some(next) = self.nodes[node].engine.next() {
            let version = self.versions[node];
            self.at(next, Event::Tick { node, version });
        }
    }

    fn find(&self, id: u64) -> Option<usize> {
        self.index.get(&id).copied()
    }

    fn first_byte(&mut self, node: usize, id: u64, at: f64) {
        self.nodes[node].began(id, at);
        let Some(request) = self.find(id) else { return };
        let r = &mut self.requests[request];
        let (origin, model) = (r.origin, r.job.model);
        let heard = at + self.rtt[origin][node] / 2.0;
        r.first = Some(heard);
        // The head of each answer has a row in it.
        let row = self.nodes[node].row(model, Class::Interactive, at);
        self.origins[origin].row_later(node, model, at, heard, row);
    }

    fn done(&mut self, node: usize, id: u64, numbers: &super::server::Numbers, at: f64) {
        let Some(request) = self.find(id) else { return };
        let heard = at + self.rtt[self.requests[request].origin][node] / 2.0;
        let r = &mut self.requests[request];
        r.done = Some(heard);
        let (session, turn, origin) = (r.session, r.turn, r.origin);
        let latency = heard - r.arrived;
        let begun = self.known(origin, node, numbers.model).map_or(0, |known| known.row.begun);
        let place = (node, begun);
        self.origins[origin].answered(request, place, session, numbers, latency, heard);
        if let Some(next) = self.sessions[session].turns.get(turn + 1) {
            let at = heard + next.think;
            if at < self.setting.seconds {
                self.at(at, Event::Arrive { session, turn: turn + 1 });
            }
        }
    }

    /// Whether messages pass between two nodes.
    pub(crate) fn reaches(&self, a: usize, b: usize) -> bool {
        a == b || self.gone.is_none_or(|(gone, _)| gone != a && gone != b)
    }

    fn fault(&mut self, begins: bool) {
        let speed = |n: &usize| self.fleet.machines[*n].decode;
        let fastest = (0..self.fleet.len()).max_by(|a, b| speed(a).total_cmp(&speed(b)));
        let Some(node) = fastest else { return };
        let now = self.now;
        if self.setting.fault == Some(Fault::Slow) {
            let engine = &mut self.nodes[node].engine;
            engine.advance(now);
            engine.slower = if begins { 5.0 } else { 1.0 };
            self.touch(node);
            return;
        }
        self.gone = begins.then_some((node, now));
        if !begins {
            return;
        }
        for request in 0..self.requests.len() {
            let r = &self.requests[request];
            let Some(place) = r.place.filter(|_| r.done.is_none()) else { continue };
            if place.entered && (place.node == node) != (r.origin == node) {
                self.nodes[place.node].cancel(r.job.id, now);
                self.take_back(request);
                self.at(now + LOST, Event::Again { request });
            }
        }
        (0..self.nodes.len()).for_each(|n| self.touch(n));
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest: that is what a heap gives first.
    fn cmp(&self, other: &Entry) -> Ordering {
        other.at.total_cmp(&self.at).then(other.number.cmp(&self.number))
    }
}
