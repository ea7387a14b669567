//! Who sends requests where: ours, those it is compared with, and the one who knows everything.

use rand::Rng;

use super::world::{Event, Place, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The product's choice, queue and moves.
    Ours,
    Random,
    LeastConnections,
    P2cEwma,
    /// Those with a free slot, of them those that have it in memory, of them the fewest open
    /// requests by true speed.
    LoadedFirst,
    /// Who will have answered first in truth, if nobody else came.
    Omniscient,
    /// The same, looking again every second while a request waits.
    OmniscientMoves,
}

impl Policy {
    pub(crate) const ALL: [Policy; 7] = [
        Policy::Ours,
        Policy::Random,
        Policy::LeastConnections,
        Policy::P2cEwma,
        Policy::LoadedFirst,
        Policy::Omniscient,
        Policy::OmniscientMoves,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Policy::Ours => "tailherd",
            Policy::Random => "random",
            Policy::LeastConnections => "least-connections",
            Policy::P2cEwma => "p2c-ewma",
            Policy::LoadedFirst => "loaded-first-true-weights",
            Policy::Omniscient => "omniscient",
            Policy::OmniscientMoves => "omniscient-moves",
        }
    }
}

/// The omniscient moves a request for any gain above this.
const GAIN: f64 = 0.1;

impl World<'_> {
    /// Sends a request that is nowhere.
    pub(crate) fn dispatch(&mut self, request: usize) {
        let node = match self.setting.policy {
            Policy::Ours => return self.dispatch_ours(request, None),
            Policy::Omniscient | Policy::OmniscientMoves => self.best_in_truth(request, None).0,
            rival => self.pick(rival, request),
        };
        let sent = self.now;
        let place = Place {
            node,
            sent,
            entered: false,
            first_token: 0.0,
            wait: 0.0,
            reads: 0.0,
            writes: 0.0,
            budget: None,
            loads: false,
        };
        self.send(request, place);
    }

    /// After how long a request that waits is looked at again, if ever.
    pub(crate) fn next_look(&mut self) -> Option<f64> {
        match self.setting.policy {
            Policy::Ours => Some(tailherd::balance::moves::next_look(&mut self.rng).as_secs_f64()),
            Policy::OmniscientMoves => Some(1.0),
            _ => None,
        }
    }

    pub(crate) fn look(&mut self, request: usize) {
        match self.setting.policy {
            Policy::Ours => self.look_ours(request),
            Policy::OmniscientMoves => self.look_in_truth(request),
            _ => {}
        }
    }

    /// Nodes that have a request's model, as far as its origin knows in reach. Never empty.
    fn eligible(&self, request: usize) -> Vec<usize> {
        let r = &self.requests[request];
        let has = |node: &usize| self.fleet.has(*node, r.job.model);
        let all: Vec<usize> = (0..self.fleet.len()).filter(has).collect();
        let alive: Vec<usize> =
            all.iter().copied().filter(|n| self.is_alive(r.origin, *n)).collect();
        if alive.is_empty() { all } else { alive }
    }

    /// Whether an origin has no reason to think that a node is out of reach.
    pub(crate) fn is_alive(&self, origin: usize, node: usize) -> bool {
        let Some((_, since)) = self.gone.filter(|_| !self.reaches(origin, node)) else {
            return true;
        };
        self.now < since + super::world::NOTICED && !self.origins[origin].has_lost(node, since)
    }

    fn pick(&mut self, policy: Policy, request: usize) -> usize {
        let nodes = self.eligible(request);
        let r = &self.requests[request];
        let (origin, model) = (&self.origins[r.origin], r.job.model);
        let mut draw = || nodes[self.rng.random_range(0..nodes.len())];
        match policy {
            Policy::P2cEwma => {
                let (a, b) = (draw(), draw());
                let cost = |n| origin.ewma_cost(n, self.now);
                if cost(a) <= cost(b) { a } else { b }
            }
            Policy::LeastConnections => least(&nodes, draw(), |n| origin.pending(n) as f64),
            Policy::LoadedFirst => {
                let free = |n: &usize| origin.pending(*n) < self.fleet.machines[*n].slots as usize;
                let warm = |n: &usize| {
                    self.nodes[*n].heard(self.now, 0.0).is_some_and(|r| r.rows[model].1.loaded)
                };
                let speed = |n: usize| self.fleet.machines[n].decode;
                let of = |nodes: Vec<usize>| {
                    least(&nodes, usize::MAX, |n| (origin.pending(n) + 1) as f64 / speed(n))
                };
                let idle: Vec<usize> = nodes.iter().copied().filter(free).collect();
                let ready: Vec<usize> = idle.iter().copied().filter(warm).collect();
                match () {
                    () if !ready.is_empty() => of(ready),
                    () if !idle.is_empty() => of(idle),
                    () => of(nodes.clone()),
                }
            }
            _ => draw(),
        }
    }

    /// The node where a request will have ended first, and when its origin will have the end.
    fn best_in_truth(&self, request: usize, but: Option<usize>) -> (usize, f64) {
        let r = &self.requests[request];
        let nodes = self.eligible(request);
        let mut best = (nodes[0], f64::INFINITY);
        for node in nodes.into_iter().filter(|n| Some(*n) != but) {
            let way = self.rtt[r.origin][node] / 2.0;
            let mut engine = self.nodes[node].engine.clone();
            engine.submit(self.job_at(request, node), self.now + way);
            let end = engine.ends(r.job.id) + way;
            if end < best.1 {
                best = (node, end);
            }
        }
        best
    }

    fn look_in_truth(&mut self, request: usize) {
        let r = &self.requests[request];
        let Some(place) = r.place else { return };
        let (id, node, attempt) = (r.job.id, place.node, r.attempt);
        if place.entered && self.nodes[node].engine.runs(id) {
            return;
        }
        if place.entered {
            let way = self.rtt[r.origin][node] / 2.0;
            let here = self.nodes[node].engine.clone().ends(id) + way;
            let (there, end) = self.best_in_truth(request, Some(node));
            if end + GAIN < here && self.reaches(r.origin, node) {
                self.nodes[node].cancel(id, self.now);
                self.touch(node);
                self.requests[request].tries.moves += 1;
                self.send(request, Place { node: there, sent: self.now, entered: false, ..place });
                return;
            }
        }
        self.at(self.now + 1.0, Event::Look { request, attempt });
    }
}

/// The node with the least cost; `first` wins a tie.
fn least(nodes: &[usize], first: usize, cost: impl Fn(usize) -> f64) -> usize {
    let order = |a: &usize, b: &usize| {
        cost(*a).total_cmp(&cost(*b)).then((*a != first).cmp(&(*b != first)))
    };
    nodes.iter().copied().min_by(order).unwrap_or(0)
}
