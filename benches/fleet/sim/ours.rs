//! The product's choice, wait budget and moves, fed with what one of its sidecars would know.

use tailherd::balance::moves::{self, Silent, Waiting};
use tailherd::balance::prefix;
use tailherd::balance::rates::{UNSAID_LOAD_RATE, load_time};
use tailherd::balance::unsaid::{self, Mate};
use tailherd::balance::{self, Ask, Candidate, Choice};
use tailherd::types::Class;

use super::fleet::Lengths;
use super::node::{Row, moment};
use super::world::{Event, Place, World};

/// A report older than this is not believed, unless they come this seldom.
const BELIEVED: f64 = 10.0;

/// What a node has said of a model, as far as is known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    pub(super) row: Row,
    /// When it was said.
    said: f64,
    /// When its node was last heard.
    heard: f64,
}

impl World<'_> {
    pub(crate) fn dispatch_ours(&mut self, request: usize, but: Option<usize>) {
        let mut candidates = self.candidates(request);
        if candidates.len() > 1 {
            candidates.retain(|c| Some(c.index) != but);
        }
        let ask = self.ask(request);
        let choice = balance::choose(&candidates, &ask, moment(self.now), &mut self.rng);
        let Choice::Send(pick) = choice else { return };
        let t = pick.terms;
        let tries = self.requests[request].tries;
        let wait = t.wait + t.load;
        let place = Place {
            node: pick.index,
            sent: self.now,
            entered: false,
            first_token: t.rtt + wait + t.prefill,
            wait,
            reads: t.prefill,
            writes: t.decode,
            budget: moves::wait_budget(t.takes(), tries),
            loads: t.load > 0.0,
        };
        self.send(request, place);
    }

    fn ask(&self, request: usize) -> Ask {
        let r = &self.requests[request];
        let embeds = self.fleet.models[r.job.model].lengths == Lengths::Embed;
        Ask { prompt_tokens: r.prompt as u64, max_output: embeds.then_some(0), ..Ask::default() }
    }

    /// What a node is known to have said of a model.
    pub(super) fn known(&self, origin: usize, node: usize, model: usize) -> Option<Known> {
        let now = self.now;
        if origin == node {
            let row = self.nodes[node].row(model, Class::Own, now);
            return Some(Known { row, said: now, heard: now });
        }
        let way = self.rtt[origin][node] / 2.0;
        let report = self.nodes[node].heard(now, way).map(|report| {
            let (said, row) = report.rows[model];
            Known { row, said, heard: report.at }
        });
        let row = self.origins[origin].heard(node, model, now);
        let row = row.map(|(said, row)| Known { row, said, heard: said });
        match (report, row) {
            (Some(report), Some(row)) if row.said > report.said => {
                Some(Known { heard: row.heard.max(report.heard), ..row })
            }
            (None, row) => row,
            (report, _) => report,
        }
    }

    fn candidates(&self, request: usize) -> Vec<Candidate> {
        let model = self.requests[request].job.model;
        let nodes = (0..self.fleet.len()).filter(|node| self.fleet.has(*node, model));
        let mut all: Vec<Candidate> = nodes.map(|node| self.candidate(request, node)).collect();
        balance::queues(&mut all);
        all
    }

    fn candidate(&self, request: usize, node: usize) -> Candidate {
        let r = &self.requests[request];
        let (model, origin) = (r.job.model, &self.origins[r.origin]);
        let size = self.fleet.models[model].gb * 1e9;
        let embeds = self.fleet.models[model].lengths == Lengths::Embed;
        let slots = if embeds { 1 } else { self.fleet.machines[node].slots };
        let rtt = self.rtt[r.origin][node];
        let base = Candidate {
            index: node,
            is_local: r.origin == node,
            alive: self.is_alive(r.origin, node),
            able: true,
            on_cpu: self.fleet.machines[node].cpu,
            slots,
            out_tokens: origin.outputs.0[model].max(1.0),
            size: size as u64,
            rtt,
            ..Candidate::default()
        };
        let Known { row, said, heard } = self.known(r.origin, node, model).unwrap_or_default();
        let ran_here = origin.sessions.get(&r.session).is_some_and(|(at, begun)| {
            *at == node && !prefix::is_read_over(*begun, row.begun, slots)
        });
        if !self.nodes[node].is_gated() {
            // Known are the own requests, those that the other sidecars speak of in their
            // reports, and what its Ollama says it has in memory.
            let (open, left) = self.open_at(r.origin, node, model);
            let mates = (0..self.fleet.models.len()).filter(|other| *other != model);
            let line = unsaid::line(mates.map(|other| self.mate(r.origin, node, other)));
            let speeds = origin.speeds(node, model);
            return Candidate {
                loaded_ctx: u64::from(row.loaded),
                inflight: open.min(slots),
                queued: open.saturating_sub(slots),
                left: Some(left),
                line: (!row.loaded).then_some(line),
                prefill: speeds.prefill,
                decode: speeds.decode,
                session: ran_here && row.loaded,
                ..base
            };
        }
        let interval = self.setting.report_interval.unwrap_or_default();
        let believed = self.now - heard <= BELIEVED.max(1.2 * interval);
        Candidate {
            loaded_ctx: u64::from(row.loaded),
            loading: row.loading,
            inflight: row.running,
            queued: row.queued,
            wait: believed.then(|| row.wait_after(self.now - said)),
            since: origin.since(node, model, said, rtt / 2.0) as u32,
            prefill: row.speeds.prefill,
            decode: row.speeds.decode,
            load_rate: row.load_rate,
            fits: row.fits,
            session: ran_here && row.loaded,
            ..base
        }
    }

    /// What everybody has open at a bare node for a model, as far as an origin knows, and for how
    /// long that keeps it busy.
    fn open_at(&self, origin: usize, node: usize, model: usize) -> (u32, f64) {
        let others = self.shared.iter().enumerate().filter(|(other, _)| *other != origin);
        let others = others.map(|(_, rows)| rows[node][model]);
        let ours = self.origins[origin].open.iter();
        let ours = ours.filter(|(_, o)| o.place.node == node && o.model == model);
        let ours = ours.map(|(r, o)| (1, self.requests[*r].left(&o.place, self.now)));
        others.chain(ours).fold((0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    fn mate(&self, origin: usize, node: usize, model: usize) -> Mate {
        let (open, left) = self.open_at(origin, node, model);
        Mate {
            open,
            left,
            slots: self.fleet.machines[node].slots,
            loaded: self.known(origin, node, model).is_some_and(|known| known.row.loaded),
            load: load_time(self.fleet.models[model].gb * 1e9, 0.0, UNSAID_LOAD_RATE),
        }
    }

    /// Whether a request that waits is better moved, and moves it.
    pub(crate) fn look_ours(&mut self, request: usize) {
        let r = &self.requests[request];
        let Some(place) = r.place else { return };
        if r.first.is_some_and(|heard| heard <= self.now) {
            return;
        }
        let (origin, node, attempt, tries) = (r.origin, place.node, r.attempt, r.tries);
        let id = r.job.id;
        let ask = self.ask(request);
        let now = moment(self.now);
        let there = self
            .candidates(request)
            .iter()
            .filter(|c| c.index != node && c.alive)
            .map(|c| balance::score(c, &ask, now).total)
            .fold(f64::INFINITY, f64::min);

        if !self.nodes[node].is_gated() {
            let terms = balance::score(&self.candidate(request, node), &ask, now);
            let known = self.known(origin, node, r.job.model);
            let loaded = known.is_some_and(|known| known.row.loaded);
            let here = Silent {
                elapsed: self.now - place.sent,
                first_token: place.first_token,
                wait: place.wait,
                work: terms.prefill + terms.decode,
                loads: place.loads && !loaded,
            };
            if moves::is_worth_leaving(here, there, tries) && self.reaches(origin, node) {
                self.nodes[node].cancel(id, self.now);
                self.touch(node);
                self.take_back(request);
                self.requests[request].tries.moves += 1;
                return self.dispatch_ours(request, Some(node));
            }
        } else {
            let Some(left) = self.left(request, place) else { return };
            let terms = balance::score(&self.candidate(request, node), &ask, now);
            let here = Waiting { left, work: terms.prefill + terms.decode };
            if moves::is_worth_moving(here, there, tries) {
                let way = self.rtt[origin][node] / 2.0;
                self.at(self.now + way, Event::Withdraw { request, attempt });
            }
        }
        if let Some(look) = self.next_look() {
            self.at(self.now + look, Event::Look { request, attempt });
        }
    }

    /// How much longer a request waits as far as its origin knows; `None`: it was started.
    fn left(&self, request: usize, place: Place) -> Option<f64> {
        let r = &self.requests[request];
        if r.origin == place.node {
            return self.nodes[place.node].left(r.job.id, self.now);
        }
        let way = self.rtt[r.origin][place.node] / 2.0;
        match self.nodes[place.node].heard(self.now, way) {
            Some(report) if report.at > place.sent + way => {
                let left = report.waiting.get(&r.job.id)?;
                Some((left - (self.now - report.at)).max(0.0))
            }
            _ => Some((place.wait - (self.now - place.sent)).max(0.0)),
        }
    }
}
