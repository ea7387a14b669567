//! What this node tells its peers of itself.

use std::sync::atomic::Ordering::Relaxed;

use super::snapshot::{Offer, Snapshot};
use crate::api::wire;

/// The list for one reader: this node's own engines, and of their models those that
/// `may` names for that reader. What other nodes have is never repeated.
pub fn wire_of(snapshot: &Snapshot, version: &str, may: impl Fn(&Offer) -> bool) -> wire::Offers {
    let this = snapshot.this();
    let engines = this.iter().flat_map(|node| &node.endpoints).map(|endpoint| wire::Engine {
        name: endpoint.name.to_string(),
        kind: endpoint.kind.label().to_owned(),
        version: endpoint.version.clone(),
        apis: endpoint.apis.bits(),
        slots: endpoint.slots,
        default_ctx: endpoint.default_ctx,
        up: endpoint.up,
    });
    let offers = snapshot
        .models
        .values()
        .flat_map(|model| model.offers.iter().chain(&model.variants))
        .filter(|offer| offer.node.is_this() && may(offer));
    wire::Offers {
        v: wire::VERSION,
        node: wire::NodeInfo {
            id: this.map_or(String::new(), |node| node.id.to_string()),
            name: this.map_or(String::new(), |node| node.name.to_string()),
            version: version.to_owned(),
        },
        accepting: "all".to_owned(),
        why: String::new(),
        engines: engines.collect(),
        offers: offers.map(|offer| row(offer)).collect(),
    }
}

fn row(offer: &Offer) -> wire::Offer {
    let cell = &offer.cell;
    wire::Offer {
        engine: offer.endpoint.name.to_string(),
        name: offer.name.to_string(),
        digest: offer.digest.as_ref().map(|d| d.0.to_string()),
        weights: offer.weights.as_ref().map(|d| d.0.to_string()),
        class: offer.content.map(|class| format!("{class:016x}")),
        capabilities: offer.capabilities,
        context: offer.context,
        num_ctx: offer.num_ctx,
        size: offer.size,
        remote: offer.remote,
        loaded_ctx: cell.loaded_ctx.load(Relaxed),
        loading: cell.loading.load(Relaxed),
        // The gate counts all callers; a request that does not pass it is only in ours.
        inflight: cell.running.load(Relaxed).max(cell.inflight.load(Relaxed)),
        queued: cell.queued.load(Relaxed),
        row: (*offer.row).clone(),
        ps: offer.ps.as_deref().cloned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{engine, id, listing, model, peer};
    use super::super::{Event, Identity, Registry, Settings, build, writer};
    use super::*;
    use crate::types::{Moment, NodeName};

    #[test]
    fn peers_learn_of_own_engines_what_their_rule_names_and_nothing_else() {
        let this = Identity::lone(NodeName::parse("laptop").unwrap());
        let cells = Arc::new(Registry::default());
        let mut state = writer::State::new(Settings::default(), this, cells);
        let mut own = model("tiny");
        own.content = Some(0xab);
        for event in [
            Event::Local(vec![engine("ollama", vec![own, model("secret"), model("both")])]),
            Event::Peers(vec![peer("gpu", 2)]),
            Event::Listed {
                node: id("gpu"),
                listing: listing(2, vec![model("big"), model("both")]),
            },
        ] {
            writer::apply(&mut state, event, Moment::ZERO);
        }
        let snapshot = build::snapshot(&mut state, Moment::ZERO);
        let wire = wire_of(&snapshot, "0.1.0", |o| o.key.short() != "secret:latest");
        let names: Vec<_> = wire.offers.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["both", "tiny"]);
        assert_eq!(wire.offers[1].class.as_deref(), Some("00000000000000ab"));
        assert_eq!((wire.node.name.as_str(), wire.engines.len()), ("laptop", 1));
        let text = String::from_utf8(wire.encode().unwrap().0).unwrap();
        for absent in ["secret", "gpu", "100.64", "127.0.0.1"] {
            assert!(!text.contains(absent), "{absent}");
        }
    }
}
