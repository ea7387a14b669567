//! Meters: handles of series, resolved once, then only atomics.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{Counter, Histogram, IntCounter, IntCounterVec, IntGauge};

use super::families::Families;
use crate::types::{Api, Op, Outcome};

/// One request, from where it entered the mesh. Dropping it counts nothing: call
/// [`RequestMeter::finish`].
#[derive(Debug)]
pub struct RequestMeter {
    pair: Arc<Pair>,
    route: Arc<Route>,
    infers: bool,
    first: Option<Duration>,
    /// Seconds a token.
    pace: Option<f64>,
}

impl RequestMeter {
    pub(super) fn new(pair: Arc<Pair>, api: Api, op: Op) -> RequestMeter {
        let route = pair.route(api, op);
        RequestMeter { pair, route, infers: op.is_inference(), first: None, pace: None }
    }

    /// The first byte of the answer's body came, this long after the request's head.
    pub fn first_byte(&mut self, after: Duration) {
        if self.infers && self.first.is_none() {
            self.first = Some(after);
            self.pair.first_token().observe(after.as_secs_f64());
        }
    }

    /// Tokens of prompt and answer, as the engine counted them.
    pub fn tokens(&mut self, prompt: u64, output: u64) {
        self.pair.prompt().inc_by(prompt);
        self.pair.output().inc_by(output);
    }

    /// So many tokens were written in this time. An answer that came in one piece, of an engine
    /// that does not say how long it wrote, has no such time.
    pub fn wrote(&mut self, tokens: u64, time: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
        let pace = time.as_secs_f64() / tokens.max(1) as f64;
        self.pace = (self.infers && tokens > 0).then_some(pace);
    }

    /// The request ended, this long after its head.
    pub fn finish(self, outcome: Outcome, took: Duration) {
        self.route.duration.observe(took.as_secs_f64());
        self.route.outcomes.inc(outcome);
        if let Some(pace) = self.pace {
            self.pair.per_token().observe(pace);
        }
    }
}

/// One model in this node's gate.
#[derive(Debug)]
pub struct ModelMeter {
    queue_wait: Histogram,
    load: Histogram,
    queued: IntGauge,
    inflight: IntGauge,
    avoidable_reloads: IntCounter,
    context_short: IntCounter,
    outcomes: Outcomes,
}

impl ModelMeter {
    pub(super) fn new(f: &Families, model: &str) -> ModelMeter {
        ModelMeter {
            queue_wait: f.queue_wait.with_label_values(&[model]),
            load: f.model_load.with_label_values(&[model]),
            queued: f.queued.with_label_values(&[model]),
            inflight: f.inflight.with_label_values(&[model]),
            avoidable_reloads: f.avoidable_reloads.with_label_values(&[model]),
            context_short: f.context_short.with_label_values(&[model]),
            outcomes: Outcomes::new(&f.served, &[model]),
        }
    }

    /// A request waited this long.
    pub fn waited(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// A load took this long.
    pub fn loaded(&self, took: Duration) {
        self.load.observe(took.as_secs_f64());
    }

    /// Counts one more waiting request until the returned guard is dropped.
    pub fn queued(&self) -> Counted {
        Counted::up(self.queued.clone())
    }

    /// Counts one more running request until the returned guard is dropped.
    pub fn inflight(&self) -> Counted {
        Counted::up(self.inflight.clone())
    }

    /// A request that this node's engine was given ended.
    pub fn served(&self, outcome: Outcome) {
        self.outcomes.inc(outcome);
    }

    /// A load that equal options would have saved.
    pub fn avoidable_reload(&self) {
        self.avoidable_reloads.inc();
    }

    /// A window too short for the prompt was used.
    pub fn context_short(&self) {
        self.context_short.inc();
    }
}

/// One caller that this node's engines worked for.
#[derive(Debug)]
pub struct CallerMeter {
    seconds: Counter,
    prompt: IntCounter,
    output: IntCounter,
}

impl CallerMeter {
    pub(super) fn new(f: &Families, caller: &str) -> CallerMeter {
        CallerMeter {
            seconds: f.served_seconds.with_label_values(&[caller]),
            prompt: f.served_tokens.with_label_values(&[caller, "prompt"]),
            output: f.served_tokens.with_label_values(&[caller, "output"]),
        }
    }

