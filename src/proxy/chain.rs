//! The steps of a chain, one after the other, before the first byte.
//!
//! In flow a question and the [`Chain`] that its name means; out flows the first answer that a
//! step gives. A step of the mesh is all nodes that have the model (the loop of [`super::serve`]);
//! a hosted one is one try at a provider. What is the request's own fault is not put to the
//! next step. Nothing goes to a provider unless the chain names it, and only for who may spend.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;

use crate::api::hosted::{Fit, only};
use crate::api::peek::Peeked;
use crate::config::Config;
use crate::config::chains::{Chain, Chains, Meaning, Step};
use crate::directory::accounts::Skip;
use crate::directory::{Offer, Snapshot};
use crate::net::Body;
use crate::telemetry::events::{Finished, timestamp};
use crate::types::{
    Blame, CallerKind, EngineKind, Moment, Op, Outcome, Principal, RequestedModel, Source, Verb,
    Who,
};

use super::asked::Asked;
use super::error::{Failure, plain};
use super::hosted::{self, Answer, Hosted};
use super::plan::{self, Plan, Planned};
use super::replay::Held;
use super::serve::served_by;
use super::wishes::Where;
use super::words::{Unsaid, Words};
use super::{Proxy, Running, listed, local, question};

/// A request whose body is known as far as it has to be.
pub(crate) struct Question<'a> {
    pub(crate) asked: &'a Asked,
    pub(crate) model: &'a RequestedModel,
    pub(crate) peeked: &'a Peeked,
    pub(crate) held: &'a Held,
    /// Whether the body was decoded here and goes on as identity.
    pub(crate) decoded: bool,
    /// An empty prompt with `keep_alive: 0`.
    pub(crate) unload: bool,
    pub(crate) arrived: Moment,
}

/// How one step is taken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    /// Whether another step follows that may do better.
    pub(crate) more: bool,
    /// The shortest context window that will do; 0 = any.
    pub(crate) min_context: u64,
}

/// What a request's name means to who asks: `None` = the model itself. For callers of other
/// nodes agents, aliases and providers exist only with the verb `spend`, and only over the
/// tailnet.
pub(crate) fn meaning(
    chains: &Chains,
    snapshot: &Snapshot,
    asked: &Asked,
    model: &RequestedModel,
) -> Result<Option<Chain>, Failure> {
    if let Some(granted) = &asked.mesh_rule {
        let spends = granted.may(Verb::Spend, &model.key).is_some();
        if !spends || asked.caller.lan.is_some() || asked.caller.node_id().is_none() {
            return Ok(None);
        }
    }
    // An agent's header says who thinks; vectors and descriptions belong to the model named.
    let thinks = asked.route.op.is_inference() && asked.route.op != Op::Embed;
    let agent = asked.wishes.agent.as_deref().filter(|_| thinks);
    match chains.resolve(model, agent, |key| snapshot.models.contains_key(key)) {
        Meaning::Plain => Ok(None),
        Meaning::Chain(chain) => Ok(Some(chain)),
        Meaning::NoAgent => {
            let agents: Vec<&str> = chains.agents().map(|(name, _)| name).collect();
            let known = match agents.is_empty() {
                true => "the configuration has none".to_owned(),
                false => format!("there are {}", agents.join(", ")),
            };
            let named = crate::telemetry::plain(agent.unwrap_or_default()).into_owned();
            Err(Failure::not_found(format!("agent '{named}' not found ({known})")))
        }
    }
}

