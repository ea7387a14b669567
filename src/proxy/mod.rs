//! The data side: from a request on a listener to the last byte of its answer.
//!
//! ```text
//! Accepted{door} -> Caller -> Asked{route, wishes} -> Peeked + Held{frames, rest}
//!   -> Plan{offers} -> Attempt{ticket} -> Relay{ending, finish} -> metrics, cells
//! ```
//!
//! One small file per step, in that order: [`asked`] (head, Host, Origin), [`question`]
//! (body, model), [`chain`] (steps, where the name means several, [`hosted`] ones too),
//! [`plan`] (offers), [`serve`] (choice and attempts), [`attempt`] (one try) on one [`way`] after
//! another, looked after by [`wait`] until it begins, [`relay`] (the answer), [`finish`] (what is
//! counted). A provider is asked in [`words`] it knows, and what it took is a [`bill`].
//! [`gather`] answers what the directory knows by itself, [`local`] what belongs to this node,
//! [`error`] builds every error answer. It reads snapshots and cells; it never changes the
//! directory.

mod ask;
mod asked;
mod attempt;
mod bill;
mod chain;
mod error;
mod explain;
mod finish;
mod gather;
mod hosted;
mod listed;
mod local;
mod plan;
mod question;
mod relay;
mod replay;
mod rest;
mod serve;
mod service;
#[cfg(test)]
mod tests;
mod told;
mod tried;
mod vigil;
mod wait;
mod way;
mod whole;
mod wishes;
mod words;

use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use http::header::{ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Request, Response};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::api::route::{Class, Need};
use crate::api::{self, browser};
use crate::config::Config;
use crate::directory::Directory;
use crate::directory::accounts::Accounts;
use crate::gate::Gates;
use crate::net::home::Homes;
use crate::net::{Body, Pool};
use crate::telemetry::events::Finished;
use crate::telemetry::running::{Place, Running as Shown};
use crate::telemetry::{Clock, Events, Metrics, RequestMeter, plain};
use crate::trust::{Access, Limits};
use crate::types::{Caller, EngineKind, ListenerKind, ModelKey, Op, Outcome, Timing, Verb, Verbs};

pub use asked::{Door, Own, Settings};
pub use service::{Answer, Service, Who, service};

use asked::Asked;
use error::Failure;
use replay::Memory;

/// What one request is called, by everybody on its way.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the data side needs of the other floors.
pub struct Parts {
    /// The picture of the mesh.
    pub directory: Arc<Directory>,
    /// Connections to engines and peers.
    pub pool: Pool,
    /// The turnstiles of this node's engines.
    pub gates: Arc<Gates>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is remembered of the last requests.
    pub events: Arc<Events>,
    /// The time.
    pub clock: Clock,
    /// All waits.
    pub timing: Arc<Timing>,
    /// The configuration in force.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Who may use this node.
    pub access: watch::Receiver<Arc<Access>>,
    /// What providers were asked and paid, and how they rest.
    pub accounts: Arc<Accounts>,
    /// To which networks servers belong.
    pub homes: Arc<Homes>,
    /// Names and addresses by which this machine may be called in `Host`.
    pub own: Arc<ArcSwap<Own>>,
}

/// The data side: its parts, and what all requests share.
pub struct Proxy {
    parts: Parts,
    memory: Arc<Memory>,
    running: AtomicU32,
    serial: AtomicU64,
    retries: Mutex<Budget>,
    /// The key of prompts' prints. It never leaves this process.
    prints: RandomState,
}

impl std::ops::Deref for Proxy {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Proxy {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Proxy> {
        let memory = Memory::new(parts.settings.load().config.limits.replay_total);
        Arc::new(Proxy {
            parts,
            memory,
            running: AtomicU32::new(0),
            serial: AtomicU64::new(0),
            retries: Mutex::new(Budget::default()),
            prints: RandomState::new(),
        })
    }

    /// Requests that are being answered now.
    pub fn running(&self) -> u32 {
        self.running.load(Relaxed)
    }

