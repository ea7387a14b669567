//! What commands that run beside the program ask this machine's tailscaled themselves.

use crate::config::Config;
use crate::net::TailnetView;
use crate::net::localapi::{ApiError, FindError, LocalApi};
use crate::types::Timing;

/// Why there is no picture of a running tailnet.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTailnet {
    /// `tailnet.enabled` is false.
    #[error("`tailnet.enabled` is false")]
    Off,
    /// No LocalAPI can be used.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It does not answer.
    #[error(transparent)]
    Ask(#[from] ApiError),
    /// It answers, and the tailnet does not run.
    #[error("the tailnet does not run: tailscaled says `{0}` (tailscale up)")]
    Stopped(String),
}

/// The whole picture of a running tailnet.
pub(super) async fn look(config: &Config) -> Result<(LocalApi, TailnetView), NoTailnet> {
    if config.tailnet.enabled == Some(false) {
        return Err(NoTailnet::Off);
    }
    let api = LocalApi::find(&config.tailnet, &Timing::default()).await?;
    let view = api.status(true).await?;
    if view.running && view.me.is_some() {
        Ok((api, view))
    } else {
        Err(NoTailnet::Stopped(view.state))
    }
}
