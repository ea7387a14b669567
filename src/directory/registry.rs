//! Cells by what they are about, so that they outlive every snapshot.
//!
//! Probes and the writer both ask here; whoever asks first makes the cell. An own engine's
//! cells stand under [`NodeId::This`] whatever the tailnet calls this node.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use super::cell::{Cell, PathCell, Scale};
use super::event::{Length, Rates, Uplink};
use super::heard::NodeCell;
use super::mates::Mates;
use super::rate::{Lengths, Rate};
use crate::balance::claims::Kept;
use crate::balance::rates::Estimate;
use crate::types::{ClientKind, Dial, ModelKey, Moment, NodeId, PathKind};

/// Which offer a cell is about: node, engine, model.
type OfferKey = (NodeId, Arc<str>, ModelKey);

/// Most lengths of answers that are kept on disk.
const MOST_LENGTHS: usize = 4096;

/// What all models of one engine share.
#[derive(Debug, Default, Clone)]
struct Engine {
    load_rate: Arc<Rate>,
    scale: Arc<Scale>,
    mates: Arc<Mates>,
}

/// All cells.
#[derive(Debug, Default)]
pub struct Registry {
    offers: Mutex<HashMap<OfferKey, Arc<Cell>>>,
    paths: Mutex<HashMap<(NodeId, Dial), Arc<PathCell>>>,
    engines: Mutex<HashMap<(NodeId, Arc<str>), Engine>>,
    lengths: Mutex<HashMap<ModelKey, Arc<Lengths>>>,
    uplinks: Mutex<HashMap<(NodeId, PathKind), Arc<Rate>>>,
    nodes: Mutex<HashMap<NodeId, Arc<NodeCell>>>,
}

impl Registry {
    /// The cell of one model at one engine.
    pub fn offer(&self, node: &NodeId, engine: &Arc<str>, model: &ModelKey) -> Arc<Cell> {
        let key = (node.clone(), engine.clone(), model.clone());
        let make = || {
            let engine =
                self.engines.lock().entry((key.0.clone(), key.1.clone())).or_default().clone();
            let lengths = self.lengths(model);
            let Engine { load_rate, scale, mates } = engine;
            let cell = Arc::new(Cell::of(load_rate, scale, lengths, mates));
            cell.mates.join(&cell);
            cell
        };
        self.offers.lock().entry(key.clone()).or_insert_with(make).clone()
    }

    /// The cell of one node; this one's stands under [`NodeId::This`].
    pub fn node(&self, node: &NodeId) -> Arc<NodeCell> {
        self.nodes.lock().entry(node.clone()).or_default().clone()
    }

    /// The cell of one path.
    pub fn path(&self, node: &NodeId, dial: &Dial) -> Arc<PathCell> {
        let make = || Arc::new(PathCell::with_uplink(self.uplink(node, dial.kind())));
        self.paths.lock().entry((node.clone(), dial.clone())).or_insert_with(make).clone()
    }

    /// How long a model's answers are.
    pub fn lengths(&self, model: &ModelKey) -> Arc<Lengths> {
        self.lengths.lock().entry(model.clone()).or_default().clone()
    }

    /// How fast bodies go one kind of way to a node.
    pub fn uplink(&self, node: &NodeId, kind: PathKind) -> Arc<Rate> {
        self.uplinks.lock().entry((node.clone(), kind)).or_default().clone()
    }

    /// Forgets a path that is no more.
    pub fn forget(&self, node: &NodeId, dial: &Dial) {
        self.paths.lock().remove(&(node.clone(), dial.clone()));
    }

    /// Gives speeds of an earlier run to a cell that has none of its own.
    pub fn seed(&self, node: &NodeId, rates: &Rates) {
        let Ok(model) = ModelKey::parse(&rates.model) else { return };
        let cell = self.offer(node, &Arc::from(rates.engine.as_str()), &model);
        for (to, value) in [
            (&cell.prefill, rates.prefill),
            (&cell.decode, rates.decode),
            (&*cell.load_rate, rates.load_rate),
            (&cell.ttft, rates.ttft),
            (&cell.per_byte, rates.per_byte),
        ] {
            to.recall(Estimate { value, trust: 1.0 }, rates.age);
        }
        if let Some(kept) = &rates.kept {
            cell.report.recall(kept, rates.age);
        }
        cell.scale.recall(rates.size, rates.prefill, rates.decode, rates.age);
        cell.about(rates.digest.as_ref(), rates.size);
    }

