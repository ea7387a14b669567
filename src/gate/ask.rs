//! What is asked of a gate, and how it says no.

use std::sync::Arc;
use std::time::Duration;

use super::LoadFail;
use crate::balance::queue::{self, Target, Waiter, WaiterId, Why};
use crate::balance::rates;
use crate::config::ShareLoads;
use crate::directory::{Cell, Offer};
use crate::types::{Capabilities, Class, Digest, LoadKey, ModelKey, NodeId, Side};

/// A request at the gate.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model.
    pub model: ModelKey,
    /// Its name as the engine lists it.
    pub name: Arc<str>,
    /// Digest of its weights, if known.
    pub weights: Option<Digest>,
    /// The options that belong to the runner.
    pub load_key: LoadKey,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its bytes; 0 = not known.
    pub size: u64,
    /// Its live numbers.
    pub cell: Arc<Cell>,
    /// The class.
    pub class: Class,
    /// How near who asks is to this node's owner.
    pub side: Side,
    /// On whose behalf: `local`, or the principal's label.
    pub principal: Arc<str>,
    /// `keep_alive` as the request has it, as JSON.
    pub keep_alive: Option<String>,
    /// How long the engine will work for it.
    pub predicted: Duration,
    /// The part of it in which the prompt is read.
    pub reads: Duration,
    /// It is refused if it would wait longer than this.
    pub wait_budget: Option<Duration>,
    /// Whether the model may be loaded for it.
    pub may_load: bool,
    /// Most requests of its principal that may run at once; `None` = any number.
    pub max_inflight: Option<u32>,
    /// What the sidecar that sent it calls it, so that it can be told how long it waits.
    pub attempt: Option<Attempt>,
}

/// A request as the sidecar that sent it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its number there.
    pub id: Arc<str>,
    /// Who sent it.
    pub from: NodeId,
}

impl Ask {
    /// A request of a program on this node for an offer of this node's engine.
    pub fn own(offer: &Offer, load_key: LoadKey, predicted: Duration) -> Ask {
        Ask {
            model: offer.key.clone(),
            name: offer.name.clone(),
            weights: offer.weights.clone(),
            load_key,
            capabilities: offer.capabilities,
            size: offer.size,
            cell: offer.cell.clone(),
            class: Class::Own,
            side: Side::Here,
            principal: "local".into(),
            keep_alive: None,
            predicted,
            reads: Duration::ZERO,
            wait_budget: None,
            may_load: true,
            max_inflight: None,
            attempt: None,
        }
    }

    /// How long its load takes.
    pub(super) fn load_time(&self) -> Duration {
        load_time(self.size, &self.cell)
    }

    pub(super) fn target(&self) -> Target {
        let weights = weights_of(self.weights.as_ref(), &self.model);
        Target { weights, key: self.load_key.clone() }
    }
}

/// How long the load of so many bytes takes.
pub(super) fn load_time(size: u64, cell: &Cell) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a prediction")]
    let seconds = rates::load_time(size as f64, cell.load_rate.get(), rates::USUAL_LOAD_RATE);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600))
}

/// The word under which the gate keeps what is in memory: the digest of the weights (Ollama has
/// one runner per weights, whatever the names on them), or the model's name where none is known.
pub fn weights_of(weights: Option<&Digest>, model: &ModelKey) -> Arc<str> {
    weights.map_or_else(|| Arc::from(model.as_str()), |digest| digest.0.clone())
}

/// Why a request was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub why: Reason,
    /// After how long it is worth asking again, as predicted.
    pub retry_after: Duration,
}

/// The reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The queue is full.
    Full,
    /// It would wait longer than its budget.
    Wait,
    /// Its model is not in memory, and it may not have it loaded.
    NotLoaded,
    /// This node does not work for such callers now.
    Paused,
    /// The same, by a person's order to take nothing new.
    Draining,
    /// Who sent it took it back.
    Withdrawn,
    /// Its model could not be loaded.
    Load(LoadFail),
}

impl Reason {
    /// The word in `x-tailherd-refused`, metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Reason::Full => Why::Full.label(),
            Reason::Wait => Why::Wait.label(),
            Reason::NotLoaded => Why::NotLoaded.label(),
            Reason::Paused => "paused",
            Reason::Draining => "draining",
            Reason::Withdrawn => "withdrawn",
            Reason::Load(_) => "load_failed",
        }
    }
}

impl Ask {
    pub(super) fn waiter(&self, id: WaiterId, loads: ShareLoads) -> Waiter {
        let guest = self.side == Side::Guest;
        Waiter {
            id,
            target: self.target(),
            class: self.class,
            principal: self.principal.clone(),
            cost: self.predicted,
            reads: self.reads,
            load: self.load_time(),
            size: self.size,
            budget: self.wait_budget,
            may_load: self.may_load && !(guest && loads == ShareLoads::None),
            own: !guest,
            guest,
            evicts: !guest || loads == ShareLoads::Any,
            max_inflight: self.max_inflight,
            solo: self.capabilities.embedding && !self.capabilities.completion,
        }
    }
}

impl From<queue::Refusal> for Refusal {
    fn from(refusal: queue::Refusal) -> Refusal {
        let why = match refusal.why {
            Why::Full => Reason::Full,
            Why::Wait => Reason::Wait,
            Why::NotLoaded => Reason::NotLoaded,
        };
        Refusal { why, retry_after: refusal.retry_after }
    }
}

/// Whether a `keep_alive` says "unload at once": `0`, `"0"`, `"0s"`, `"0m0s"`.
pub(super) fn is_zero(keep_alive: &str) -> bool {
    let text = keep_alive.trim().trim_matches('"');
    let digits = |c: char| c.is_ascii_digit();
    text.contains('0')
        && text.chars().all(|c| matches!(c, '0' | '.' | 'h' | 'm' | 's' | 'n' | 'u' | 'µ'))
        && text.starts_with(digits)
}
