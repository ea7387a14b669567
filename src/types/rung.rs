//! How much of the mesh is left.

use std::sync::Arc;

use super::Moment;

/// A rung of the ladder, best first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The first seconds: nothing is known yet.
    Starting,
    /// Tailnet and coordinator work.
    Full,
    /// The tunnels work, the coordinator does not.
    CoordinatorLost,
    /// The tunnels do not work.
    TailnetLost,
    /// No peer can be reached on any path.
    Alone,
}

impl Rung {
    /// All rungs, for the metric that shows one of them as 1.
    pub const ALL: [Rung; 5] =
        [Rung::Starting, Rung::Full, Rung::CoordinatorLost, Rung::TailnetLost, Rung::Alone];

    /// The word in metrics, status and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Rung::Starting => "starting",
            Rung::Full => "full",
            Rung::CoordinatorLost => "coordinator_lost",
            Rung::TailnetLost => "tailnet_lost",
            Rung::Alone => "alone",
        }
    }
}

/// A rung, why it is that one, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RungState {
    /// The rung.
    pub rung: Rung,
    /// Why, in one word for machines (`daemon_down`, `no_tailnet`, `logged_out` …) or empty.
    pub why: Arc<str>,
    /// When it began.
    pub since: Moment,
}
