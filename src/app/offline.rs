//! Whether anything on the internet may be asked: what the configuration says, and what a person
//! ordered.
//!
//! In flow the written configuration and orders (`tailherd offline on`); out flows the one that is
//! in force. Either of the two is enough to be offline, so an order never opens what the
//! configuration closed. The order is kept over restarts.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::App;
use super::control::Said;
use crate::config::Config;
use crate::telemetry::Events;
use crate::trust::store;

/// What was written and what was ordered.
pub(super) struct Offline {
    is: Mutex<Is>,
    state: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Is {
    written: bool,
    ordered: bool,
}

/// What is kept over restarts.
#[derive(Serialize, Deserialize)]
struct Kept {
    v: u32,
    offline: bool,
}

impl Offline {
    /// With what was ordered before the last restart. `config` becomes what is in force.
    pub(super) fn open(state: Option<PathBuf>, config: &mut Config, events: &Events) -> Offline {
        let ordered = state.as_deref().is_some_and(|folder| read(folder, events));
        let offline = Offline { is: Mutex::new(Is { written: false, ordered }), state };
        offline.apply(config);
        offline
    }

    /// Makes a configuration that was just read the one that is in force.
    pub(super) fn apply(&self, config: &mut Config) {
        let mut is = self.is.lock();
        is.written = config.offline;
        config.offline |= is.ordered;
    }
}

impl App {
    /// Takes an order, and keeps it.
    pub(super) async fn offline(&self, on: bool) -> Said {
        let is = {
            let mut is = self.offline.is.lock();
            is.ordered = on;
            *is
        };
        let mut config = Config::clone(&self.config.borrow());
        config.offline = is.written || on;
        self.put_in_force(config);
        let saved = match self.offline.state.clone() {
            None => Ok(()),
            Some(folder) => {
                let saved = tokio::task::spawn_blocking(move || save(&folder, on)).await;
                saved.unwrap_or_else(|error| Err(std::io::Error::other(error)))
            }
        };
        let what = match (on, is.written) {
            (true, _) => "offline: nothing on the internet is asked; what runs, ends",
            (false, false) => "online: chains may reach their providers again",
            (false, true) => {
                return Said::Failed(
                    "still offline: the configuration or $TAILHERD_OFFLINE says so".to_owned(),
                );
            }
        };
        tracing::info!("by a person: {what}");
        self.events.note("offline", what);
        Said::Done(match saved {
            Ok(()) => what.to_owned(),
            Err(error) => {
                format!("{what}; that could not be saved, and ends with a restart: {error}")
            }
        })
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("offline.json")
}

fn save(folder: &Path, offline: bool) -> std::io::Result<()> {
    store::write(&file(folder), &serde_json::to_vec(&Kept { v: 1, offline })?)
}

/// What was ordered. What cannot be read may have been an order to stay in, and is taken for one.
fn read(folder: &Path, events: &Events) -> bool {
    let wrong = |why: String| {
        tracing::warn!("{why}");
        events.note("offline", format!("offline until `tailherd offline off`: {why}"));
        true
    };
    match store::read(&file(folder)) {
        Ok(None) => false,
        Ok(Some(bytes)) => match serde_json::from_slice::<Kept>(&bytes) {
            Ok(kept) => kept.offline,
            Err(error) => wrong(format!("offline.json: {error}")),
        },
        Err(why) => wrong(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedEnv, parse};

    #[test]
    fn either_word_is_enough_and_an_order_outlasts_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let config = |text: &str| parse(text, None, &FixedEnv::default()).unwrap();
        let events = Events::new();
        let open = |text: &str| {
            let mut config = config(text);
            Offline::open(Some(folder.path().to_owned()), &mut config, &events);
            config.offline
        };
        assert!(!open("{}") && open("{ offline: true }"));
        save(folder.path(), true).unwrap();
        assert!(open("{}") && open("{ offline: true }"));
        save(folder.path(), false).unwrap();
        assert!(!open("{}") && open("{ offline: true }"));
        std::fs::write(file(folder.path()), "rubbish").unwrap();
        assert!(open("{}"), "what cannot be read keeps the doors shut");
    }
}
