//! What is told of one own offer: to peers in reports, to this node's own choice in its cell.
//!
//! In: an offer and how it stands in the queue. Out: plain numbers. Nothing here asks anybody.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::api::report::{self, Row, State};
use crate::balance::queue::Standing;
use crate::directory::Offer;

/// One own offer as it stands now.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// What peers are told. For whom the whole node works is not in it.
    pub row: Row,
    /// How long a new request of this node's own would wait, its load included.
    pub own: Duration,
}

impl Told {
    pub(super) fn of(offer: &Offer, standing: &Standing, load: Duration, slots: u32) -> Told {
        let (cell, can) = (&offer.cell, &offer.capabilities);
        let state = match (standing.loaded, standing.loading) {
            (true, _) => State::Loaded,
            (false, true) => State::Loading,
            (false, false) => State::Cold,
        };
        // What the engine said last counts, since it cuts a window that is too large.
        let window = match (cell.loaded_ctx.load(Relaxed), standing.key.num_ctx) {
            (0 | 1, Some(asked)) => asked.min(offer.context.unwrap_or(asked)),
            (said, _) => said.max(1),
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let row = Row {
            engine: offer.endpoint.name.to_string(),
            name: offer.name.to_string(),
            weights: offer
                .weights
                .as_ref()
                .map_or_else(String::new, |digest| report::weights(&digest.0).to_owned()),
            num_ctx: if state == State::Loaded { window } else { 0 },
            state,
            slots: if can.embedding && !can.completion { 1 } else { slots },
            running: count(standing.running),
            queued: count(standing.queued),
            begun: standing.begun,
            wait_ms: millis(standing.interactive),
            load_ms: match state {
                State::Cold => millis(load.min(standing.interactive)),
                State::Loaded | State::Loading => 0,
            },
            fits: state == State::Cold && standing.fits,
            prefill: rounded(cell.prefill.get()),
            decode: rounded(cell.decode.get()),
            load_rate: rounded(cell.load_rate.get()),
            context: offer.context.unwrap_or(0),
            ..Row::default()
        };
        Told { row, own: standing.own }
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// A speed to three digits: nobody needs more, and each change of a digit is told.
fn rounded(speed: f64) -> f64 {
    if !speed.is_finite() || speed <= 0.0 {
        return 0.0;
    }
    let unit = 10f64.powf(speed.log10().floor() - 2.0);
    let digits = (speed / unit).round();
    if unit < 1.0 { digits / (1.0 / unit).round() } else { digits * unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_told_to_three_digits() {
        for (speed, told) in [
            (0.0, 0.0),
            (f64::NAN, 0.0),
            (-3.0, 0.0),
            (78.4567, 78.5),
            (3941.0, 3940.0),
            (1.4449e9, 1.44e9),
            (0.123_45, 0.123),
        ] {
            assert_eq!(rounded(speed), told, "{speed}");
        }
    }
}
