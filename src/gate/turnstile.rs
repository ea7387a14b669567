//! One engine's turnstile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::ask::{Ask, Attempt, Reason, Refusal, is_zero, weights_of};
use super::gates::Shared;
use super::share::Using;
use super::waiting::{Entered, Waiting};
use super::{LoadDone, LoadFail, LoadRequest, Loader};
use crate::balance::queue::{
    Action, Entry, LoadPlan, LoadWhy, Queue, Seen, Standing, Target, WaiterId,
};
use crate::telemetry::{CallerMeter, Clock, Counted, Metrics, ModelMeter};
use crate::types::{
    Class, Digest, EndpointId, EngineKind, LoadKey, ModelKey, Moment, NodeId, Outcome, Side,
};

/// A load that was to confirm what is in memory and took longer than this was a real one.
const CONFIRMED: Duration = Duration::from_millis(250);

/// What a gate is told about its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateConfig {
    /// The engine.
    pub endpoint: EndpointId,
    /// Its kind: only Ollama is told to load.
    pub kind: EngineKind,
    /// How many requests it runs at once per model.
    pub slots: u32,
    /// Most requests that wait.
    pub queue: u32,
}

/// The turnstile of one engine.
pub struct Gate {
    endpoint: EndpointId,
    loader: Arc<dyn Loader>,
    clock: Clock,
    metrics: Arc<Metrics>,
    node: Shared,
    state: Mutex<State>,
}

struct State {
    queue: Queue,
    next: u64,
    calls: HashMap<WaiterId, Call>,
    /// Requests of other nodes, those that run included.
    others: HashSet<WaiterId>,
    /// Requests of other sidecars that were let in and are not over.
    begun: HashMap<WaiterId, Attempt>,
}

/// Somebody who waits.
struct Call {
    ask: Arc<Ask>,
    answer: oneshot::Sender<Result<(), Refusal>>,
}

