//! This node's own speed, measured once where nobody's request ever said it.
//!
//! A model that is in memory anyway and was never measured writes a few tokens for nobody, so
//! that the first real choice is no guess. It waits until its engine has nothing to do, and
//! gives way to the first request that comes: nobody ever waits for it. Nothing is loaded for
//! it, nothing leaves this machine, and on battery it does not happen.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::directory::{Directory, Offer};
use crate::gate::{self, Gate, Gates, TrialError, weights_of};
use crate::net::{Pool, Sockets};
use crate::telemetry::Clock;
use crate::types::{
    Class, ClientKind, Digest, EngineKind, LoadKey, ModelKey, Outcome, Power, Side,
};

/// In whose name it is done, for the counters.
const WHO: &str = "self-measure";
/// How often it is looked whether somebody came meanwhile.
const GLANCE: Duration = Duration::from_millis(20);
/// How long it is expected to take.
const PREDICTED: Duration = Duration::from_secs(5);

/// What measuring needs.
pub(super) struct Parts {
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) directory: Arc<Directory>,
    pub(super) gates: Arc<Gates>,
    pub(super) pool: Pool,
    pub(super) sockets: Sockets,
    pub(super) clock: Clock,
    /// How long an engine has to have been idle.
    pub(super) idle: Duration,
}

/// What was tried: an engine, a model, its content.
type Tried = HashSet<(Arc<str>, ModelKey, Option<Digest>)>;

/// Measures what was never measured, whenever nothing else is to be done.
pub(super) async fn keep(parts: Parts) {
    let mut tried = Tried::new();
    loop {
        let before = served(&parts);
        tokio::time::sleep(parts.idle).await;
        let wanted =
            parts.config.borrow().share.self_measure && parts.sockets.power() == Power::Mains;
        if !wanted || served(&parts) != before {
            continue;
        }
        if let Some(offer) = unmeasured(&parts.directory, &tried) {
            measure(&parts, &offer, &mut tried).await;
        }
    }
}

/// How much this node's engines were asked so far: the same after a while is idle.
fn served(parts: &Parts) -> Option<u64> {
    let snapshot = parts.directory.load();
    let this = snapshot.this()?;
    Some(this.endpoints.iter().map(|endpoint| parts.gates.of(endpoint).entered()).sum())
}

/// A model of this node's Ollama that is in memory and whose speed nobody knows.
fn unmeasured(directory: &Directory, tried: &Tried) -> Option<Arc<Offer>> {
    let snapshot = directory.load();
    let offers =
        snapshot.models.values().flat_map(|model| model.offers.iter().chain(&model.variants));
    let own = |offer: &&Arc<Offer>| {
        offer.node.is_this()
            && offer.endpoint.up
            && offer.endpoint.kind == EngineKind::Ollama
            && offer.capabilities.completion
            && !offer.remote
            && !offer.key.is_cloud()
            && offer.cell.is_loaded()
            && offer.cell.decode.get() <= 0.0
            && !tried.contains(&name(offer))
    };
    offers.into_iter().find(own).cloned()
}

fn name(offer: &Offer) -> (Arc<str>, ModelKey, Option<Digest>) {
    (offer.endpoint.name.clone(), offer.key.clone(), offer.digest.clone())
}

async fn measure(parts: &Parts, offer: &Arc<Offer>, tried: &mut Tried) {
    let gate = parts.gates.of(&offer.endpoint);
    // With which options somebody else put it into memory is not known: a wrong guess would
    // make the engine load it anew.
    let Some(key) = gate.held(&weights_of(offer.weights.as_ref(), &offer.key)) else { return };
    let ask = gate::Ask {
        class: Class::Batch,
        // What it uses is not its owner's for that.
        side: Side::Guest,
        principal: WHO.into(),
        may_load: false,
        wait_budget: Some(Duration::ZERO),
        ..gate::Ask::own(offer, key.clone(), PREDICTED)
    };
    if gate.depth() != (0, 0) {
        return;
    }
    let Ok(mut ticket) = gate.enter(ask).await else { return };
    let result = tokio::select! {
        biased;
        () = somebody(&gate) => None,
        result = trial(parts, offer, &key) => Some(result),
    };
    match result {
        // Another time.
        None => tracing::debug!(model = %offer.key, "measuring its speed gave way to a request"),
        Some(Ok(reply)) => {
            tried.insert(name(offer));
            ticket.ended(Outcome::Done);
            ticket.tokens(reply.prompt_tokens.unwrap_or(0), reply.output_tokens.unwrap_or(0));
            offer.cell.learn(&reply, ClientKind::Other, parts.clock.now());
            let speed = offer.cell.decode.get();
            tracing::info!(model = %offer.key, speed, "measured its speed");
        }
        Some(Err(error)) => {
            tried.insert(name(offer));
            ticket.ended(Outcome::UpstreamError);
            tracing::debug!(model = %offer.key, %error, "its speed could not be measured");
        }
    }
}

async fn trial(
    parts: &Parts,
    offer: &Offer,
    key: &LoadKey,
) -> Result<crate::balance::rates::Reply, TrialError> {
    gate::trial(&parts.pool, offer, key, rand::random()).await
}

/// Returns when anybody else is at this engine.
async fn somebody(gate: &Gate) {
    while gate.depth() == (0, 1) {
        tokio::time::sleep(GLANCE).await;
    }
}
