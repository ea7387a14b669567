//! The gates of this node's engines, by engine. They outlive snapshots.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::ask::load_time;
use super::share::Used;
use super::{Attempt, Gate, GateConfig, Loader, Share, Told, weights_of};
use crate::api::report::Row;
use crate::balance::queue::Target;
use crate::directory::{Endpoint, Offer};
use crate::telemetry::{Clock, Metrics};
use crate::types::{EndpointId, EngineKind, LoadKey, NodeId};

/// What all gates share.
#[derive(Debug, Clone, Copy, Default)]
pub struct GatesConfig {
    /// Most requests that wait in one gate (`limits.queue`).
    pub queue: u32,
    /// `OLLAMA_NUM_PARALLEL` of this process, which shares its user's environment with Ollama
    /// more often than not.
    pub num_parallel: Option<u32>,
}

/// What the gates of one node share.
pub(super) struct Shared {
    /// Moved whenever something changed that a report tells.
    pub(super) changes: Arc<watch::Sender<u64>>,
    /// Moved whenever an engine has brought a model into memory.
    pub(super) loads: Arc<watch::Sender<u64>>,
    pub(super) share: watch::Receiver<Share>,
    pub(super) used: Arc<Used>,
}

/// Makes what loads the models of an engine.
type Loaders = Box<dyn Fn(&Endpoint) -> Arc<dyn Loader> + Send + Sync>;

/// The gates of this node's engines.
pub struct Gates {
    num_parallel: Option<u32>,
    queue: AtomicU32,
    clock: Clock,
    metrics: Arc<Metrics>,
    loader: Loaders,
    changes: Arc<watch::Sender<u64>>,
    loads: Arc<watch::Sender<u64>>,
    share: watch::Sender<Share>,
    used: Arc<Used>,
    gates: Mutex<HashMap<EndpointId, (u32, Arc<Gate>)>>,
}

impl Gates {
    /// No gate yet. `loader` makes what loads the models of an engine.
    pub fn new(
        config: GatesConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
        loader: impl Fn(&Endpoint) -> Arc<dyn Loader> + Send + Sync + 'static,
    ) -> Arc<Gates> {
        Arc::new(Gates {
            num_parallel: config.num_parallel,
            queue: AtomicU32::new(config.queue),
            clock,
            metrics,
            loader: Box::new(loader),
            changes: Arc::default(),
            loads: Arc::default(),
            share: watch::Sender::default(),
            used: Arc::default(),
            gates: Mutex::default(),
        })
    }

    /// The gate of an engine, made when first asked for. A number of slots that has changed
    /// since is taken over.
    pub fn of(&self, endpoint: &Endpoint) -> Arc<Gate> {
        let slots = self.slots(endpoint);
        let mut gates = self.gates.lock();
        let (had, gate) = gates.entry(endpoint.id).or_insert_with(|| {
            let config = GateConfig {
                endpoint: endpoint.id,
                kind: endpoint.kind,
                slots,
                queue: self.queue.load(Relaxed),
            };
            let loader = (self.loader)(endpoint);
            let node = Shared {
                changes: self.changes.clone(),
                loads: self.loads.clone(),
                share: self.share.subscribe(),
                used: self.used.clone(),
            };
            (slots, Gate::of(config, loader, self.clock, self.metrics.clone(), node))
        });
        let changed = std::mem::replace(had, slots) != slots;
        let gate = gate.clone();
        drop(gates);
        if changed {
            gate.set_slots(slots);
        }
        gate
    }

    /// Wakes whenever something changed in one of them.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Wakes whenever a load has ended: what the engine let go of for it, only the engine knows.
    pub fn loaded(&self) -> watch::Receiver<u64> {
        self.loads.subscribe()
    }

    /// What stands in front of offers of this node's engines, each in its place.
    pub fn rows<'a>(&self, offers: impl IntoIterator<Item = &'a Arc<Offer>>) -> Vec<Told> {
        offers.into_iter().map(|offer| self.row(offer)).collect()
    }

    /// What stands in front of one of them.
    pub fn row(&self, offer: &Offer) -> Told {
        let weights = weights_of(offer.weights.as_ref(), &offer.key);
        let target = Target { weights, key: LoadKey::default() };
        let load = load_time(offer.size, &offer.cell);
        let (standing, slots) = self.of(&offer.endpoint).standing(target, load, offer.size);
        let told = Told::of(offer, &standing, load, slots);
        let (accepting, why) = self.share.borrow().at(&standing);
        Told { row: Row { accepting, why: why.to_owned(), ..told.row }, ..told }
    }

    /// The row that goes with a reply to another sidecar.
    pub fn told(&self, offer: &Offer) -> Row {
        let row = self.row(offer).row;
        self.share.borrow().over(row)
    }

    /// For whom this node works now.
    pub fn share(&self) -> watch::Receiver<Share> {
        self.share.subscribe()
    }

    /// Says for whom this node works from now on. Whoever waits and is not let in any more is
    /// sent away at once.
    pub fn share_with(&self, share: Share) {
        if self.share.send_if_modified(|now| std::mem::replace(now, share.clone()) != share) {
            self.all().iter().for_each(|gate| gate.heed());
        }
    }

    /// For how long no program of this node has used its engines; `None` = none ever did.
    pub fn unused_for(&self) -> Option<Duration> {
        self.used.since(self.clock.now())
    }

    /// How many requests of other nodes run here, and how many wait.
    pub fn of_others(&self) -> (usize, usize) {
        let depths = self.all().into_iter().map(|gate| gate.of_others());
        depths.fold((0, 0), |(r, w), (running, waiting)| (r + running, w + waiting))
    }

    fn all(&self) -> Vec<Arc<Gate>> {
        self.gates.lock().values().map(|(_, gate)| gate.clone()).collect()
    }

    /// The requests of one sidecar that wait at this node, and how long each still will.
    pub fn waiting(&self, from: &NodeId) -> Vec<(Arc<str>, Duration)> {
        let mut waiting = Vec::new();
        self.all().iter().for_each(|gate| gate.waiting(from, &mut waiting));
        waiting
    }

    /// A sidecar takes one of its requests back, if it still waits: then it is refused as
    /// withdrawn, and that is all that becomes of it. `Some(false)`: it had begun, and goes on.
    /// `None`: no such request of that sidecar is here.
    pub fn withdraw(&self, attempt: &Attempt) -> Option<bool> {
        let gates: Vec<Arc<Gate>> = self.gates.lock().values().map(|(_, g)| g.clone()).collect();
        gates.iter().find_map(|gate| gate.withdraw(attempt))
    }

    /// Another bound of the queues (the configuration was read again).
    pub fn set_limit(&self, queue: u32) {
        self.queue.store(queue, Relaxed);
        for (_, gate) in self.gates.lock().values() {
            gate.set_limit(queue);
        }
    }

    /// Lets the gates go of engines that are no longer there. Requests in them end as they may.
    pub fn keep(&self, there: impl Fn(EndpointId) -> bool) {
        self.gates.lock().retain(|id, _| there(*id));
    }

    /// How many requests an engine runs at once per model.
    fn slots(&self, endpoint: &Endpoint) -> u32 {
        let usual = match endpoint.kind {
            EngineKind::Ollama => self.num_parallel.unwrap_or(1),
            EngineKind::LlamaCpp => 1,
            EngineKind::LmStudio => 4,
            // These batch by themselves and queue what is too much; a turnstile of one would
            // only slow them down.
            EngineKind::Vllm | EngineKind::OpenAi => 256,
        };
        endpoint.slots.unwrap_or(usual).max(1)
    }
}

impl std::fmt::Debug for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}
