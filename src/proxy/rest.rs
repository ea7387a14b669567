//! What a try's end means for the tries after it: what failed rests, what answered does not.
//!
//! In flow an offer and how a try of it ended; out flow its cell's rest, the metric of it, and
//! the wish to read its node's list again. Never a path's health: that is its probes' business.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::balance;
use crate::config::Config;
use crate::directory::{Look, Offer};

use super::Proxy;
use super::attempt::{Fail, Reason};

/// An answer began.
pub(super) fn succeeded(px: &Proxy, offer: &Offer) {
    let cell = &offer.cell;
    if cell.failures.swap(0, Relaxed) > 0 {
        tracing::info!(node = %offer.node.name, model = %offer.key, "answers again");
        px.metrics.breaker(offer.node.name.as_str(), offer.key.short(), false);
    }
}

/// Lets what failed rest, as the table of failures says.
pub(super) fn failed(px: &Proxy, config: &Config, offer: &Offer, fail: &Fail) {
    let now = px.clock.now();
    match fail.reason {
        Reason::Busy => {
            let rest = fail.retry_after.unwrap_or(px.timing.busy_rest);
            offer.cell.rest(now + rest.min(Duration::from_secs(30)));
        }
        Reason::Engine | Reason::BadAnswer => {
            let failures = offer.cell.failures.fetch_add(1, Relaxed) + 1;
            offer.cell.rest(now + balance::rest(failures, &config.failover.cooldown));
            px.metrics.breaker(offer.node.name.as_str(), offer.key.short(), true);
        }
        Reason::NotFound | Reason::Dialect => px.directory.look_at(&offer.node.id, Look::List),
        // A path's health is its probes' business; a refusal and a full queue are no faults.
        _ => {}
    }
}
