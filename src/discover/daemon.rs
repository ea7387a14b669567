//! The local tailscaled, as long as there is one: found, asked, lost, found again.
//!
//! Out: one picture of the tailnet each time it is asked, and whether the daemon itself said
//! so just now; its packet filter; its bell. Nothing here makes anything of a picture.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::rung::SWITCHED_OFF;
use crate::config;
use crate::net::TailnetView;
use crate::net::localapi::{self, ApiError, FindError, LocalApi};
use crate::trust::Filter;
use crate::types::Timing;

/// The daemon.
pub(super) struct Daemon {
    timing: Timing,
    /// Where the LocalAPI in use is put for dials and WhoIs.
    current: localapi::Current,
    api: Option<LocalApi>,
    rings: Option<mpsc::Receiver<()>>,
    /// Reads that LocalAPI did not answer in time, in a row.
    slow: u32,
    /// What was last said about the lack of a LocalAPI, so that it is said once.
    lack: String,
    /// When the peers were last read; `None` = they have to be.
    read: Option<Instant>,
}

/// One picture.
pub(super) struct Answer {
    pub(super) view: TailnetView,
    /// Whether the daemon said it just now. If not, it is the one before, or there is none.
    pub(super) fresh: bool,
}

impl Daemon {
    pub(super) fn new(current: localapi::Current, timing: Timing) -> Daemon {
        Daemon { timing, current, api: None, rings: None, slow: 0, lack: String::new(), read: None }
    }

    /// Whether there is one.
    pub(super) fn is_found(&self) -> bool {
        self.api.is_some()
    }

    /// The next ring of its bell; never, if there is none.
    pub(super) async fn ring(&mut self) {
        let Some(rings) = &mut self.rings else { return std::future::pending().await };
        if rings.recv().await.is_none() {
            self.rings = None;
        }
    }

    /// Peers are read anew at the next look.
    pub(super) fn look_anew(&mut self) {
        self.read = None;
    }

    /// It is looked for anew at the next look.
    pub(super) fn lose(&mut self) {
        self.api = None;
        self.rings = None;
        self.slow = 0;
        self.read = None;
        self.current.store(None);
    }

    /// Asks for a picture; `last` is the one before, `known` whether there ever was a daemon.
    pub(super) async fn ask(
        &mut self,
        config: &config::Tailnet,
        last: &TailnetView,
        known: bool,
    ) -> Answer {
        let without = |why| Answer { view: TailnetView::absent(why), fresh: false };
        if config.enabled == Some(false) {
            return without(SWITCHED_OFF);
        }
        if self.api.is_none() {
            match LocalApi::find(config, &self.timing).await {
                Ok(api) => self.found(api),
                Err(error) => return without(self.lacks(&error, config, known)),
            }
        }
        let Some(api) = self.api.clone() else { return without("no_tailnet") };
        match self.read_from(&api, last).await {
            Ok(view) => {
                self.slow = 0;
                Answer { view, fresh: true }
            }
            // A busy machine may miss one answer; the dials are bound to the tailnet's device
            // all the same.
            Err(ApiError::Slow(_)) if self.slow == 0 => {
                self.slow = 1;
                Answer { view: last.clone(), fresh: false }
            }
            Err(error) => {
                self.say(&error.to_string());
                self.lose();
                without("daemon_down")
            }
        }
    }

    /// The packet filter of the tailnet that `view` is a picture of.
    pub(super) async fn filter(&self, view: &TailnetView) -> Option<Filter> {
        let api = self.api.as_ref()?;
        let filter = match api.packet_filter().await {
            Ok(filter) => filter?,
            Err(error) => {
                tracing::debug!("the packet filter could not be read: {error}");
                return None;
            }
        };
        // The user may have changed to another tailnet between the two questions.
        let now = api.status(false).await.ok()?;
        let id = |view: &TailnetView| view.me.as_ref().map(|me| me.id.clone());
        (now.running && now.control == view.control && id(&now) == id(view)).then_some(filter)
    }

    fn found(&mut self, api: LocalApi) {
        tracing::info!(at = api.place(), "found tailscaled");
        self.lack.clear();
        self.rings = Some(api.bell());
        self.current.store(Some(Arc::new(api.clone())));
        self.api = Some(api);
        self.read = None;
    }

    /// One picture. Peers are read anew when they are due or when this node's own part of the
    /// picture moved; otherwise they are those of the last one.
    async fn read_from(
        &mut self,
        api: &LocalApi,
        last: &TailnetView,
    ) -> Result<TailnetView, ApiError> {
        let due = self.read.is_none_or(|at| at.elapsed() >= self.timing.tailnet_refresh);
        if !due {
            let mut view = api.status(false).await?;
            let same = (&view.state, &view.control, &view.me, view.online)
                == (&last.state, &last.control, &last.me, last.online);
            if same {
                view.peers.clone_from(&last.peers);
                return Ok(view);
            }
        }
        let view = api.status(true).await?;
        self.read = Some(Instant::now());
        Ok(view)
    }

    fn lacks(&mut self, error: &FindError, config: &config::Tailnet, known: bool) -> &'static str {
        // On a machine that never had a tailnet this is no fault and no news.
        if error.is_none() && config.enabled != Some(true) && !known {
            tracing::debug!("{error}");
        } else {
            self.say(&error.to_string());
        }
        match error {
            FindError::Distrust { .. } => "untrusted_socket",
            _ if known => "daemon_down",
            _ => "no_tailnet",
        }
    }

    fn say(&mut self, text: &str) {
        if self.lack != text {
            text.clone_into(&mut self.lack);
            tracing::warn!("no tailnet: {text}");
        }
    }
}