impl Gate {
    /// A gate with nobody in front of it, open to everybody.
    pub fn new(
        config: GateConfig,
        loader: Arc<dyn Loader>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Arc<Gate> {
        let (_, share) = watch::channel(super::Share::default());
        let node =
            Shared { changes: Arc::default(), loads: Arc::default(), share, used: Arc::default() };
        Gate::of(config, loader, clock, metrics, node)
    }

    /// The same, one of a node's.
    pub(super) fn of(
        config: GateConfig,
        loader: Arc<dyn Loader>,
        clock: Clock,
        metrics: Arc<Metrics>,
        node: Shared,
    ) -> Arc<Gate> {
        let loads = config.kind == EngineKind::Ollama;
        let mut queue = Queue::new(loads, config.slots, config.queue as usize);
        // Nobody is there yet for whom that would change something.
        queue.set_guests(node.share.borrow().inflight, clock.now());
        let state = Mutex::new(State {
            queue,
            next: 0,
            calls: HashMap::new(),
            others: HashSet::new(),
            begun: HashMap::new(),
        });
        Arc::new(Gate { endpoint: config.endpoint, loader, clock, metrics, node, state })
    }

    /// The engine behind it.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// Waits for a place, and for the load that the request needs. Dropping the future gives the
    /// place in the queue up; a load that was begun for it goes on.
    pub async fn enter(self: &Arc<Self>, ask: Ask) -> Result<Ticket, Refusal> {
        match self.ask(ask)? {
            Entered::Runs(ticket) => Ok(ticket),
            Entered::Waits(waiting) => waiting.ticket().await,
        }
    }

    /// Asks for a place: it is there now, or it has to be waited for.
    pub fn ask(self: &Arc<Self>, ask: Ask) -> Result<Entered, Refusal> {
        let began = self.clock.now();
        let meter = self.metrics.model(ask.model.short());
        let ask = Arc::new(ask);
        let mut state = self.state.lock();
        // With the lock held: whoever is not sent away here is seen by `heed`.
        let (refusal, loads) = {
            let share = self.node.share.borrow();
            (share.refuses(ask.side), share.loads)
        };
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        let id = WaiterId(state.next);
        state.next += 1;
        let entry = state.queue.enter(ask.waiter(id, loads), began);
        let using = (ask.side == Side::Here && ask.class == Class::Own)
            .then(|| self.node.used.begin(self.clock));
        let place = Place { gate: self.clone(), id, held: true, _using: using };
        if ask.side != Side::Here {
            state.others.insert(id);
        }
        self.tell();
        match entry {
            Entry::Start => {
                state.begins(id, &ask);
                drop(state);
                return Ok(Entered::Runs(Ticket::new(place, ask, meter, began)));
            }
            Entry::Refuse(refusal) => {
                state.others.remove(&id);
                place.gone();
                return Err(refusal.into());
            }
            Entry::Wait | Entry::Load(_) => {}
        }
        let (answer, answered) = oneshot::channel();
        state.calls.insert(id, Call { ask: ask.clone(), answer });
        if let Entry::Load(plan) = entry {
            self.load(&state, plan);
        }
        drop(state);
        Ok(Entered::Waits(Waiting::new(place, ask, meter, began, answered)))
    }

    /// A sidecar takes one of its requests back: it waits no longer, and is refused as withdrawn.
    /// `Some(false)`: it had begun, and goes on. `None`: it is not here.
    pub(super) fn withdraw(self: &Arc<Self>, attempt: &Attempt) -> Option<bool> {
        let mut state = self.state.lock();
        let is = |ask: &Ask| ask.attempt.as_ref() == Some(attempt);
        let Some(id) = state.calls.iter().find(|(_, c)| is(&c.ask)).map(|(id, _)| *id) else {
            return state.begun.values().any(|begun| begun == attempt).then_some(false);
        };
        let now = self.clock.now();
        let why = Reason::Withdrawn;
        state.answer(id, Err(Refusal { why, retry_after: Duration::ZERO }));
        let actions = state.queue.withdraw(id, now);
        self.tell();
        self.act(&mut state, actions);
        Some(true)
    }

    /// How long a request that waits here will still wait; `None` = it does not wait.
    pub(super) fn left(&self, id: WaiterId) -> Option<Duration> {
        let now = self.clock.now();
        self.state.lock().queue.left(id, now)
    }

    /// What the engine said, when asked at `asked`, that it has in memory (see [`weights_of`]).
    pub fn observed(self: &Arc<Self>, seen: &[Seen], asked: Moment) {
        let mut state = self.state.lock();
        let actions = state.queue.observed(seen, asked, self.clock.now());
        self.act(&mut state, actions);
    }

    /// Somebody had this model unloaded.
    pub fn note_unloaded(self: &Arc<Self>, weights: Option<&Digest>, model: &ModelKey) {
        let mut state = self.state.lock();
        let actions = state.queue.unloaded(&weights_of(weights, model), self.clock.now());
        self.act(&mut state, actions);
    }

    /// Another number of slots.
    pub fn set_slots(self: &Arc<Self>, slots: u32) {
        let mut state = self.state.lock();
        let actions = state.queue.set_slots(slots, self.clock.now());
        self.act(&mut state, actions);
    }

    /// Another bound of the queue.
    pub fn set_limit(&self, queue: u32) {
        self.state.lock().queue.set_limit(queue as usize);
    }

    /// How long such a request would wait if it came now, its load included.
    pub fn waits(&self, ask: &Ask) -> Duration {
        let now = self.clock.now();
        self.state.lock().queue.waits(&ask.target(), ask.class, ask.load_time(), now)
    }

    /// With which options these weights are in memory (see [`weights_of`]), as far as this gate
    /// had them loaded.
    pub fn held(&self, weights: &str) -> Option<LoadKey> {
        let now = self.clock.now();
        self.state.lock().queue.held(weights, now)
    }

    /// How many requests have come here so far: the same later on, and nobody came meanwhile.
    pub fn entered(&self) -> u64 {
        self.state.lock().next
    }

    /// How an offer of its engine stands here.
    pub(super) fn standing(&self, target: Target, load: Duration, size: u64) -> (Standing, u32) {
        let now = self.clock.now();
        let queue = &mut self.state.lock().queue;
        queue.know(&target.weights, size);
        (queue.standing(target, load, now), queue.slots())
    }

    /// The requests of one sidecar that wait here, and how long each still will.
    pub(super) fn waiting(&self, from: &NodeId, out: &mut Vec<(Arc<str>, Duration)>) {
        let now = self.clock.now();
        let state = self.state.lock();
        for (id, call) in &state.calls {
            let attempt = call.ask.attempt.as_ref().filter(|attempt| attempt.from == *from);
            if let (Some(attempt), Some(left)) = (attempt, state.queue.left(*id, now)) {
                out.push((attempt.id.clone(), left));
            }
        }
    }

    /// Sends away who waits and is not let in any more. What runs, ends.
    pub(super) fn heed(self: &Arc<Self>) {
        let share = self.node.share.borrow().clone();
        let mut state = self.state.lock();
        let refused: Vec<(WaiterId, Refusal)> = state
            .calls
            .iter()
            .filter_map(|(id, call)| Some((*id, share.refuses(call.ask.side)?)))
            .collect();
        for (id, refusal) in refused {
            let actions = state.queue.withdraw(id, self.clock.now());
            state.answer(id, Err(refusal));
            self.act(&mut state, actions);
        }
        let actions = state.queue.set_guests(share.inflight, self.clock.now());
        self.act(&mut state, actions);
        self.tell();
    }

    /// How many requests of other nodes run here, and how many wait.
    pub(super) fn of_others(&self) -> (usize, usize) {
        let state = self.state.lock();
        let waiting = state.others.iter().filter(|id| state.calls.contains_key(id)).count();
        (state.others.len() - waiting, waiting)
    }

    fn tell(&self) {
        self.node.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// How many requests wait, and how many run.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.queue.waiting(), state.queue.running())
    }

    fn act(self: &Arc<Self>, state: &mut State, actions: Vec<Action>) {
        if !actions.is_empty() {
            self.tell();
        }
        for action in actions {
            // Whoever has just gone takes its place back when its future is dropped.
            match action {
                Action::Start(id) => state.answer(id, Ok(())),
                Action::Refuse(id, refusal) => state.answer(id, Err(refusal.into())),
                Action::Load(plan) => self.load(state, plan),
                // Answered by `load_ended`, which has the engine's words.
                Action::Failed(_) => {}
            }
        }
    }

    /// Begins a load in a task of its own.
    fn load(self: &Arc<Self>, state: &State, plan: LoadPlan) {
        let Some(ask) = state.calls.get(&plan.by).map(|call| call.ask.clone()) else {
            // The queue names only who waits, and who waits is in `calls`.
            return;
        };
        let capabilities = ask.capabilities;
        let request = LoadRequest {
            name: ask.name.clone(),
            key: plan.target.key.clone(),
            // With a keep-alive of nothing an empty generate means "unload".
            keep_alive: ask.keep_alive.clone().filter(|text| !is_zero(text)),
            embeds: capabilities.embedding && !capabilities.completion,
        };
        let load = Load { gate: self.clone(), ask, plan, end: None };
        load.ask.cell.loading.store(true, Relaxed);
        tracing::info!(model = %load.ask.model, why = ?load.plan.why, "loading");
        let loading = self.loader.load(request);
        tokio::spawn(async move { load.end(loading.await) });
    }

    fn load_ended(self: &Arc<Self>, load: &mut Load) {
        let ask = &load.ask;
        let end = load.end.take().unwrap_or_else(|| {
            Err(LoadFail { status: None, text: "the load was given up".to_owned() })
        });
        ask.cell.loading.store(false, Relaxed);
        match &end {
            Ok(LoadDone { took }) => {
                tracing::info!(model = %ask.model, ms = took.as_millis(), "loaded");
                // Loaded, with a window that the engine will say: it cuts what is too large.
                ask.cell.set_loaded(1);
                self.measured(load, *took);
            }
            // The engine's text may quote the request: it goes to the caller, never to a log.
            Err(fail) => {
                tracing::warn!(model = %ask.model, status = fail.status, "load failed");
            }
        }
        let mut state = self.state.lock();
        let actions = state.queue.loaded(load.plan.id, end.is_ok(), self.clock.now());
        self.node.loads.send_modify(|n| *n = n.wrapping_add(1));
        self.tell();
        if let Err(fail) = end {
            for action in &actions {
                if let Action::Failed(id) = action {
                    let why = Reason::Load(fail.clone());
                    state.answer(*id, Err(Refusal { why, retry_after: Duration::ZERO }));
                }
            }
        }
        self.act(&mut state, actions);
    }

    fn measured(&self, load: &Load, took: Duration) {
        let why = load.plan.why;
        if why == LoadWhy::Confirm && took < CONFIRMED {
            return;
        }
        let meter = self.metrics.model(load.ask.model.short());
        meter.loaded(took);
        if why != LoadWhy::Cold {
            meter.avoidable_reload();
        }
        load.ask.cell.loaded_in(took, load.ask.size, self.clock.now());
    }
}

impl State {
    fn answer(&mut self, id: WaiterId, answer: Result<(), Refusal>) {
        if let Some(call) = self.calls.remove(&id) {
            match answer {
                Ok(()) => self.begins(id, &call.ask),
                Err(_) => {
                    self.others.remove(&id);
                }
            }
            // If nobody listens any more, its `Place` is being dropped.
            let _ = call.answer.send(answer);
        }
    }