/// Serves a request by the steps of its chain.
pub(crate) async fn run(
    px: &Arc<Proxy>,
    config: &Arc<Config>,
    q: &Question<'_>,
    chain: &Chain,
    running: Running,
) -> Result<Response<Body>, Failure> {
    if let Some(answer) = described(px, q, chain) {
        return Ok(answer);
    }
    let steps = steps(px, q, chain);
    let mut running = Some(running);
    let mut log = Log::default();
    for (who, why) in mute(px, q, chain) {
        tracing::info!(
            request_id = %q.asked.request_id, step = %who, "a step is passed over: {why}",
        );
        log.lines.push((who, why));
        log.mute += 1;
    }
    let mut late: Vec<Hosted<'_>> = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let more = steps.iter().skip(at + 1).any(|step| may_do(px, q, step));
        match step {
            Step::Mesh { .. } => {
                // What came before it is told, too, if it fails as the last one.
                let more = more || !late.is_empty() || log.lines.len() > log.mute;
                let taken = Taken { more, min_context: chain.min_context };
                match mesh(px, config, q, step, taken, &mut running).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if taken.more && goes_on(&failure) => {
                        log.failed(px, q, step.label(), "mesh", failure.text, None);
                        log.absent &= failure.status == StatusCode::NOT_FOUND;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            Step::Hosted { provider, model } => {
                let hosted = Hosted { provider, model };
                let now = px.clock.now();
                match hosted.open(px, now) {
                    Ok(()) => {}
                    Err(Skip::Down) => {
                        hosted.look(px);
                        late.push(hosted);
                        continue;
                    }
                    Err(skip) => {
                        tracing::info!(
                            request_id = %q.asked.request_id, step = %step.label(),
                            "a step is passed over: {}", skip.text(),
                        );
                        log.passed(step.label(), skip.text());
                        continue;
                    }
                }
                if let Some(answer) = log.ask(px, config, q, hosted, &mut running).await? {
                    return Ok(answer);
                }
            }
        }
    }
    // Nobody else could: whoever could not be reached a moment ago may be back.
    for hosted in late {
        if let Some(answer) = log.ask(px, config, q, hosted, &mut running).await? {
            return Ok(answer);
        }
    }
    log.give_up(px, config, q)
}

/// What needs no provider, of a chain of which the mesh has no step: `show` and `/v1/models/:m`
/// say what the configuration says of its first provider's model, and a load has nothing to do
/// (`ollama run` begins with one).
fn described(px: &Proxy, q: &Question<'_>, chain: &Chain) -> Option<Response<Body>> {
    let snapshot = px.directory.load();
    let mut there = chain.steps.iter().filter(|step| match step {
        Step::Mesh { key, .. } => snapshot.models.contains_key(key),
        Step::Hosted { provider, .. } => may_spend(&snapshot, q.asked, provider.users.as_deref()),
    });
    let Some(Step::Hosted { provider, model }) = there.next() else { return None };
    let bare = q.peeked.is_bare(q.asked.route.api, q.asked.route.op);
    let (kind, body) = match q.asked.route.op {
        op if bare => ("application/json; charset=utf-8", loaded(q, op == Op::Chat)),
        Op::Show => ("application/json; charset=utf-8", listed::show(provider, model)),
        Op::Model => ("application/json", listed::model(provider, model, &q.model.spelling)),
        _ => return None,
    };
    let mut response = plain(StatusCode::OK, kind, body);
    served_by(&mut response, &Hosted { provider, model }.label(), 0);
    Some(response)
}

/// A load or an unload of what only engines of other kinds than Ollama have: they keep in memory
/// what they serve, and are not told to.
pub(crate) fn kept(q: &Question<'_>, plan: &Plan) -> Result<Option<Response<Body>>, Failure> {
    let op = q.asked.route.op;
    let Some(offer) = plan.offers.first() else { return Ok(None) };
    let ollama = |offer: &Arc<Offer>| offer.endpoint.kind == EngineKind::Ollama;
    if !q.peeked.is_bare(q.asked.route.api, op) || plan.offers.iter().any(ollama) {
        return Ok(None);
    }
    if q.unload {
        let kind = offer.endpoint.kind.label();
        return Err(Failure::caller(
            StatusCode::BAD_REQUEST,
            format!("model '{}' is at {kind}, which itself says what it unloads", q.model.bare),
        ));
    }
    let kind = "application/json; charset=utf-8";
    let mut response = plain(StatusCode::OK, kind, loaded(q, op == Op::Chat));
    served_by(&mut response, offer.node.name.as_str(), 0);
    Ok(Some(response))
}

/// Ollama's answer to a prompt that is none.
fn loaded(q: &Question<'_>, chat: bool) -> Bytes {
    let mut said = json!({
        "model": &*q.model.spelling,
        "created_at": timestamp(SystemTime::now()),
        "done": true,
        "done_reason": if q.unload { "unload" } else { "load" },
    });
    match chat {
        true => said["message"] = json!({ "role": "assistant", "content": "" }),
        false => said["response"] = "".into(),
    }
    said.to_string().into()
}

/// The steps that may serve this request at all.
fn steps(px: &Proxy, q: &Question<'_>, chain: &Chain) -> Vec<Step> {
    let op = q.asked.route.op;
    let pinned = q.model.node.is_some() || q.asked.named_node().is_some();
    let bare = q.unload || q.peeked.is_bare(q.asked.route.api, op);
    let here = q.asked.wishes.place != Where::Anywhere;
    let snapshot = px.directory.load();
    let allowed = |step: &&Step| match step {
        Step::Mesh { .. } => true,
        Step::Hosted { provider, model } => {
            !(pinned || bare || here)
                && Hosted { provider, model }.fit(q) != Fit::Cannot
                && may_spend(&snapshot, q.asked, provider.users.as_deref())
                && may_hold(q, model.context, chain.min_context)
        }
    };
    let steps = chain.steps.iter().filter(allowed).cloned();
    // Vectors of two models cannot be compared, and a load or a pin means one model.
    if op == Op::Embed || pinned || bare { steps.take(1).collect() } else { steps.collect() }
}

/// The steps that cannot be asked in the caller's dialect, and why.
fn mute(px: &Proxy, q: &Question<'_>, chain: &Chain) -> Vec<(String, String)> {
    let asked = q.asked;
    let snapshot = px.directory.load();
    let meant = asked.route.op.is_inference() && asked.wishes.place == Where::Anywhere;
    let steps = chain.steps.iter().filter(|_| meant).filter_map(|step| match step {
        Step::Mesh { .. } => None,
        Step::Hosted { provider, model } => {
            let hosted = Hosted { provider, model };
            let silent = hosted.fit(q) == Fit::Cannot;
            (silent && may_spend(&snapshot, asked, provider.users.as_deref())).then_some(hosted)
        }
    });
    let why = |hosted: Hosted<'_>| {
        let speaks = hosted.speaks();
        let only = only(speaks).map_or_else(String::new, |only| format!(": {only}"));
        let path = &asked.route.upstream;
        format!("it speaks `{}`, into which {path} is not translated{only}", speaks.label())
    };
    steps.map(|hosted| (hosted.label(), why(hosted))).collect()
}

