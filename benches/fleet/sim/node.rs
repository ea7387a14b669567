//! A node as a sidecar sees its own: its engine, the product's queue before it, what it has
//! learned of its speeds, and what it says of all this to others.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tailherd::balance::Queue;
use tailherd::balance::queue::{Action, Entry, LoadId, LoadPlan, Seen, Target, Waiter, WaiterId};
use tailherd::balance::rates;
use tailherd::types::{Class, LoadKey, Moment};

use super::chance;
use super::fleet::Fleet;
use super::server::{Engine, Job, Numbers};

/// Jobs above this are loads of the gate.
const LOADS: u64 = 1 << 40;
/// Weight of a new sample.
const RATE_WEIGHT: f64 = 0.25;
const LOAD_WEIGHT: f64 = 0.3;
const OUTPUT_WEIGHT: f64 = 0.1;
/// How wrong a node's one look at itself is.
const SELF_ERROR: f64 = 0.3;
/// A load that took less was none: it was in memory.
const CONFIRMED: f64 = 0.25;
/// One stream of `n` side by side runs at `n^-SHARING` of its lone speed, a sidecar guesses.
const SHARING: f64 = 0.25;
/// How many requests may wait.
const LIMIT: usize = 10_000;
/// How long what was said is kept: longer than any way takes.
const KEPT: f64 = 1.0;
/// A wait that is wrong by no more than this, or by an eighth, is not told again.
const WRONG: f64 = 0.25;

pub(crate) fn moment(seconds: f64) -> Moment {
    Moment::new(Duration::from_secs_f64(seconds.max(0.0)))
}

/// A model's speeds as they were learned; 0 = never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Speeds {
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
}

impl Speeds {
    pub(crate) fn learn(&mut self, n: &Numbers) {
        if !n.cached && n.read.0 >= 20.0 {
            blend(&mut self.prefill, n.read.0 / n.read.1, RATE_WEIGHT);
        }
        if n.written.0 >= 5.0 && n.written.1 > 0.0 {
            let lone = n.written.0 / n.written.1 * (n.beside.max(1) as f64).powf(SHARING);
            blend(&mut self.decode, lone, RATE_WEIGHT);
        }
    }
}

fn blend(held: &mut f64, sample: f64, weight: f64) {
    *held = if *held > 0.0 { *held + weight * (sample.min(2.0 * *held) - *held) } else { sample };
}

/// What a node's one look at itself says of a model.
pub(crate) fn self_measured(fleet: &Fleet, node: usize, model: usize, seed: u64) -> Speeds {
    let place = (node * 100 + model) as u64 * 10;
    let guess = |what| chance::about_one(seed, place + what, 7, SELF_ERROR);
    let (prefill, decode) = fleet.rates(node, model);
    Speeds { prefill: prefill * guess(0), decode: decode * guess(1) }
}

/// Tokens of a usual answer, by model.
#[derive(Debug, Clone)]
pub(crate) struct Outputs(pub(crate) Vec<f64>);

impl Outputs {
    pub(crate) fn new(models: usize) -> Outputs {
        Outputs(vec![200.0; models])
    }

    pub(crate) fn learn(&mut self, model: usize, tokens: f64) {
        self.0[model] += OUTPUT_WEIGHT * (tokens - self.0[model]);
    }
}

/// What a node says of one of its models.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Row {
    pub(crate) loaded: bool,
    pub(crate) loading: bool,
    pub(crate) running: u32,
    pub(crate) queued: u32,
    pub(crate) begun: u32,
    pub(crate) wait: f64,
    /// What of that does not pass by itself: a load that nobody has begun.
    pub(crate) load: f64,
    pub(crate) speeds: Speeds,
    pub(crate) load_rate: f64,
    /// Whether its load would put nothing else out of memory.
    pub(crate) fits: bool,
}

impl Row {
    /// The wait so many seconds later, if nothing else happens.
    pub(crate) fn wait_after(&self, passed: f64) -> f64 {
        (self.wait - passed).max(self.load)
    }

    /// Whether another one says the same, given the time between: then it is not told. (Speeds
    /// change with answers, which change the rest.)
    fn is_same(&self, other: &Row, passed: f64) -> bool {
        let plain = |r: &Row| (r.loaded, r.loading, r.fits, r.running, r.queued, r.begun);
        let wrong = (self.wait_after(passed) - other.wait).abs();
        plain(self) == plain(other) && wrong <= WRONG.max(other.wait / 8.0)
    }
}

/// What a node says, when.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) at: f64,
    /// Each as it was last told, and when.
    pub(crate) rows: Vec<(f64, Row)>,
    /// Requests that wait, and how much longer.
    pub(crate) waiting: HashMap<u64, f64>,
}

