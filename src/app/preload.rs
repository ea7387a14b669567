//! Models that are to stay in memory: `preload` of the configuration.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::directory::{Directory, Offer};
use crate::gate::{self, Gates};
use crate::types::{LoadKey, ModelKey};

/// How often it is looked whether one has left the memory.
const LOOK: Duration = Duration::from_secs(60);

/// Brings the models of `preload` that this node has into memory, and again when they leave.
pub(super) async fn keep(
    mut config: watch::Receiver<Arc<Config>>,
    directory: Arc<Directory>,
    gates: Arc<Gates>,
) {
    let mut pictures = directory.changed();
    loop {
        let wanted: Vec<ModelKey> = config
            .borrow_and_update()
            .preload
            .iter()
            .filter_map(|name| ModelKey::parse(name).ok())
            .collect();
        for offer in cold(&directory, &wanted) {
            let ask = gate::Ask::own(&offer, LoadKey::default(), Duration::ZERO);
            let gate = gates.of(&offer.endpoint);
            match gate.enter(ask).await {
                Ok(mut ticket) => ticket.ended(crate::types::Outcome::Done),
                Err(refusal) => {
                    tracing::warn!(model = %offer.key, why = refusal.why.label(), "preload failed");
                }
            }
        }
        let look = tokio::time::sleep(LOOK);
        tokio::select! {
            changed = config.changed() => if changed.is_err() { return },
            changed = pictures.changed(), if !wanted.is_empty() => {
                if changed.is_err() { return }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            () = look => {}
        }
    }
}

fn cold(directory: &Directory, wanted: &[ModelKey]) -> Vec<Arc<Offer>> {
    let snapshot = directory.load();
    wanted
        .iter()
        .filter_map(|key| snapshot.models.get(key))
        .filter_map(|model| model.offers.iter().find(|o| o.node.is_this() && o.endpoint.up))
        .filter(|offer| !offer.cell.is_loaded())
        .cloned()
        .collect()
}
