//! What a try's end means for the tries after it: what failed rests, what answered does not.
//!
//! In flow an offer and how a try of it ended; out flow its cell's rest, the metric of it, and
//! the wish to read its node's list again. Never a path's health: that is its probes' business.

use crate::config::Config;
use crate::directory::{Look, Offer};
use crate::types::Moment;

use super::Proxy;
use super::attempt::{Fail, Reason};

/// An answer has begun of a try that was begun at `began`, and it is one of the model's own:
/// what an engine says without its model ends no rest.
pub(super) fn succeeded(px: &Proxy, offer: &Offer, began: Moment) {
    let now = px.clock.now();
    offer.node.cell.is_back(began, now);
    if offer.cell.rests.answered(began, now) {
        tracing::info!(node = %offer.node.name, model = %offer.key, "answers again");
        px.metrics.breaker(offer.node.name.as_str(), offer.key.short(), false);
    }
}

/// An answer broke after its first byte: its engine crashed, fell silent or was cut off. Of a
/// client that left this is never said. `began`: when the try was.
pub(super) fn broke(px: &Proxy, offer: &Offer, began: Moment) {
    let (settings, now) = (px.settings.load(), px.clock.now());
    if offer.cell.rests.fault(began, now, &settings.config.failover.cooldown) {
        px.metrics.breaker(offer.node.name.as_str(), offer.key.short(), true);
    }
}

/// Lets what failed rest, as the table of failures says. `began`: when the try was.
pub(super) fn failed(px: &Proxy, config: &Config, offer: &Offer, fail: &Fail, began: Moment) {
    let (rests, now) = (&offer.cell.rests, px.clock.now());
    match fail.reason {
        Reason::Busy => rests.busy(began, now, px.timing.busy_rest, fail.retry_after),
        Reason::Engine | Reason::BadAnswer
            if rests.fault(began, now, &config.failover.cooldown) =>
        {
            px.metrics.breaker(offer.node.name.as_str(), offer.key.short(), true);
        }
        Reason::NotFound | Reason::Dialect => px.directory.look_at(&offer.node.id, Look::List),
        // A path's health is its probes' business; a refusal and a full queue are no faults.
        _ => {}
    }
}
