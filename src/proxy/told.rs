//! The row of a report that goes with each reply between sidecars.
//!
//! Out: how this node's own offer stands, on an answer to another sidecar. In: the same from a
//! peer, taken off before its answer goes any further. What it says counts as what came in its
//! reports does, and only for what this node lists of that peer.

use http::{HeaderMap, HeaderValue};

use std::time::Duration;

use crate::api::report::{HEADER, MOST_HEADER, Row};
use crate::directory::Offer;
use crate::types::ModelKey;

use super::Proxy;

/// How one of this node's own offers stands now, as a header.
pub(super) fn tell(px: &Proxy, offer: &Offer, headers: &mut HeaderMap) {
    let row = px.gates.told(offer).write();
    if row.len() <= MOST_HEADER
        && let Ok(value) = HeaderValue::from_bytes(&row)
    {
        headers.insert(HEADER, value);
    }
}

/// Takes in what the node that answers for `offer` says with its answer.
pub(super) fn hear(px: &Proxy, offer: &Offer, headers: &HeaderMap) {
    let Some(row) = headers.get(HEADER).and_then(|value| Row::read(value.as_bytes())) else {
        return;
    };
    let Ok(key) = ModelKey::parse(&row.name) else { return };
    let snapshot = px.directory.load();
    let Some(offer) = snapshot.offer(&offer.node.id, &row.engine, &key) else { return };
    offer.node.cell.accepts(row.accepting, &row.why);
    offer.node.cell.hold_at_least(px.timing.report_believed);
    offer.hear(&row, Duration::from_millis(row.wait_ms), px.clock.now());
}
