//! What a machine says of its use, its link and its sleep.
//!
//! In: the system's own services. Out: a [`Host`], as it changes. Where nobody says anything (a
//! container, another system) there is nothing known, and nothing is restricted by it.

use std::time::Duration;

use tokio::sync::watch;

use crate::types::Power;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "macos", test))]
mod macos;

/// What it says now; `None` = nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// What it runs on, where that is not read at once by [`Sockets::power`](super::Sockets).
    pub power: Option<Power>,
    /// For how long nobody has used it.
    pub idle: Option<Duration>,
    /// Whether its way to the world is paid by the byte.
    pub metered: Option<bool>,
    /// Whether it is about to sleep.
    pub sleeping: bool,
}

/// Tells `out` what the machine says, for as long as somebody listens.
pub(super) async fn follow(out: watch::Sender<Host>) {
    #[cfg(target_os = "linux")]
    linux::follow(out).await;
    #[cfg(target_os = "macos")]
    macos::follow(out).await;
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    out.closed().await;
}
