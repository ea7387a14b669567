//! What providers were asked and paid today, kept over restarts: a day's limit or budget is one
//! for the whole day.
//!
//! In: the accounts. Out: a file that is written a moment after they changed, and at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep_until;

use crate::directory::accounts::{Accounts, Kept, today};
use crate::telemetry::{Clock, Events};
use crate::trust::store;

/// The accounts, and where they are kept.
#[derive(Debug, Clone)]
pub(super) struct Spend {
    pub(super) accounts: Arc<Accounts>,
    state: Option<PathBuf>,
}

impl Spend {
    /// With what an earlier run kept. What cannot be read is said: it may have been a day's
    /// money.
    pub(super) fn open(state: Option<PathBuf>, events: &Events) -> Spend {
        let accounts = Arc::new(Accounts::default());
        match state.as_deref().map(read) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(kept))) => accounts.recall(kept),
            Some(Err(why)) => {
                let said = format!("limits and budgets of today count from now: {why}");
                tracing::warn!("{said}");
                events.note("state", said);
            }
        }
        Spend { accounts, state }
    }

    /// Writes what changed, at most once in `every`.
    pub(super) async fn keep(self, clock: Clock, every: Duration) {
        let mut written = self.accounts.kept(today());
        loop {
            sleep_until(clock.next(every)).await;
            let kept = self.accounts.kept(today());
            if kept != written && self.save().await {
                written = kept;
            }
        }
    }

    /// Writes it now; false if that failed.
    pub(super) async fn save(&self) -> bool {
        let Some(folder) = self.state.clone() else { return true };
        let kept = self.accounts.kept(today());
        if kept.providers.is_empty() && !file(&folder).exists() {
            return true;
        }
        let write = move || store::write(&file(&folder), &serde_json::to_vec(&kept)?);
        let saved = tokio::task::spawn_blocking(write).await;
        let saved = saved.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = &saved {
            tracing::warn!("what was spent today could not be saved: {error}");
        }
        saved.is_ok()
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("spent.json")
}

fn read(folder: &Path) -> Result<Option<Kept>, String> {
    let bytes = store::read(&file(folder)).map_err(|why| why.to_string())?;
    let Some(bytes) = bytes else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("spent.json: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedEnv, parse};
    use crate::types::Moment;

    #[tokio::test]
    async fn what_was_paid_today_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new();
        let open = || Spend::open(Some(folder.path().to_owned()), &events);
        let text = "{ models: { providers: { p: { baseUrl: 'https://x.example' } } } }";
        let config = parse(text, None, &FixedEnv::default()).unwrap();
        let provider = &config.models.providers["p"];
        let spend = open();
        spend.accounts.sent(provider, Moment::ZERO, today());
        spend.accounts.paid(provider, 0.25, today());
        assert!(spend.save().await);
        let spent = open().accounts.spent(provider, today());
        assert!((spent.requests, spent.usd) == (1, 0.25), "{spent:?}");
        std::fs::write(file(folder.path()), "rubbish").unwrap();
        assert_eq!(open().accounts.spent(provider, today()).requests, 0);
        assert!(events.notes().iter().any(|note| format!("{note:?}").contains("count from now")));
    }
}