    /// An engine worked this long for it.
    pub fn worked(&self, took: Duration) {
        self.seconds.inc_by(took.as_secs_f64());
    }

    /// Tokens read and written for it.
    pub fn tokens(&self, prompt: u64, output: u64) {
        self.prompt.inc_by(prompt);
        self.output.inc_by(output);
    }
}

/// Something that is counted as long as it lives.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    fn up(gauge: IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The handles of one (model, peer). A series begins with its first sample, so that lists and
/// refusals leave no empty histograms behind.
#[derive(Debug)]
pub(super) struct Pair {
    families: Arc<Families>,
    pub(super) model: Box<str>,
    pub(super) peer: Box<str>,
    first_token: OnceLock<Histogram>,
    per_token: OnceLock<Histogram>,
    prompt: OnceLock<IntCounter>,
    output: OnceLock<IntCounter>,
    routes: RwLock<Vec<Arc<Route>>>,
}

impl Pair {
    pub(super) fn new(families: Arc<Families>, model: &str, peer: &str) -> Pair {
        Pair {
            families,
            model: model.into(),
            peer: peer.into(),
            first_token: OnceLock::new(),
            per_token: OnceLock::new(),
            prompt: OnceLock::new(),
            output: OnceLock::new(),
            routes: RwLock::default(),
        }
    }

    fn labels(&self) -> [&str; 2] {
        [&self.model, &self.peer]
    }

    fn first_token(&self) -> &Histogram {
        self.first_token.get_or_init(|| self.families.first_token.with_label_values(&self.labels()))
    }

    fn per_token(&self) -> &Histogram {
        self.per_token.get_or_init(|| self.families.per_token.with_label_values(&self.labels()))
    }

    fn prompt(&self) -> &IntCounter {
        self.prompt.get_or_init(|| self.tokens("prompt"))
    }

    fn output(&self) -> &IntCounter {
        self.output.get_or_init(|| self.tokens("output"))
    }

    fn tokens(&self, kind: &str) -> IntCounter {
        self.families.tokens.with_label_values(&[&*self.model, &*self.peer, kind])
    }

    fn route(&self, api: Api, op: Op) -> Arc<Route> {
        let find = |routes: &[Arc<Route>]| {
            routes.iter().find(|route| (route.api, route.op) == (api, op)).cloned()
        };
        if let Some(route) = find(&self.routes.read()) {
            return route;
        }
        let mut routes = self.routes.write();
        find(&routes).unwrap_or_else(|| {
            let route = Arc::new(Route::new(self, api, op));
            routes.push(route.clone());
            route
        })
    }
}

/// The handles of one operation in one dialect of one (model, peer).
#[derive(Debug)]
struct Route {
    api: Api,
    op: Op,
    duration: Histogram,
    outcomes: Outcomes,
}

impl Route {
    fn new(pair: &Pair, api: Api, op: Op) -> Route {
        let f = &pair.families;
        let labels = [api.label(), op.label(), &*pair.model, &*pair.peer];
        Route {
            api,
            op,
            duration: f.duration.with_label_values(&[api.label(), &*pair.peer]),
            outcomes: Outcomes::new(&f.requests, &labels),
        }
    }
}

/// One counter for each outcome, of a family whose last label is the outcome.
#[derive(Debug)]
struct Outcomes {
    family: IntCounterVec,
    labels: Box<[Box<str>]>,
    counters: [OnceLock<IntCounter>; 6],
}

impl Outcomes {
    fn new(family: &IntCounterVec, labels: &[&str]) -> Outcomes {
        Outcomes {
            family: family.clone(),
            labels: labels.iter().map(|l| Box::from(*l)).collect(),
            counters: Default::default(),
        }
    }

    fn inc(&self, outcome: Outcome) {
        let at = match outcome {
            Outcome::Done => 0,
            Outcome::ClientCancel => 1,
            Outcome::Truncated => 2,
            Outcome::IdleTimeout => 3,
            Outcome::Refused => 4,
            Outcome::UpstreamError => 5,
        };
        self.counters[at]
            .get_or_init(|| {
                let mut labels: Vec<&str> = self.labels.iter().map(|l| &**l).collect();
                labels.push(outcome.label());
                self.family.with_label_values(&labels)
            })
            .inc();
    }
}