/// Whether a step can be expected to do better than those before it.
fn may_do(px: &Proxy, q: &Question<'_>, step: &Step) -> bool {
    match step {
        Step::Mesh { key, .. } => px.directory.load().models.contains_key(key),
        Step::Hosted { provider, model } => {
            let hosted = Hosted { provider, model };
            let open = hosted.open(px, px.clock.now());
            hosted.fit(q) != Fit::Cannot && matches!(open, Ok(()) | Err(Skip::Down))
        }
    }
}

/// Whether a window may hold the request. Left out is only what surely does not fit: a token
/// is no longer than eight bytes on average in any language.
fn may_hold(q: &Question<'_>, context: Option<u64>, least: u64) -> bool {
    context.is_none_or(|context| context >= least && q.held.read() / 8 <= context)
}

/// Whether a provider's `users` mean this caller.
fn may_spend(snapshot: &Snapshot, asked: &Asked, users: Option<&[Who]>) -> bool {
    let Some(users) = users else { return true };
    let own = snapshot.nodes.first().and_then(|this| this.principal.as_ref());
    users.iter().any(|who| match (who, &asked.caller.kind) {
        (Who::Anyone, _) | (Who::Local, CallerKind::Local { .. }) => true,
        (Who::Uid(uid), CallerKind::Local { uid: Some(caller) }) => uid == caller,
        (Who::OwnerSelf, CallerKind::Local { .. }) => true,
        (Who::OwnerSelf, CallerKind::Node { principal, shared: false, .. }) => {
            own.is_some_and(|own| own.same_owner(principal))
        }
        (
            Who::User(login),
            CallerKind::Node { principal: Principal::User { login: l, .. }, .. },
        ) => login == l,
        (Who::Tag(tag), CallerKind::Node { principal: Principal::Tags { set, .. }, .. }) => {
            set.contains(tag)
        }
        (Who::Node(name), CallerKind::Node { name: n, shared: false, .. }) => {
            name.eq_ignore_ascii_case(n.as_str())
        }
        _ => false,
    })
}