    /// Answers one request. Never fails: what goes wrong becomes an answer.
    async fn answer(
        self: Arc<Self>,
        door: Door,
        caller: Arc<Caller>,
        request_id: String,
        request: Request<Body>,
    ) -> Response<Body> {
        let settings = self.settings.load_full();
        let (head, body) = request.into_parts();
        if let Err(failure) = asked::admit(&door, &head, &settings, &self.own.load()) {
            let api = api::route::classify(&head.method, head.uri.path()).api;
            self.note_refused(door.kind, &failure);
            return self.finish_head(failure.answer(api, &request_id), &request_id);
        }
        let page = head.headers.contains_key(ORIGIN).then(|| head.headers.clone());
        // Whoever is not a program of this machine is under the mesh's rules, by whichever
        // door it came: in userspace mode tailscaled forwards every port to loopback.
        let apps = door.kind == ListenerKind::Apps && caller.is_local();
        let mesh_rule = (!apps).then(|| self.access.borrow().of(&caller));
        let asked = asked::read_head(caller, mesh_rule, head, request_id);
        let (api, op, mesh) = (asked.api(), asked.route.op, asked.is_mesh());
        let here = matches!(asked.route.class, Class::Here | Class::Union);
        let request_id = asked.request_id.clone();
        let arrived = self.clock.now();
        let mut response = match self.route(&settings, asked, body).await {
            Ok(response) => {
                if here && !mesh {
                    let took = self.clock.now().since(arrived);
                    self.metrics.request(api, op, "", "").finish(Outcome::Done, took);
                }
                response
            }
            Err(failure) => {
                self.note_refused(door.kind, &failure);
                tracing::info!(
                    status = failure.status.as_u16(), blame = ?failure.blame,
                    api = api.label(), op = op.label(), "answered with an error",
                );
                if !mesh && !failure.counted {
                    let took = self.clock.now().since(arrived);
                    self.metrics.request(api, op, "", "").finish(failure.outcome(), took);
                }
                failure.answer(api, &request_id)
            }
        };
        // A preflight's answer is CORS already.
        if let Some(page) = page.filter(|_| op != Op::Preflight) {
            browser::cors(&page, &settings.origins, response.headers_mut());
        }
        self.finish_head(response, &request_id)
    }

    async fn route(
        self: &Arc<Self>,
        settings: &Settings,
        mut asked: Asked,
        body: Body,
    ) -> Result<Response<Body>, Failure> {
        let config = &settings.config;
        if let Some(answer) = gather::fixed(&asked) {
            return Ok(answer);
        }
        if let Some(peer) = &asked.wishes.peer
            && asked.wishes.node().is_none()
        {
            let text = format!("x-tailherd-peer: '{}' is no node's name", plain(peer));
            return Err(Failure::caller(http::StatusCode::BAD_REQUEST, text));
        }
        if let Some(rule) = &asked.mesh_rule
            && rule.verbs() == Verbs::NONE
        {
            return Err(Failure::refused("access", rule.why_not(Verb::List, None)));
        }
        match asked.route.class {
            Class::Here => gather::here(self, settings, &asked),
            Class::Union => gather::union(self, settings, &asked),
            Class::ThisNode => local::this_node(self, config, &asked, body).await,
            Class::Routed | Class::UnknownPost => {
                question::routed(self, settings, &mut asked, body).await
            }
            // `gather::fixed` has answered all others.
            _ => Err(Failure::not_found("404 page not found")),
        }
    }

    /// What stands on every answer: its id, who answered, and that its type is what it says.
    fn finish_head(&self, mut response: Response<Body>, request_id: &str) -> Response<Body> {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if !headers.contains_key(serve::SERVED_BY) {
            let name = self.directory.load().this().map(|n| n.name.to_string());
            serve::served_by(&mut response, &name.unwrap_or_default(), 0);
        }
        response
    }

