//! What this node's engines say they have in memory, told to their gates.
//!
//! The gate knows what it loaded; only the engine knows what it has let go of, or what
//! somebody loaded past us.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::balance::queue::Seen;
use crate::directory::{Directory, Endpoint, Look, Snapshot};
use crate::gate::{Gates, weights_of};
use crate::types::EngineKind;

/// Passes what is known of this node's memory on, for as long as the directory lives: whenever its
/// engines were asked. They are asked anew after each load: what they let go of for it would go on
/// counting as loaded, and each request that comes for it would make the engine load once more.
pub(super) async fn tell(directory: Arc<Directory>, gates: Arc<Gates>) {
    let mut told = directory.memory_told();
    let mut loads = gates.loaded();
    loop {
        tokio::select! {
            told = told.changed() => if told.is_err() { return },
            ended = loads.changed() => {
                if ended.is_err() {
                    return;
                }
                if let Some(this) = directory.load().this() {
                    directory.look_at(&this.id, Look::List);
                }
                continue;
            }
        }
        let asked = *told.borrow_and_update();
        let snapshot = directory.load();
        let Some(this) = snapshot.this() else { continue };
        gates.keep(|id| this.endpoints.iter().any(|e| e.id == id));
        for endpoint in this.endpoints.iter().filter(|e| e.kind == EngineKind::Ollama && e.up) {
            gates.of(endpoint).observed(&memory(&snapshot, endpoint), asked);
        }
    }
}

fn memory(snapshot: &Snapshot, endpoint: &Endpoint) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let models = snapshot.models.values();
    for offer in models.flat_map(|m| m.offers.iter().chain(&m.variants)) {
        if offer.endpoint.id != endpoint.id || !offer.cell.is_loaded() {
            continue;
        }
        let weights = weights_of(offer.weights.as_ref(), &offer.key);
        // One runner serves all names on the same weights.
        if seen.iter().any(|s| s.weights == weights) {
            continue;
        }
        let ctx = offer.cell.loaded_ctx.load(Relaxed);
        let num_ctx = (ctx > 1).then_some(ctx);
        seen.push(Seen { weights, size: offer.size, num_ctx, expires: None });
    }
    seen
}
