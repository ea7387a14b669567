//! Cells by what they are about, so that they outlive every snapshot.
//!
//! Probes and the writer both ask here; whoever asks first makes the cell. An own engine's
//! cells stand under [`NodeId::This`] whatever the tailnet calls this node.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::cell::{Cell, PathCell};
use super::event::Rates;
use crate::types::{Dial, ModelKey, NodeId};

/// Which offer a cell is about: node, engine, model.
type OfferKey = (NodeId, Arc<str>, ModelKey);

/// All cells.
#[derive(Debug, Default)]
pub struct Registry {
    offers: Mutex<HashMap<OfferKey, Arc<Cell>>>,
    paths: Mutex<HashMap<(NodeId, Dial), Arc<PathCell>>>,
}

impl Registry {
    /// The cell of one model at one engine.
    pub fn offer(&self, node: &NodeId, engine: &Arc<str>, model: &ModelKey) -> Arc<Cell> {
        let key = (node.clone(), engine.clone(), model.clone());
        self.offers.lock().entry(key).or_default().clone()
    }

    /// The cell of one path.
    pub fn path(&self, node: &NodeId, dial: &Dial) -> Arc<PathCell> {
        self.paths.lock().entry((node.clone(), dial.clone())).or_default().clone()
    }

    /// Forgets a path that is no more.
    pub fn forget(&self, node: &NodeId, dial: &Dial) {
        self.paths.lock().remove(&(node.clone(), dial.clone()));
    }

    /// Gives speeds of an earlier run to a cell that has none of its own.
    pub fn seed(&self, node: &NodeId, rates: &Rates) {
        let Ok(model) = ModelKey::parse(&rates.model) else { return };
        let cell = self.offer(node, &Arc::from(rates.engine.as_str()), &model);
        for (to, from) in [
            (&cell.prefill, rates.prefill),
            (&cell.decode, rates.decode),
            (&cell.load_rate, rates.load_rate),
            (&cell.ttft, rates.ttft),
            (&cell.out_tokens, rates.out_tokens),
        ] {
            if to.get() <= 0.0 {
                to.observe(from, 1.0);
            }
        }
    }

    /// The measured speeds of a node's offers.
    pub fn rates(&self, node: &NodeId) -> Vec<Rates> {
        let offers = self.offers.lock();
        let mut rates: Vec<Rates> = offers
            .iter()
            .filter(|((n, _, _), _)| n == node)
            .map(|((_, engine, model), cell)| Rates {
                engine: engine.to_string(),
                model: model.as_str().to_owned(),
                prefill: cell.prefill.get(),
                decode: cell.decode.get(),
                load_rate: cell.load_rate.get(),
                ttft: cell.ttft.get(),
                out_tokens: cell.out_tokens.get(),
            })
            .filter(|r| r.prefill > 0.0 || r.decode > 0.0 || r.load_rate > 0.0 || r.ttft > 0.0)
            .collect();
        rates.sort_by(|a, b| (&a.engine, &a.model).cmp(&(&b.engine, &b.model)));
        rates
    }

    /// Forgets the cells of nodes that are no longer known.
    pub fn keep(&self, nodes: &HashSet<&NodeId>) {
        self.offers.lock().retain(|(n, _, _), _| *n == NodeId::This || nodes.contains(n));
        self.paths.lock().retain(|(n, _), _| nodes.contains(n));
    }
}
