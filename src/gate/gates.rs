//! The gates of this node's engines, by engine. They outlive snapshots.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Gate, GateConfig, Loader};
use crate::directory::Endpoint;
use crate::telemetry::{Clock, Metrics};
use crate::types::{EndpointId, EngineKind};

/// What all gates share.
#[derive(Debug, Clone, Copy, Default)]
pub struct GatesConfig {
    /// Most requests that wait in one gate (`limits.queue`).
    pub queue: u32,
    /// `OLLAMA_NUM_PARALLEL` of this process, which shares its user's environment with Ollama
    /// more often than not.
    pub num_parallel: Option<u32>,
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
            (slots, Gate::new(config, loader, self.clock, self.metrics.clone()))
        });
        let changed = std::mem::replace(had, slots) != slots;
        let gate = gate.clone();
        drop(gates);
        if changed {
            gate.set_slots(slots);
        }
        gate
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
