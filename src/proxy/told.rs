//! The row of a report that goes with each reply between sidecars.
//!
//! Out: how this node's own offer stands, on an answer to another sidecar. In: the same from a
//! peer, taken off before its answer goes any further. What it says counts as what came in its
//! reports does, and only for what this node lists of that peer.

use http::{HeaderMap, HeaderValue};

use std::time::Duration;

use crate::api::attempt::{REFUSED, Refused};
use crate::api::report::{HEADER, MOST_HEADER, Row};
use crate::directory::Offer;
use crate::types::{Accepting, ModelKey};

use super::Proxy;

/// How one of this node's own offers stands now, as a header.
pub(super) fn tell(px: &Proxy, offer: &Offer, headers: &mut HeaderMap) {
    if let Some(row) = row(px, offer) {
        headers.insert(HEADER, row);
    }
}

/// The same, for an answer that is not made yet.
pub(super) fn row(px: &Proxy, offer: &Offer) -> Option<HeaderValue> {
    let row = px.gates.told(offer).write();
    if row.len() > MOST_HEADER {
        return None;
    }
    HeaderValue::from_bytes(&row).ok()
}

/// Lets this node's own choice know how one of its own offers stands, at once: its queue has just
/// said no.
pub(super) fn own(px: &Proxy, offer: &Offer) {
    let told = px.gates.row(offer);
    offer.hear(&told.row, told.own, px.clock.now());
}

/// Takes in what the node that answers for `offer` says with its answer.
pub(super) fn hear(px: &Proxy, offer: &Offer, headers: &HeaderMap) {
    let Some(row) = headers.get(HEADER).and_then(|value| Row::read(value.as_bytes())) else {
        return;
    };
    let Ok(key) = ModelKey::parse(&row.name) else { return };
    let snapshot = px.directory.load();
    let Some(offer) = snapshot.offer(&offer.node.id, &row.engine, &key) else { return };
    // A row may hold back one model only; what it says of its node comes with a refusal.
    let refused = headers.get(REFUSED).and_then(|why| Refused::of(why.as_bytes()));
    let whole = matches!(refused, Some(Refused::Paused | Refused::Draining));
    if row.accepting == Accepting::All || whole {
        offer.node.cell.accepts(row.accepting, &row.why);
    }
    offer.node.cell.hold_at_least(px.timing.report_believed);
    offer.hear(&row, Duration::from_millis(row.wait_ms), px.clock.now());
}
