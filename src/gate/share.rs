//! For whom this node works at the moment.
//!
//! A plain value: whoever watches batteries, links and the clock sets it with
//! [`Gates::share_with`](super::Gates::share_with); reports tell it to peers.

use std::sync::Arc;

use crate::api::report::Accepting;

/// For whom this node works, and how much it may say about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// For whom.
    pub accepting: Accepting,
    /// Why not for all; empty if it does.
    pub why: Arc<str>,
    /// Whether every word costs (a battery, a metered link): then reports are rare.
    pub sparing: bool,
}
