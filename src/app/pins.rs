//! Pins as people see and change them, and their file.
//!
//! In: what `trust` knows, and what a person wants. Out: rows to show, and a file that is
//! written a moment after something changed, and once more at the end.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::Events;
use crate::trust::Trust;

/// Writes pins and keys whenever they changed, at most once in `every`.
pub(super) async fn keep(trust: Trust, events: Arc<Events>, every: Duration) {
    let mut changed = trust.changed();
    let mut failing = false;
    loop {
        let was = failing;
        if let Some(error) = save(&trust).await {
            failing = true;
            if !was {
                tracing::warn!("pins could not be saved: {error}");
                events.note("state", format!("pins could not be saved: {error}"));
            }
        } else {
            failing = false;
        }
        tokio::time::sleep(every).await;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Writes them now, if they changed; says why that was not possible.
pub(super) async fn save(trust: &Trust) -> Option<String> {
    let trust = trust.clone();
    match tokio::task::spawn_blocking(move || trust.save()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}