    /// Gives lengths of answers seen by an earlier run.
    pub fn seed_length(&self, length: &Length) {
        let Ok(model) = ModelKey::parse(&length.model) else { return };
        let was = Estimate { value: length.tokens, trust: 1.0 };
        self.lengths(&model).recall(length.client, was, length.age);
    }

    /// Gives what an earlier run knew of a way.
    pub fn seed_uplink(&self, node: &NodeId, uplink: &Uplink) {
        let was = Estimate { value: uplink.bytes_per_second, trust: 1.0 };
        self.uplink(node, uplink.kind).recall(was, uplink.age);
    }

    /// The measured speeds of a node's offers.
    pub fn rates(&self, node: &NodeId, now: Moment) -> Vec<Rates> {
        let offers = self.offers.lock();
        let mut rates: Vec<Rates> = offers
            .iter()
            .filter(|((n, _, _), _)| n == node)
            .map(|((_, engine, model), cell)| {
                let all =
                    [&cell.prefill, &cell.decode, &cell.ttft, &*cell.load_rate, &cell.per_byte];
                let age = all.iter().filter_map(|rate| rate.age(now)).min().unwrap_or_default();
                // The row is dated by its speeds: what is left of it now was more by then.
                let kept = cell.report.kept(now).map(|kept| Kept {
                    left: if kept.left > 0.0 { kept.left + age.as_secs_f64() } else { 0.0 },
                    ..kept
                });
                Rates {
                    engine: engine.to_string(),
                    model: model.as_str().to_owned(),
                    digest: cell.digest(),
                    size: cell.size.load(Relaxed),
                    prefill: cell.prefill.get(),
                    decode: cell.decode.get(),
                    load_rate: cell.load_rate.get(),
                    ttft: cell.ttft.get(),
                    per_byte: cell.per_byte.get(),
                    kept,
                    age,
                }
            })
            .filter(|r| {
                let all = [r.prefill, r.decode, r.load_rate, r.ttft, r.per_byte];
                all.iter().any(|value| *value > 0.0)
            })
            .collect();
        rates.sort_by(|a, b| (&a.engine, &a.model).cmp(&(&b.engine, &b.model)));
        rates
    }

    /// The lengths of answers that were seen.
    pub fn seen_lengths(&self, now: Moment) -> Vec<Length> {
        let lengths = self.lengths.lock();
        let each = lengths.iter().flat_map(|(model, lengths)| {
            ClientKind::ALL.into_iter().filter_map(move |client| {
                let rate = lengths.rate(client);
                let age = rate.age(now)?;
                let tokens = rate.estimate().known()?;
                Some(Length { model: model.as_str().to_owned(), client, tokens, age })
            })
        });
        let mut lengths: Vec<Length> = each.take(MOST_LENGTHS).collect();
        lengths.sort_by(|a, b| (&a.model, a.client.number()).cmp(&(&b.model, b.client.number())));
        lengths
    }

    /// What is known of the ways to a node.
    pub fn seen_uplinks(&self, node: &NodeId, now: Moment) -> Vec<Uplink> {
        let uplinks = self.uplinks.lock();
        let mut uplinks: Vec<Uplink> = uplinks
            .iter()
            .filter(|((n, _), _)| n == node)
            .filter_map(|((_, kind), rate)| {
                let (bytes_per_second, age) = (rate.estimate().known()?, rate.age(now)?);
                Some(Uplink { kind: *kind, bytes_per_second, age })
            })
            .collect();
        uplinks.sort_by_key(|uplink| uplink.kind.label());
        uplinks
    }

    /// Forgets the cells of nodes that are no longer known.
    pub fn keep(&self, nodes: &HashSet<&NodeId>) {
        self.offers.lock().retain(|(n, _, _), _| *n == NodeId::This || nodes.contains(n));
        self.paths.lock().retain(|(n, _), _| nodes.contains(n));
        self.engines.lock().retain(|(n, _), _| *n == NodeId::This || nodes.contains(n));
        self.uplinks.lock().retain(|(n, _), _| nodes.contains(n));
        // What somebody holds is in use; what was seen is worth keeping.
        self.lengths.lock().retain(|_, lengths| {
            Arc::strong_count(lengths) > 1
                || ClientKind::ALL.into_iter().any(|client| lengths.rate(client).get() > 0.0)
        });
        self.nodes.lock().retain(|n, _| *n == NodeId::This || nodes.contains(n));
    }
}