/// All nodes that have a step's model.
async fn mesh(
    px: &Arc<Proxy>,
    config: &Arc<Config>,
    q: &Question<'_>,
    step: &Step,
    taken: Taken,
    running: &mut Option<Running>,
) -> Result<Response<Body>, Failure> {
    let Step::Mesh { name, key } = step else { return Err(Failure::ours("no step of the mesh")) };
    let model = RequestedModel {
        spelling: Arc::clone(&q.model.spelling),
        bare: Arc::clone(name),
        source: if key.is_cloud() { Source::Cloud } else { Source::Any },
        key: key.clone(),
        node: q.model.node.clone(),
    };
    let planned = question::planned(px, config, q.asked, &model, q.unload).await?;
    let place = match running.take() {
        Some(running) => running,
        None => px.enter(config)?,
    };
    match planned {
        Planned::Serve(plan) => {
            let q = Question { model: &model, ..*q };
            question::serve(px, config, &q, &plan, taken, place).await
        }
        Planned::AskLocal if taken.more && model.source == Source::Any => {
            *running = Some(place);
            Err(plan::unknown(q.asked, &model))
        }
        Planned::AskLocal => {
            let named = Some((&model, q.peeked));
            let answer = local::ask(px, q.asked, q.held, q.decoded, named, place).await?;
            let status = answer.status();
            let failed =
                status.is_server_error() || matches!(status.as_u16(), 401..=404 | 408 | 409 | 429);
            if taken.more && failed {
                return Err(Failure::exhausted(format!("Ollama answered {status}")));
            }
            Ok(answer)
        }
    }
}

/// Whether a failure of the mesh leaves something to the next step: nobody has the model, or
/// all who have it failed.
fn goes_on(failure: &Failure) -> bool {
    failure.blame == Blame::Upstream
        || failure.status == StatusCode::NOT_FOUND
        || failure.text == plan::CLOUD_OFF
}

/// What was tried, and what came of it.
struct Log {
    /// Who, and what is said of it.
    lines: Vec<(String, String)>,
    /// How many of them were asked.
    asked: u32,
    /// How many lines are of steps that cannot be asked in the caller's dialect.
    mute: usize,
    /// Whether all that was tried does not exist.
    absent: bool,
    /// The only provider's own words.
    answer: Option<(String, Box<Answer>)>,
}

impl Default for Log {
    fn default() -> Log {
        Log { lines: Vec::new(), asked: 0, mute: 0, absent: true, answer: None }
    }
}

impl Log {
    fn passed(&mut self, who: String, why: &str) {
        self.absent = false;
        self.lines.push((who, why.to_owned()));
    }

