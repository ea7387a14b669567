//! What one sidecar (or one of the rivals' proxies) knows: its own open requests, what it has
//! heard, what it has learned. Nothing else may be used in its choice.

use std::collections::{BTreeMap, HashMap};

use super::fleet::Fleet;
use super::node::{Outputs, Row, Speeds};
use super::server::Numbers;
use super::world::Place;

/// Peak EWMA as linkerd2-proxy has it.
const DECAY: f64 = 10.0;
const DEFAULT_LATENCY: f64 = 0.03;

/// An own request that is not answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) model: usize,
    pub(crate) place: Place,
}

/// A row that came with an answer: when it was said and heard.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: f64,
    heard: f64,
    row: Row,
}

#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) open: BTreeMap<usize, Open>,
    /// By node and model, the last few.
    rows: Vec<Vec<Vec<Said>>>,
    /// Where a session's last request ran, and how many had begun there by its end.
    pub(crate) sessions: HashMap<usize, (usize, u32)>,
    /// Of bare nodes, by node and model.
    pub(crate) speeds: Vec<Vec<Speeds>>,
    /// By node: speeds times size, which let expect what a model does that was never asked.
    scales: Vec<Speeds>,
    sizes: Vec<f64>,
    pub(crate) outputs: Outputs,
    /// Latency, and when it was last measured.
    latency: Vec<(f64, f64)>,
    /// When a node was last found to be out of reach.
    lost: Vec<Option<f64>>,
}

impl Origin {
    pub(crate) fn new(fleet: &Fleet) -> Origin {
        let (nodes, models) = (fleet.len(), fleet.models.len());
        Origin {
            open: BTreeMap::new(),
            rows: vec![vec![Vec::new(); models]; nodes],
            sessions: HashMap::new(),
            speeds: vec![vec![Speeds::default(); models]; nodes],
            scales: vec![Speeds::default(); nodes],
            sizes: fleet.models.iter().map(|m| m.gb).collect(),
            outputs: Outputs::new(models),
            latency: vec![(DEFAULT_LATENCY, 0.0); nodes],
            lost: vec![None; nodes],
        }
    }

    /// How many of its own requests are open at a node.
    pub(crate) fn pending(&self, node: usize) -> usize {
        self.open.values().filter(|o| o.place.node == node).count()
    }

    /// How many of them for a model reach the node after this moment.
    pub(crate) fn since(&self, node: usize, model: usize, at: f64, way: f64) -> usize {
        let open = self.open.values().filter(|o| o.place.node == node && o.model == model);
        open.filter(|o| o.place.sent + way > at).count()
    }

    /// Speeds of a model at a node without a sidecar: as measured, or as other models there let
    /// expect.
    pub(crate) fn speeds(&self, node: usize, model: usize) -> Speeds {
        let (own, scale, size) = (self.speeds[node][model], self.scales[node], self.sizes[model]);
        let or = |own: f64, scale: f64| if own > 0.0 { own } else { scale / size };
        Speeds { prefill: or(own.prefill, scale.prefill), decode: or(own.decode, scale.decode) }
    }

    pub(crate) fn row_later(&mut self, node: usize, model: usize, at: f64, heard: f64, row: Row) {
        let rows = &mut self.rows[node][model];
        if rows.len() > 3 {
            rows.remove(0);
        }
        rows.push(Said { at, heard, row });
    }

    /// The youngest row that came with an answer, and when it was said.
    pub(crate) fn heard(&self, node: usize, model: usize, now: f64) -> Option<(f64, Row)> {
        let rows = self.rows[node][model].iter().filter(|said| said.heard <= now);
        rows.max_by(|a, b| a.at.total_cmp(&b.at)).map(|said| (said.at, said.row))
    }

    /// An answer has come in from a node where so many requests have begun.
    pub(crate) fn answered(
        &mut self,
        request: usize,
        (node, begun): (usize, u32),
        session: usize,
        numbers: &Numbers,
        latency: f64,
        now: f64,
    ) {
        self.open.remove(&request);
        self.sessions.insert(session, (node, begun));
        self.speeds[node][numbers.model].learn(numbers);
        self.scales[node].learn(&numbers.scaled(self.sizes[numbers.model]));
        self.outputs.learn(numbers.model, numbers.written.0);
        let (held, at) = self.latency[node];
        let keep = (-(now - at) / DECAY).exp();
        let next = if latency > held { latency } else { held * keep + latency * (1.0 - keep) };
        self.latency[node] = (next, now);
    }

    /// Peak-EWMA cost.
    pub(crate) fn ewma_cost(&self, node: usize, now: f64) -> f64 {
        let (held, at) = self.latency[node];
        let decayed = held * (-(now - at) / DECAY).exp();
        decayed.max(1e-3) * (self.pending(node) + 1) as f64
    }

    pub(crate) fn lost(&mut self, node: usize, now: f64) {
        self.lost[node] = Some(now);
    }

    /// Whether it has noticed that a node has been out of reach since `gone`.
    pub(crate) fn has_lost(&self, node: usize, gone: f64) -> bool {
        self.lost[node].is_some_and(|at| at >= gone)
    }
}
