//! What another node may claim, at most: names, counts and numbers cut down to sense.
//!
//! In flows a listing as a peer or an engine gave it, out flows what the writer believes of
//! it. A single bad row costs that row, never the listing.

use serde_json::Value;

use super::event::{EngineListing, Listing, ModelListing, Rates};
use crate::balance::prompt;
use crate::types::{Digest, ModelKey};

/// Most offers taken from one node.
pub(super) const MOST_OFFERS: usize = 512;
/// Most engines taken from one node.
const MOST_ENGINES: usize = 16;
/// Largest believable context window.
const MOST_CONTEXT: u64 = 1 << 27;
/// Largest believable model.
const MOST_SIZE: u64 = 1 << 50;
/// Most requests side by side, running or waiting.
const MOST_REQUESTS: u32 = 1 << 16;
/// Longest version or engine name shown.
const MOST_TEXT: usize = 64;
/// Longest row of a list, as JSON.
const MOST_ROW: usize = 16 << 10;

/// A peer's listing, cut down.
pub(super) fn listing(mut listing: Listing) -> Listing {
    listing.version = listing.version.as_deref().and_then(word);
    listing.engines = engines(listing.engines);
    listing
}

/// A list of engines, cut down.
pub(super) fn engines(mut engines: Vec<EngineListing>) -> Vec<EngineListing> {
    engines.truncate(MOST_ENGINES);
    let mut left = MOST_OFFERS;
    let mut seen = std::collections::BTreeSet::new();
    engines.retain(|e| word(&e.name).as_deref() == Some(&*e.name) && seen.insert(e.name.clone()));
    for engine in &mut engines {
        engine.version = engine.version.as_deref().and_then(word);
        engine.slots = engine.slots.filter(|n| *n > 0).map(|n| n.min(MOST_REQUESTS));
        engine.default_ctx = engine.default_ctx.filter(|n| *n > 0).map(|n| n.min(MOST_CONTEXT));
        let mut keys = std::collections::BTreeSet::new();
        engine.models.retain_mut(|m| {
            left > 0 && model(m) && {
                let new = ModelKey::parse(&m.name).is_ok_and(|key| keys.insert(key));
                left -= usize::from(new);
                new
            }
        });
    }
    engines
}

/// Cuts one model's claims down; false if nothing can be made of it.
fn model(m: &mut ModelListing) -> bool {
    if ModelKey::parse(&m.name).is_err() || !is_row(&m.row) {
        return false;
    }
    m.digest = m.digest.take().filter(is_digest);
    m.weights = m.weights.take().filter(is_digest);
    m.context = m.context.filter(|n| *n > 0).map(|n| n.min(MOST_CONTEXT));
    m.num_ctx = m.num_ctx.filter(|n| *n > 0).map(|n| n.min(MOST_CONTEXT));
    m.size = m.size.min(MOST_SIZE);
    m.loaded_ctx = m.loaded_ctx.min(MOST_CONTEXT);
    m.running = m.running.min(MOST_REQUESTS);
    m.queued = m.queued.min(MOST_REQUESTS);
    m.ps = m.ps.take().filter(|row| is_row(row));
    true
}

/// A speed as measured or remembered; 0 if it is none.
pub(super) fn speed(value: f64) -> f64 {
    if value.is_finite() && value > 0.0 { value.min(1e13) } else { 0.0 }
}

/// Remembered speeds, cut down.
pub(super) fn rates(mut rates: Rates) -> Rates {
    for value in [&mut rates.prefill, &mut rates.decode, &mut rates.load_rate, &mut rates.ttft] {
        *value = speed(*value);
    }
    if !prompt::BOUNDS.contains(&rates.per_byte) {
        rates.per_byte = 0.0;
    }
    rates.digest = rates.digest.filter(is_digest);
    rates.size = rates.size.min(MOST_SIZE);
    rates
}

/// A short text without blanks and control characters, cut to its limit.
fn word(text: &str) -> Option<String> {
    let word: String = text.chars().filter(char::is_ascii_graphic).take(MOST_TEXT).collect();
    (!word.is_empty()).then_some(word)
}

fn is_digest(digest: &Digest) -> bool {
    digest.0.len() <= 128 && digest.0.bytes().all(|b| b.is_ascii_hexdigit()) && !digest.0.is_empty()
}

fn is_row(row: &Value) -> bool {
    row.is_object() && weight(row, MOST_ROW).is_some()
}

/// What is left of a budget of bytes after `value` is written as JSON, roughly; `None` if it
/// is used up. Bounded in time by the budget, not by the value.
fn weight(value: &Value, budget: usize) -> Option<usize> {
    let take = |budget: usize, n: usize| budget.checked_sub(n);
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => take(budget, 8),
        Value::String(s) => take(budget, s.len() + 2),
        Value::Array(items) => {
            items.iter().try_fold(take(budget, 2)?, |left, item| weight(item, left))
        }
        Value::Object(map) => map
            .iter()
            .try_fold(take(budget, 2)?, |left, (k, item)| weight(item, take(left, k.len() + 4)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{engine, model as listed};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_peer_lists_five_hundred_and_twelve_models_and_no_more() {
        let many = |from: usize| (0..400).map(|n| listed(&format!("m{}", from + n))).collect();
        let taken = engines(vec![engine("ollama", many(0)), engine("vllm", many(1000))]);
        assert_eq!(taken.iter().map(|e| e.models.len()).collect::<Vec<_>>(), [400, 112]);
    }

    #[test]
    fn names_that_are_none_cost_their_own_row() {
        let long = "x".repeat(300);
        let names = ["tiny", "bad name", "tiny@desk", "\u{1b}]52;x", &long, "TINY:latest", "ok:1"];
        let mut odd = listed("row");
        odd.row = Arc::new(serde_json::json!(["no object"]));
        let mut fat = listed("fat");
        fat.row = Arc::new(serde_json::json!({"x": "y".repeat(20 << 10)}));
        let mut models: Vec<_> = names.iter().map(|n| listed(n)).collect();
        models.extend([odd, fat]);
        let taken = engines(vec![engine("ollama", models)]);
        let left: Vec<_> = taken[0].models.iter().map(|m| &*m.name).collect();
        assert_eq!(left, ["tiny", "ok:1"]);
    }

    #[test]
    fn numbers_are_clamped() {
        let mut m = listed("tiny");
        m.context = Some(u64::MAX);
        m.size = u64::MAX;
        m.loaded_ctx = u64::MAX;
        m.queued = u32::MAX;
        m.digest = Some(Digest("../../etc".into()));
        let mut e = engine("ollama", vec![m]);
        e.slots = Some(0);
        e.version = Some("0.32\r\nx-evil: 1".into());
        let taken = engines(vec![e]).remove(0);
        let m = &taken.models[0];
        assert_eq!((m.context, m.size), (Some(MOST_CONTEXT), MOST_SIZE));
        assert_eq!((m.loaded_ctx, m.queued), (MOST_CONTEXT, MOST_REQUESTS));
        assert_eq!((&m.digest, taken.slots), (&None, None));
        assert_eq!(taken.version.as_deref(), Some("0.32x-evil:1"));
        for (claim, want) in [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (-1.0, 0.0), (7.0, 7.0)] {
            assert_eq!(speed(claim), want);
        }
        assert_eq!(speed(1e300), 1e13);
    }
}