    fn failed(
        &mut self,
        px: &Proxy,
        q: &Question<'_>,
        who: String,
        reason: &'static str,
        text: String,
        answer: Option<Box<Answer>>,
    ) {
        tracing::info!(
            request_id = %q.asked.request_id, step = %who, reason,
            "a step of a chain failed before the first byte",
        );
        if let Some((provider, _)) = who.split_once('/').filter(|_| reason != "mesh") {
            px.metrics.attempt(provider, reason);
        }
        self.asked += 1;
        self.answer = answer.map(|answer| (who.clone(), answer));
        self.lines.push((who, text));
    }

    /// One try at a provider; `None` = the next step.
    async fn ask(
        &mut self,
        px: &Arc<Proxy>,
        config: &Config,
        q: &Question<'_>,
        hosted: Hosted<'_>,
        running: &mut Option<Running>,
    ) -> Result<Option<Response<Body>>, Failure> {
        if running.is_none() {
            *running = Some(px.enter(config)?);
        }
        // A provider gets the body whole, in its own words.
        question::read_all(px, q.held).await?;
        if !q.held.replayable() {
            self.passed(hosted.label(), "the request is larger than limits.replayBytes");
            return Ok(None);
        }
        let words = match Words::of(q, &hosted) {
            Ok(words) => words,
            Err(Unsaid::Wrong(why)) => {
                return Err(Failure::caller(StatusCode::BAD_REQUEST, why));
            }
            Err(Unsaid::Cannot(why)) => {
                self.passed(hosted.label(), &why);
                return Ok(None);
            }
        };
        tracing::info!(
            request_id = %q.asked.request_id, step = %hosted.label(), "the request leaves the mesh",
        );
        match hosted::attempt(px, config, q, hosted, words, self.asked, running).await {
            Ok(answer) => Ok(Some(answer)),
            Err(fail) => {
                self.absent &= fail.reason == "not_found";
                self.failed(px, q, hosted.label(), fail.reason, fail.text, fail.answer);
                Ok(None)
            }
        }
    }

    /// All steps were tried: the provider's own words if it is the only one that was asked,
    /// Ollama's if nobody has the model, else what was tried.
    fn give_up(
        self,
        px: &Proxy,
        config: &Config,
        q: &Question<'_>,
    ) -> Result<Response<Body>, Failure> {
        let took = px.clock.now().since(q.arrived);
        let last = self.lines.last().map_or("", |(who, _)| who.as_str());
        let peer = last.split('/').next().unwrap_or_default();
        if let Some(meter) = px.meter(q.asked, q.model.key.short(), peer) {
            meter.finish(Outcome::UpstreamError, took);
        }
        px.events.finished(Finished {
            node: last.into(),
            attempts: self.asked,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            outcome: Outcome::UpstreamError,
            ..px.line(q.asked, q.model.key.short())
        });
        if let (1, Some((who, answer))) = (self.lines.len() - self.mute, self.answer) {
            let mut response = hosted::said(&who, *answer, self.asked);
            let no = http::HeaderValue::from_static("false");
            response.headers_mut().insert("x-should-retry", no);
            return Ok(response);
        }
        let lines = self.lines.iter().map(|(who, text)| format!("{who}: {text}"));
        let lines = lines.collect::<Vec<_>>().join("; ");
        let mut failure = if self.mute > 0 && self.mute == self.lines.len() {
            // The request is at fault: another path would do.
            let text = format!("no step can be asked for model '{}' ({lines})", q.model.bare);
            Failure::caller(StatusCode::BAD_REQUEST, text)
        } else if self.absent {
            let mut unknown = plan::unknown(q.asked, q.model);
            if self.lines.is_empty() && config.offline {
                unknown.text.push_str(" (offline is on)");
            }
            let (mute, _) = self.lines.split_at(self.mute);
            for (who, why) in mute {
                unknown.text.push_str(&format!(" ({who}: {why})"));
            }
            unknown
        } else {
            let text = format!("no step could answer for model '{}' ({lines})", q.model.bare);
            Failure::exhausted(text)
        };
        failure.counted = true;
        Err(failure)
    }
}
