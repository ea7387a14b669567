//! Pins as people see and change them, and their file.
//!
//! In: what `trust` knows, and what a person wants. Out: rows to show, and a file that is
//! written a moment after something changed, and once more at the end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::control::PinRow;
use crate::telemetry::Events;
use crate::trust::{Pin, PinState, Trust, View};
use crate::types::Wall;

/// Writes pins and keys whenever they changed: at most once in `every`, at once if a pin was
/// lost. What could not be written is tried again after `every`.
pub(super) async fn keep(trust: Trust, events: Arc<Events>, every: Duration) {
    let mut changed = trust.changed();
    let mut failing = false;
    loop {
        let was = failing;
        let error = save(&trust).await;
        failing = error.is_some();
        if let Some(error) = error.filter(|_| !was) {
            tracing::warn!("pins could not be saved: {error}");
            events.note("state", format!("pins could not be saved: {error}"));
        }
        let due = async {
            tokio::time::sleep(every).await;
            // Its other end is in `trust`.
            if !failing {
                let _ = changed.changed().await;
            }
        };
        tokio::select! {
            () = due => {}
            () = trust.urgent() => {}
        }
    }
}

/// Writes them now, if they changed; says why that was not possible.
pub(super) async fn save(trust: &Trust) -> Option<String> {
    blocking(trust, Trust::save).await
}

/// Writes them as they are to the second: the program stops.
pub(super) async fn save_last(trust: &Trust) -> Option<String> {
    blocking(trust, Trust::save_last).await
}

async fn blocking(trust: &Trust, save: fn(&Trust) -> io::Result<()>) -> Option<String> {
    let trust = trust.clone();
    match tokio::task::spawn_blocking(move || save(&trust)).await {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::trust::{Bounds, ByHand, Own};
    use crate::types::{ControlId, PublicKey};

    const NOW: Wall = Wall(1_800_000_000);

    fn trust(folder: &Path) -> Trust {
        let trust = Trust::open(Some(folder), Bounds::default());
        let control = ControlId("home".into());
        let own = Own::laptop(&control);
        trust.enter(&control, &own, None, "", NOW);
        trust
    }

    fn add(trust: &Trust) {
        let hand = ByHand { verbs: Vec::new(), models: Vec::new(), until: Wall(NOW.0 + 60) };
        trust.add("pi", PublicKey::new([7; 32]), hand, &[], NOW).unwrap();
    }

    /// Until the file holds the pin, or no longer does. To open it as trust would sweep away
    /// what is being written.
    async fn written(folder: &Path, pin: bool) {
        let held = || {
            let text = fs::read_to_string(folder.join("trust-home.json"));
            text.is_ok_and(|text| text.contains("\"pi\"") == pin)
        };
        let until = async {
            while !held() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), until).await.unwrap();
    }

    #[tokio::test]
    async fn what_could_not_be_saved_is_tried_again_although_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (state, away) = (dir.path().join("state"), dir.path().join("away"));
        fs::create_dir(&state).unwrap();
        let trust = trust(&state);
        add(&trust);
        fs::rename(&state, &away).unwrap();
        let events = Events::new();
        let every = Duration::from_millis(50);
        let task = tokio::spawn(keep(trust, Arc::clone(&events), every));
        tokio::time::sleep(every * 4).await;
        fs::rename(&away, &state).unwrap();
        written(&state, true).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_lost_pin_is_saved_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let trust = trust(dir.path());
        add(&trust);
        let every = Duration::from_secs(3600);
        let task = tokio::spawn(keep(trust.clone(), Events::new(), every));
        written(dir.path(), true).await;
        trust.forget("pi").unwrap();
        written(dir.path(), false).await;
        task.abort();
    }
}