    fn begins(&mut self, id: WaiterId, ask: &Ask) {
        if let Some(attempt) = &ask.attempt {
            self.begun.insert(id, attempt.clone());
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A place in the queue or at the engine, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) gate: Arc<Gate>,
    pub(super) id: WaiterId,
    held: bool,
    _using: Option<Using>,
}

impl Place {
    /// The queue has already forgotten it.
    pub(super) fn gone(mut self) {
        self.held = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let mut state = self.gate.state.lock();
        state.others.remove(&self.id);
        state.calls.remove(&self.id);
        state.begun.remove(&self.id);
        let actions = state.queue.withdraw(self.id, self.gate.clock.now());
        self.gate.tell();
        self.gate.act(&mut state, actions);
    }
}

/// A load that is going on. However its task ends, the gate hears of it.
struct Load {
    gate: Arc<Gate>,
    ask: Arc<Ask>,
    plan: LoadPlan,
    end: Option<Result<LoadDone, LoadFail>>,
}

impl Load {
    fn end(mut self, end: Result<LoadDone, LoadFail>) {
        self.end = Some(end);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let gate = self.gate.clone();
        gate.load_ended(self);
    }
}

/// The right to use the engine. Hold it to the end of the answer's body.
#[derive(Debug)]
pub struct Ticket {
    ask: Arc<Ask>,
    meter: Arc<ModelMeter>,
    caller: Arc<CallerMeter>,
    waited: Duration,
    started: Moment,
    outcome: Outcome,
    _inflight: Counted,
    /// Dropped last: then the next request starts.
    place: Place,
}

impl Ticket {
    pub(super) fn new(
        place: Place,
        ask: Arc<Ask>,
        meter: Arc<ModelMeter>,
        began: Moment,
    ) -> Ticket {
        let started = place.gate.clock.now();
        let waited = started.since(began);
        meter.waited(waited);
        Ticket {
            caller: place.gate.metrics.caller(&ask.principal),
            waited,
            started,
            // Who drops a ticket without a word was cancelled.
            outcome: Outcome::ClientCancel,
            _inflight: meter.inflight(),
            place,
            ask,
            meter,
        }
    }

    /// How long the request waited, its load included.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The first byte of the answer is here: the prompt has been read.
    pub fn began(&self) {
        let gate = &self.place.gate;
        let mut state = gate.state.lock();
        let actions = state.queue.began(self.place.id, gate.clock.now());
        gate.act(&mut state, actions);
    }

    /// How the request ended; without this it counts as cancelled.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Tokens the engine read and wrote, as it counted them.
    pub fn tokens(&self, prompt: u64, output: u64) {
        self.caller.tokens(prompt, output);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.meter.served(self.outcome);
        let gate = &self.place.gate;
        self.caller.worked(gate.clock.now().since(self.started));
        if self.ask.keep_alive.as_deref().is_some_and(is_zero) {
            gate.note_unloaded(self.ask.weights.as_ref(), &self.ask.model);
        }
    }
}
