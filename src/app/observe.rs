//! What this node's engines say they have in memory, told to their gates.
//!
//! The gate knows what it loaded; only the engine knows what it has let go of, or what
//! somebody loaded past us.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::balance::queue::Seen;
use crate::directory::{Directory, Endpoint, Snapshot};
use crate::gate::{Gates, weights_of};
use crate::telemetry::Clock;
use crate::types::{EngineKind, Moment, Timing};

/// Passes what is known of this node's memory on, for as long as the directory lives: with every
/// new picture, and again after a while. A gate does not believe a model gone that it used just
/// before the engine was asked, so it has to hear of it once more.
pub(super) async fn tell(
    directory: Arc<Directory>,
    gates: Arc<Gates>,
    clock: Clock,
    timing: Arc<Timing>,
) {
    // A picture is at most this old when it is seen here; what was used since is not gone.
    let age = timing.probe_local + timing.probe_limit;
    let mut pictures = directory.changed();
    loop {
        tokio::select! {
            changed = pictures.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(timing.probe_local) => {}
        }
        let snapshot = directory.load();
        let Some(this) = snapshot.this() else { continue };
        gates.keep(|id| this.endpoints.iter().any(|e| e.id == id));
        for endpoint in this.endpoints.iter().filter(|e| e.kind == EngineKind::Ollama && e.up) {
            let asked = Moment::new(clock.now().since(Moment::new(age)));
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
