//! `/requests`: what ended lately, what runs, and word of what ends next.
//!
//! A follower says the number of the last line it has, and in which run of this program it got
//! it; it is answered as soon as there is a newer one, or after a while with none. Numbers begin
//! anew with each run. Never a prompt: lines hold none.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::query::Query;
use crate::telemetry::Events;

/// What a follower has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Has {
    after: u64,
    run: Option<String>,
}

impl Has {
    /// Reads `after` and `run`.
    pub(super) fn read(query: &Query) -> Has {
        Has { after: query.number("after").unwrap_or(0), run: query.text("run").map(str::to_owned) }
    }

    /// The number after which lines are new to it. Those of another run are all new.
    fn after(&self, run: &str) -> u64 {
        match &self.run {
            Some(theirs) if theirs != run => 0,
            _ => self.after,
        }
    }
}

/// Waits for a line that is new to the follower: no longer than `most`, and not while the program
/// stops.
pub(super) async fn news(
    events: &Events,
    run: &str,
    has: &Has,
    most: Duration,
    mut draining: watch::Receiver<bool>,
) {
    let after = has.after(run);
    let mut last = events.last();
    tokio::select! {
        _ = last.wait_for(|last| *last > after) => {}
        // Also if the other end is gone: then all of it is.
        _ = draining.wait_for(|draining| *draining) => {}
        () = tokio::time::sleep(most) => {}
    }
}

/// The lines that are new to the follower, oldest first, and what runs now.
pub(super) fn requests(events: &Events, run: &str, has: &Has) -> Value {
    let lines = events.requests_after(has.after(run));
    json!({
        "run": run,
        // What is missing between this and what the follower has is not kept any more.
        "last": *events.last().borrow(),
        "requests": lines,
        "running": events.running(),
    })
}
