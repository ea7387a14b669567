//! What goes into a queue and what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use crate::types::{Class, LoadKey, Moment};

/// The number of a request, given by the queue's owner: unique while the request is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// The number of a load. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadId(pub u64);

/// What has to be in memory for a request to run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Digest of the weights, or the model's name where no digest is known. Ollama has one runner
    /// per weights, whatever the names on them.
    pub weights: Arc<str>,
    /// The options that belong to the runner.
    pub key: LoadKey,
}

/// A request that wants the engine.
#[derive(Debug, Clone)]
pub struct Waiter {
    /// Its number.
    pub id: WaiterId,
    /// What it needs in memory.
    pub target: Target,
    /// Its class.
    pub class: Class,
    /// On whose behalf it comes.
    pub principal: Arc<str>,
    /// How long the engine will work for it.
    pub cost: Duration,
    /// The part of it in which its prompt is read.
    pub reads: Duration,
    /// How long its load takes, if it needs one.
    pub load: Duration,
    /// Bytes of its weights; 0 = not known.
    pub size: u64,
    /// It is refused if it would wait longer than this.
    pub budget: Option<Duration>,
    /// Whether it may make the engine load its model.
    pub may_load: bool,
    /// Whether it comes from the engine's owner: what he uses is his for a while.
    pub own: bool,
    /// Whether it comes from somebody else's device.
    pub guest: bool,
    /// Whether its load may push out what the owner has in memory.
    pub evicts: bool,
    /// Most requests of its principal that may run at once.
    pub max_inflight: Option<u32>,
    /// Whether its model runs one request at a time whatever the slots (embedding-only).
    pub solo: bool,
}

/// What becomes of a request that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It runs now.
    Start,
    /// It waits, and this load begins now.
    Load(LoadPlan),
    /// It waits.
    Wait,
    /// It is sent away.
    Refuse(Refusal),
}

/// What is to be done after something changed. Every waiter gets exactly one of `Start`,
/// `Refuse` and `Failed`, unless it was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// This waiter runs now.
    Start(WaiterId),
    /// This load begins now.
    Load(LoadPlan),
    /// This waiter is sent away.
    Refuse(WaiterId, Refusal),
    /// The load this waiter waited for has failed.
    Failed(WaiterId),
}

/// A load to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadPlan {
    /// Its number.
    pub id: LoadId,
    /// What is to be in memory afterwards.
    pub target: Target,
    /// The waiter for whom it is made: it knows the model's name and options in full.
    pub by: WaiterId,
    /// Why it is made.
    pub why: LoadWhy,
}

/// Why a load is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadWhy {
    /// The weights are not in memory.
    Cold,
    /// The weights are in memory under other options.
    Reload,
    /// The weights are in memory, but somebody else put them there: this says for sure with which
    /// options, and costs milliseconds if they fit.
    Confirm,
}

/// Why a request was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub why: Why,
    /// The wait that is predicted for it now.
    pub retry_after: Duration,
}

/// The reasons of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The queue is full.
    Full,
    /// It would wait longer than its budget.
    Wait,
    /// Its model is not in memory, and it may not have it loaded.
    NotLoaded,
}

impl Why {
    /// The word in `x-tailherd-refused`, metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Why::Full => "full",
            Why::Wait => "wait",
            Why::NotLoaded => "not_loaded",
        }
    }
}

/// What the engine says it has in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As in [`Target::weights`].
    pub weights: Arc<str>,
    /// Their bytes; 0 = not known.
    pub size: u64,
    /// The context window it is loaded with; `None` = not said.
    pub num_ctx: Option<u64>,
    /// When it will be let go if nobody uses it.
    pub expires: Option<Moment>,
}

/// What stands in the queue for one target, for reports and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The target.
    pub target: &'a Target,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Whether it is being loaded.
    pub loading: bool,
    /// How many requests run.
    pub running: usize,
    /// How many wait.
    pub queued: usize,
}
