//! What a machine says of its use, its link and its sleep.

use std::time::Duration;

/// What it says now; `None` = nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// For how long nobody has used it.
    pub idle: Option<Duration>,
    /// Whether its way to the world is paid by the byte.
    pub metered: Option<bool>,
    /// Whether it is about to sleep.
    pub sleeping: bool,
}