    fn note_refused(&self, door: ListenerKind, failure: &Failure) {
        if let Some(why) = failure.refused {
            self.metrics.refused(door, why);
        }
    }

    /// A place among the requests that run at once, or an answer that says how many those are.
    fn enter(self: &Arc<Self>, config: &Config) -> Result<Running, Failure> {
        let most = config.limits.inflight;
        if self.running.fetch_add(1, Relaxed) >= most {
            self.running.fetch_sub(1, Relaxed);
            let mut failure = Failure::exhausted(format!(
                "{most} requests are running on this node (limits.inflight)"
            ));
            failure.retry_after = Some(std::time::Duration::from_secs(1));
            return Err(failure);
        }
        Ok(Running(Arc::clone(self)))
    }

    /// The meter of a request that entered the mesh here; sums over nodes stay true because
    /// nobody else counts it.
    fn meter(&self, asked: &Asked, model: &str, peer: &str) -> Option<RequestMeter> {
        (!asked.is_mesh())
            .then(|| self.metrics.request(asked.route.api, asked.route.op, model, peer))
    }

    /// Who asks for what, as it is shown.
    fn shown(&self, asked: &Asked, model: &str) -> Shown {
        Shown {
            since: std::time::SystemTime::now(),
            caller: plain(&asked.caller.label()).into(),
            from: plain(asked.caller.node_name()).into(),
            client: asked.client,
            api: asked.route.api,
            op: asked.route.op,
            model: plain(model).into(),
        }
    }

    /// A line for `/status`, of a request that has ended.
    fn line(&self, asked: &Asked, model: &str) -> Finished {
        Finished::of(&self.shown(asked, model))
    }

    /// The request is shown as one that runs, until what is returned is dropped.
    fn begins(&self, asked: &Asked, model: &str) -> Place {
        self.events.begins(self.shown(asked, model))
    }

    fn next_attempt_id(&self) -> String {
        // Unique among nodes and restarts: 64 random bits and a counter.
        let serial = self.serial.fetch_add(1, Relaxed);
        let number = u128::from(rand::random::<u64>()) << 64 | u128::from(serial);
        let digit = |at| char::from(b"0123456789abcdef"[(number >> (4 * at)) as usize & 15]);
        (0..32).rev().map(digit).collect()
    }
}

/// One running request, until dropped.
struct Running(Arc<Proxy>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// Further tries that may have used an engine: a fifth of the requests, with a burst of ten.
/// More than that, and trying again is the load that keeps a sick mesh sick.
#[derive(Debug)]
struct Budget {
    /// In fifths of a try.
    fifths: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { fifths: Budget::BURST }
    }
}

impl Budget {
    const TRY: u32 = 5;
    const BURST: u32 = 10 * Budget::TRY;

    fn request(&mut self) {
        self.fifths = (self.fifths + 1).min(Budget::BURST);
    }

    fn spend(&mut self) -> bool {
        let left = self.fifths.checked_sub(Budget::TRY);
        self.fifths = left.unwrap_or(self.fifths);
        left.is_some()
    }
}

/// Whether the caller may do this to that model: `Ok(None)` for programs on this machine, the
/// limits of its rule for others. An unload needs the verb `load`.
fn may(asked: &Asked, model: Option<&ModelKey>, unload: bool) -> Result<Option<Limits>, Failure> {
    let Some(granted) = &asked.mesh_rule else { return Ok(None) };
    let verb = match asked.route.need(EngineKind::Ollama) {
        Need::Verb(_) if unload => Verb::Load,
        Need::Verb(verb) => verb,
        Need::Own if granted.is_own() => Verb::Infer,
        Need::Own | Need::Local | Need::Never => {
            return Err(Failure::not_found(api::error::NOT_FOUND));
        }
    };
    let limits = match model {
        Some(key) => granted.may(verb, key),
        None => granted.may_all(verb),
    };
    match limits {
        Some(limits) => Ok(Some(limits)),
        None => Err(Failure::refused("access", granted.why_not(verb, model))),
    }
}