#[derive(Debug)]
struct Gate {
    queue: Queue,
    held: HashMap<u64, Job>,
    loads: HashMap<u64, (LoadId, f64, usize)>,
    targets: Vec<Target>,
    speeds: Vec<Speeds>,
    load_rate: f64,
    outputs: Outputs,
    /// Seconds that a load of each model is thought to take.
    sizes: Vec<f64>,
    embeds: Vec<bool>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) engine: Engine,
    gate: Option<Gate>,
    said: VecDeque<Rc<Report>>,
    /// Whether something happened at its gate since it was last asked.
    moved: bool,
}

/// Whether a request was let in.
pub(crate) enum Door {
    In,
    Refused,
}

impl Node {
    pub(crate) fn new(fleet: &Fleet, node: usize, gated: bool, seed: u64) -> Node {
        let models = 0..fleet.models.len();
        let target = |m: usize| Target {
            weights: Arc::from(fleet.models[m].name.as_str()),
            key: LoadKey::default(),
        };
        let targets: Vec<Target> = models.clone().map(target).collect();
        let sizes: Vec<f64> = fleet.models.iter().map(|m| m.gb * 1e9).collect();
        let mut queue = Queue::new(true, fleet.machines[node].slots, LIMIT);
        // It has read its engine's list.
        for (target, size) in targets.iter().zip(&sizes) {
            queue.know(&target.weights, *size as u64);
        }
        let gate = gated.then(|| Gate {
            queue,
            held: HashMap::new(),
            loads: HashMap::new(),
            targets,
            speeds: models.clone().map(|m| self_measured(fleet, node, m, seed)).collect(),
            load_rate: 0.0,
            outputs: Outputs::new(fleet.models.len()),
            sizes,
            embeds: fleet
                .models
                .iter()
                .map(|m| m.lengths == super::fleet::Lengths::Embed)
                .collect(),
        });
        Node { engine: Engine::new(fleet, node), gate, said: VecDeque::new(), moved: false }
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// A request arrives with its prompt's length as it was estimated.
    pub(crate) fn enter(
        &mut self,
        job: Job,
        prompt: f64,
        class: Class,
        who: &Arc<str>,
        budget: Option<Duration>,
        now: f64,
    ) -> Door {
        let Some(gate) = &mut self.gate else {
            self.engine.submit(job, now);
            return Door::In;
        };
        let waiter = Waiter {
            id: WaiterId(job.id),
            target: gate.targets[job.model].clone(),
            class,
            principal: who.clone(),
            cost: Duration::from_secs_f64(gate.cost(job.model, prompt)),
            reads: gate.reads(job.model, prompt),
            load: gate.load_time(job.model),
            size: gate.sizes[job.model] as u64,
            budget,
            may_load: true,
            own: false,
            guest: false,
            evicts: true,
            max_inflight: None,
            solo: gate.embeds[job.model],
        };
        match gate.queue.enter(waiter, moment(now)) {
            Entry::Refuse(_) => return Door::Refused,
            Entry::Start => self.engine.submit(job, now),
            Entry::Wait => drop(gate.held.insert(job.id, job)),
            Entry::Load(plan) => {
                gate.held.insert(job.id, job);
                self.load(&plan, now);
            }
        }
        self.moved = true;
        Door::In
    }

    /// Whether a request still waits in the queue.
    pub(crate) fn holds(&self, id: u64) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.held.contains_key(&id))
    }

    /// How much longer a request waits; `None` once it was started.
    pub(crate) fn left(&self, id: u64, now: f64) -> Option<f64> {
        let gate = self.gate.as_ref()?;
        gate.queue.left(WaiterId(id), moment(now)).map(|left| left.as_secs_f64())
    }

    /// The caller has gone.
    pub(crate) fn cancel(&mut self, id: u64, now: f64) {
        match &mut self.gate {
            Some(gate) => {
                if gate.held.remove(&id).is_none() {
                    self.engine.cancel(id, now);
                }
                let actions = gate.queue.withdraw(WaiterId(id), moment(now));
                self.act(actions, now);
                self.moved = true;
            }
            None => self.engine.cancel(id, now),
        }
    }

    /// An answer begins.
    pub(crate) fn began(&mut self, id: u64, now: f64) {
        if let Some(gate) = &mut self.gate {
            let actions = gate.queue.began(WaiterId(id), moment(now));
            self.act(actions, now);
        }
    }

    /// An answer ended.
    pub(crate) fn done(&mut self, id: u64, numbers: &Numbers, now: f64) {
        if let Some(gate) = &mut self.gate {
            gate.speeds[numbers.model].learn(numbers);
            gate.outputs.learn(numbers.model, numbers.written.0);
            let actions = gate.queue.ended(WaiterId(id), moment(now));
            self.act(actions, now);
            self.moved = true;
        }
    }

    /// A load of the gate ended.
    pub(crate) fn loaded(&mut self, id: u64, now: f64) {
        let Some(gate) = &mut self.gate else { return };
        let Some((load, since, model)) = gate.loads.remove(&id) else { return };
        if now - since > CONFIRMED {
            let rate = gate.sizes[model] / (now - since - 0.8).max(0.05);
            gate.load_rate = match gate.load_rate {
                known if known > 0.0 => known + LOAD_WEIGHT * (rate - known),
                _ => rate,
            };
        }
        let actions = gate.queue.loaded(load, true, moment(now));
        self.act(actions, now);
        self.moved = true;
        self.observe(now);
    }

    /// The gate asks its engine what it has in memory.
    pub(crate) fn observe(&mut self, now: f64) {
        self.engine.advance(now);
        let Some(gate) = &mut self.gate else { return };
        let seen: Vec<Seen> = self
            .engine
            .loaded()
            .map(|m| Seen {
                weights: gate.targets[m].weights.clone(),
                size: gate.sizes[m] as u64,
                num_ctx: None,
                expires: None,
            })
            .collect();
        let actions = gate.queue.observed(&seen, moment(now), moment(now));
        self.act(actions, now);
    }

    fn act(&mut self, actions: Vec<Action>, now: f64) {
        self.moved |= !actions.is_empty();
        for action in actions {
            match (action, &mut self.gate) {
                (Action::Start(WaiterId(id)), Some(gate)) => {
                    if let Some(job) = gate.held.remove(&id) {
                        self.engine.submit(job, now);
                    }
                }
                (Action::Load(plan), _) => self.load(&plan, now),
                // Nobody here is refused late, and no load fails.
                _ => {}
            }
        }
    }

    fn load(&mut self, plan: &LoadPlan, now: f64) {
        let Some(gate) = &mut self.gate else { return };
        let Some(model) = gate.targets.iter().position(|t| *t == plan.target) else { return };
        let id = LOADS + plan.id.0;
        gate.loads.insert(id, (plan.id, now, model));
        let job = Job::preload(id, model);
        self.engine.submit(job, now);
    }

    /// What it says of itself to callers of a class.
    pub(crate) fn row(&self, model: usize, class: Class, now: f64) -> Row {
        let Some(gate) = &self.gate else {
            return Row { loaded: self.engine.is_loaded(model), ..Row::default() };
        };
        let load = gate.load_time(model);
        let stands = gate.queue.standing(gate.targets[model].clone(), load, moment(now));
        let wait = if class == Class::Own { stands.own } else { stands.interactive };
        let cold = !stands.loaded && !stands.loading;
        Row {
            loaded: stands.loaded,
            loading: stands.loading,
            running: stands.running as u32,
            queued: stands.queued as u32,
            begun: stands.begun,
            wait: wait.as_secs_f64(),
            load: if cold { load.min(wait).as_secs_f64() } else { 0.0 },
            speeds: gate.speeds[model],
            load_rate: gate.load_rate,
            fits: cold && stands.fits,
        }
    }

    /// Whether something happened at its gate since this was last asked.
    pub(crate) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Tells everybody what has changed. `due`: nothing having changed is told, too.
    pub(crate) fn report(&mut self, now: f64, models: usize, due: bool) {
        let last = self.said.back().cloned();
        let told = |m: usize| last.as_ref().and_then(|last| last.rows.get(m)).copied();
        let mut is_news = due;
        let mut rows = Vec::with_capacity(models);
        for model in 0..models {
            let row = self.row(model, Class::Interactive, now);
            rows.push(match told(model).filter(|(at, told)| told.is_same(&row, now - at)) {
                Some(told) => told,
                None => {
                    is_news = true;
                    (now, row)
                }
            });
        }
        if !is_news {
            return;
        }
        let ids = self.gate.iter().flat_map(|gate| gate.held.keys());
        let waiting = ids.filter_map(|id| Some((*id, self.left(*id, now)?))).collect();
        while self.said.len() > 2 && self.said[1].at < now - KEPT {
            self.said.pop_front();
        }
        self.said.push_back(Rc::new(Report { at: now, rows, waiting }));
    }

    /// The youngest report that somebody this far away has.
    pub(crate) fn heard(&self, now: f64, way: f64) -> Option<&Rc<Report>> {
        self.said.iter().rev().find(|report| report.at + way <= now)
    }
}

impl Gate {
    fn cost(&self, model: usize, prompt: f64) -> f64 {
        let Speeds { prefill, decode } = self.speeds[model];
        let output = if self.embeds[model] { 0.0 } else { self.outputs.0[model] };
        prompt / prefill.max(1e-3) + output / decode.max(1e-3)
    }

    fn reads(&self, model: usize, prompt: f64) -> Duration {
        Duration::from_secs_f64(prompt / self.speeds[model].prefill.max(1e-3))
    }

    fn load_time(&self, model: usize) -> Duration {
        let seconds = rates::load_time(self.sizes[model], self.load_rate, rates::USUAL_LOAD_RATE);
        Duration::from_secs_f64(seconds)
    }
}
