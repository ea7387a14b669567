//! What the gate asks of an engine: bring a model into memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::types::LoadKey;

/// A load to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    /// The model, as the engine lists it.
    pub name: Arc<str>,
    /// The options that belong to the runner.
    pub key: LoadKey,
    /// The `keep_alive` of the request it is made for, as JSON; `None` = the engine's own.
    pub keep_alive: Option<String>,
    /// The model only embeds: an empty generate would be refused.
    pub embeds: bool,
}

/// A load that worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadDone {
    /// How long it took.
    pub took: Duration,
}

/// A load that failed, in the engine's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFail {
    /// The engine's status; `None` = it could not be reached, or broke off.
    pub status: Option<u16>,
    /// The engine's message, or what kept us from asking.
    pub text: String,
}

/// A load that is going on.
pub type Loading = Pin<Box<dyn Future<Output = Result<LoadDone, LoadFail>> + Send>>;

/// Brings models of one engine into memory.
pub trait Loader: Send + Sync {
    /// Begins a load. The future is driven in a task of its own, to its end.
    fn load(&self, request: LoadRequest) -> Loading;
}
