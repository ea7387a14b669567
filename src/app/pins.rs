//! Pins as people see and change them, and their file.
//!
//! In: what `trust` knows, and what a person wants. Out: rows to show, and a file that is
//! written a moment after something changed, and once more at the end.

use std::sync::Arc;
use std::time::Duration;

use super::control::PinRow;
use crate::telemetry::Events;
use crate::trust::{Pin, PinState, Trust, View};
use crate::types::Wall;

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

/// Pins as they are shown, by name.
pub fn rows(known: &View, now: Wall) -> Vec<PinRow> {
    let mut rows: Vec<PinRow> = known.pins.iter().map(|pin| row(known, pin, now)).collect();
    rows.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    rows
}

fn row(known: &View, pin: &Pin, now: Wall) -> PinRow {
    let ends = pin.ends(&known.bounds);
    let state = match known.standing(pin, now) {
        Ok(()) => "live".to_owned(),
        Err(_) if pin.state == PinState::Pending => "waits".to_owned(),
        Err(verdict) => verdict.label().to_owned(),
    };
    let mut why: Vec<String> = Vec::new();
    match &pin.state {
        PinState::Pending => why.push("until it answers a hello over the tailnet".to_owned()),
        PinState::Suspended { why: because, .. } => why.push(because.to_string()),
        PinState::Live => {}
    }
    if let Some(changed) = &pin.changed {
        let hours = changed.seen / 3600;
        why.push(format!(
            "another key answers, for {hours} h of 24 h (tailherd trust accept {})",
            pin.name
        ));
    }
    if pin.by_hand.is_some() {
        why.push(format!("added by hand, as pin:{}", pin.name));
    }
    PinRow {
        name: pin.name.to_string(),
        id: pin.stable().unwrap_or_default().to_owned(),
        owner: pin.principal.as_ref().map(ToString::to_string).unwrap_or_default(),
        key: pin.key.short(),
        state,
        verified: pin.was_live().then(|| now.since(pin.verified).as_secs()),
        ends: (pin.state != PinState::Pending && ends > now).then(|| ends.since(now).as_secs()),
        why: why.join("; "),
    }
}
