//! The loop of a request: choose an offer, try it, and on a failure before the first byte
//! choose again.
//!
//! In flow an [`Ask`] and a [`Plan`]; out flows the response the client gets. Each offer is
//! tried once. Connect failures, 404s, silence and refusals cost no budget; tries that may
//! have used an engine do. Nothing is tried again once a body byte has left.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::BodyExt;

use crate::api::echo::Echo;
use crate::api::ending::Ending;
use crate::balance::prefix::Print;
use crate::balance::{self, Choice};
use crate::config::Config;
use crate::directory::weigh::{self, Scales};
use crate::directory::{Need, Offer, candidates};
use crate::net::Body;
use crate::telemetry::events::Finished;
use crate::telemetry::running::Place;
use crate::types::{Api, Capabilities, EngineKind, NodeKind, Op, Outcome};

use super::ask::Ask;
use super::attempt::{Accepted, Fail, Reason, attempt};
use super::error::{self, Failure};
use super::finish::{Finish, Lesson};
use super::plan::{self, Plan};
use super::relay::{Idle, Relay};
use super::rest;
use super::{Proxy, Running, explain};

/// What one request has tried.
#[derive(Default)]
struct Tried {
    /// Offers that are out, by their place in the plan.
    out: Vec<usize>,
    /// Offers whose connect was late, to come back to.
    late: Vec<usize>,
    /// Node, reason, words; for the client and the log.
    log: Vec<(String, Reason, String)>,
    /// The last engine's own answer.
    answer: Option<Fail>,
    retry_after: Option<Duration>,
    /// What this node's gate said, for another sidecar.
    refused: Option<&'static str>,
    used_engine: u32,
    /// Why the last choice fell as it did.
    why: String,
}

/// Serves `ask` from one of the plan's offers.
pub(crate) async fn serve(
    px: &Arc<Proxy>,
    config: &Config,
    ask: &Ask<'_>,
    plan: &Plan,
    running: Running,
) -> Result<Response<Body>, Failure> {
    px.retries.lock().request();
    let arrived = px.clock.now();
    let wants = wants(ask, config);
    let need = need(ask);
    let place = px.begins(ask.asked, ask.model.key.short());
    let mut tried = Tried::default();
    let mut numbers = Vec::with_capacity(plan.offers.len());
    loop {
        let now = px.clock.now();
        numbers.clear();
        candidates::of(&plan.offers, &need, now, &mut numbers);
        numbers.retain(|c| {
            !c.closed && !tried.out.contains(&c.index) && !tried.late.contains(&c.index)
        });
        if numbers.is_empty() {
            // All others failed: what was late may have come through by now.
            let Some(late) = tried.late.pop() else { break };
            candidates::of(&plan.offers, &need, now, &mut numbers);
            numbers.retain(|c| c.index == late);
        }
        let Choice::Send(pick) = balance::choose(&numbers, &wants, now, &mut rand::rng()) else {
            break;
        };
        let Some(offer) = plan.offers.get(pick.index) else { break };
        let others = numbers.len() > 1;
        tracing::debug!(
            request_id = %ask.asked.request_id, node = %offer.node.name, model = %offer.key,
            total = pick.terms.total, among = pick.among, "trying",
        );
        let scales = Scales { offers: &plan.offers, need: &need, ask: &wants, now };
        tried.why = weigh::reason(&scales, &numbers, &pick, plan.pinned.is_some());
        explain::sent(&place, offer, &pick.terms);
        let explained = ask
            .asked
            .wishes
            .explain
            .then(|| explain::header(&scales, pick.index, &tried.words(&plan.offers)));
        match attempt(px, ask, offer, others).await {
            Ok(accepted) => {
                if accepted.head.status.is_success() && ask.asked.route.op.is_inference() {
                    rest::succeeded(px, offer, accepted.started);
                }
                let attempts = tried.log.len() as u32 + 1;
                let told = Told { attempts, why: tried.reason(), explained, place };
                return Ok(respond(px, ask, offer, accepted, arrived, told, running));
            }
            Err(fail) => {
                rest::failed(px, config, offer, &fail, now);
                let again = tried.note(px, config, ask, pick.index, offer, fail);
                if !again {
                    break;
                }
            }
        }
    }
    tried.give_up(px, ask, plan, arrived)
}

impl Tried {
    /// What was tried, by its place in the plan, with a word each.
    fn words(&self, offers: &[Arc<Offer>]) -> Vec<(usize, &'static str)> {
        let word = |index: usize| {
            let name = offers.get(index)?.node.name.as_str();
            let (_, reason, _) = self.log.iter().rev().find(|l| l.0 == name)?;
            Some((index, reason.label()))
        };
        self.out.iter().chain(&self.late).filter_map(|index| word(*index)).collect()
    }

    /// What became of the tries, if all failed.
    fn failed(&self) -> String {
        let words: Vec<String> = self
            .log
            .iter()
            .map(|(node, reason, _)| format!("{node}: {}", reason.label()))
            .collect();
        words.join("; ")
    }

    /// Why the node that was asked last was asked.
    fn reason(&self) -> String {
        match self.log.last() {
            Some((node, reason, _)) => format!("after {node}: {}; {}", reason.label(), self.why),
            None => self.why.clone(),
        }
    }

    /// Writes a failure down. True if another try is allowed.
    fn note(
        &mut self,
        px: &Proxy,
        config: &Config,
        ask: &Ask<'_>,
        index: usize,
        offer: &Offer,
        fail: Fail,
    ) -> bool {
        px.metrics.attempt(offer.node.name.as_str(), fail.reason.label());
        tracing::info!(
            request_id = %ask.asked.request_id, node = %offer.node.name,
            reason = fail.reason.label(), "a try failed before the first byte",
        );
        if fail.reason == Reason::SlowConnect {
            self.late.push(index);
        } else {
            self.out.push(index);
        }
        let cost = fail.used_engine();
        self.retry_after = fail.retry_after.or(self.retry_after);
        self.refused = fail.refused.or(self.refused);
        self.log.push((offer.node.name.to_string(), fail.reason, fail.text.clone()));
        if fail.answer.is_some() {
            self.answer = Some(fail);
        }
        if cost {
            self.used_engine += 1;
            if self.used_engine >= config.failover.max_attempts || !px.retries.lock().spend() {
                return false;
            }
        }
        let wrong = self.log.last().is_some_and(|last| last.1 == Reason::Rejected);
        !wrong && ask.held.replayable() && !ask.asked.route.op.is_never_retried()
    }

    /// All that could be tried was tried: the engine's own words if it is the only one that
    /// was asked, else what was tried.
    fn give_up(
        self,
        px: &Proxy,
        ask: &Ask<'_>,
        plan: &Plan,
        arrived: crate::types::Moment,
    ) -> Result<Response<Body>, Failure> {
        let last = self.log.last().map_or("", |l| l.0.as_str());
        let took = px.clock.now().since(arrived);
        if let Some(meter) = px.meter(ask.asked, ask.model.key.short(), last) {
            meter.finish(Outcome::UpstreamError, took);
        }
        px.events.finished(Finished {
            node: last.into(),
            attempts: u32::try_from(self.log.len()).unwrap_or(u32::MAX),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            outcome: Outcome::UpstreamError,
            why: self.failed().into(),
            ..px.line(ask.asked, ask.model.key.short())
        });
        let only = self.log.iter().all(|l| Some(&l.0) == self.log.first().map(|l| &l.0));
        if let (true, Some(Fail { answer: Some((status, headers, body)), .. })) =
            (only, self.answer)
        {
            let mut response = Response::new(error::full(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
            served_by(&mut response, self.log.last().map_or("", |l| &l.0), self.log.len());
            return Ok(response);
        }
        if let Some(node) = &plan.pinned {
            let why = self.log.last().map_or("no path", |l| l.2.as_str());
            let text = format!("{node} does not answer ({why})");
            return Err(Failure { counted: true, ..Failure::exhausted(text) });
        }
        let mut list: Vec<String> =
            self.log.iter().map(|(node, _, text)| format!("{node}: {text}")).collect();
        list.extend(plan.offers.iter().filter_map(|offer| offer.node.says_no()));
        list.extend(plan::outage(&px.directory.load(), px.clock.now()));
        let mut failure = Failure::exhausted(format!(
            "no node could answer for model '{}' ({})",
            ask.model.bare,
            list.join("; ")
        ));
        failure.counted = true;
        failure.retry_after = self.retry_after;
        failure.refused = self.refused;
        Err(failure)
    }
}

/// What the choice has to know of the request.
fn wants(ask: &Ask<'_>, config: &Config) -> balance::Ask {
    let op = ask.asked.route.op;
    let nothing_written = op == Op::Embed || ask.peeked.is_bare(ask.asked.route.api, op);
    balance::Ask {
        prompt_tokens: ask.held.announced().unwrap_or_else(|| ask.held.read()) / 4,
        max_output: if nothing_written { Some(0) } else { ask.most_tokens() },
        num_ctx: ask.peeked.load_key(ask.asked.route.api).num_ctx,
        min_context: 0,
        prefer_local: config.prefer_local,
    }
}

/// What the model has to be able to do, as far as the request's head and shape tell.
fn need(ask: &Ask<'_>) -> Need {
    let op = ask.asked.route.op;
    let embeds = op == Op::Embed;
    Need {
        api: ask.asked.route.api,
        capabilities: Capabilities {
            completion: op.is_inference() && !embeds,
            tools: ask.peeked.tools.is_some(),
            vision: ask.peeked.images.is_some(),
            thinking: ask.peeked.think == Some(true),
            embedding: embeds,
            insert: ask.peeked.suffix.is_some(),
        },
        client: ask.asked.client,
        bytes: ask.held.announced().unwrap_or_else(|| ask.held.read()),
    }
}

/// What is told of a request beside its answer.
struct Told {
    attempts: u32,
    /// Why that node.
    why: String,
    /// For `x-tailherd-explain`, if it was asked for.
    explained: Option<HeaderValue>,
    place: Place,
}

/// Turns an accepted attempt into the client's response.
fn respond(
    px: &Arc<Proxy>,
    ask: &Ask<'_>,
    offer: &Arc<Offer>,
    accepted: Accepted,
    arrived: crate::types::Moment,
    told: Told,
    running: Running,
) -> Response<Body> {
    let Told { attempts, why, explained, place } = told;
    let Accepted { head, first, body, inflight, ticket, path, started, waited } = accepted;
    let asked = ask.asked;
    let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let ending = Ending::new(asked.route.api, asked.route.op, kind);
    let echo = ask
        .spelling(offer)
        .filter(|_| head.status.is_success())
        .map(|sent| Echo::new(asked.route.api, &sent, &ask.model.spelling));
    let here = offer.node.is_this();
    let finish = Finish {
        clock: px.clock,
        arrived,
        attempted: started,
        first_byte: None,
        last_byte: None,
        meter: px.meter(asked, offer.key.short(), offer.node.name.as_str()),
        ticket,
        inflight: Some(inflight),
        path,
        events: Arc::clone(&px.events),
        line: Some(Finished {
            node: offer.node.name.as_str().into(),
            wait_ms: here.then(|| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)),
            attempts,
            why: why.into(),
            ..px.line(asked, offer.key.short())
        }),
        lesson: (head.status.is_success() && asked.route.op.is_inference())
            .then(|| lesson(px, ask, offer, started + waited)),
        streamed: ending.is_tracked(),
        usage: crate::api::ending::Usage::default(),
        items: 0,
        outcome: None,
        place,
        _running: running,
    };
    let idle = Idle { limit: px.timing.idle_after_first_byte, dead: px.timing.probe_limit };
    let edited = echo.is_some();
    let relay = Relay::new(body, first, ending, echo, offer.node.name.to_string(), idle, finish);
    let mut response = Response::from_parts(head, relay.boxed_unsync());
    if edited {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if asked.is_mesh() && here {
        super::told::tell(px, offer, response.headers_mut());
    }
    let who = format!("{}/{}", offer.node.name, offer.endpoint.kind.label());
    served_by(&mut response, &who, attempts as usize);
    if let Some(explained) = explained {
        response.headers_mut().insert(explain::HEADER, explained);
    }
    response
}

/// What the answer may teach. `began`: when the engine was given the request.
fn lesson(px: &Proxy, ask: &Ask<'_>, offer: &Offer, began: crate::types::Moment) -> Lesson {
    let here = offer.node.is_this();
    let (frames, bytes) = (ask.held.frames(), ask.held.read());
    let frames = frames.iter().map(|frame| &**frame);
    Lesson {
        client: ask.asked.client,
        prompt: Print::of(frames, usize::try_from(bytes).unwrap_or(usize::MAX), &px.prints),
        counts: match offer.endpoint.kind {
            EngineKind::Ollama => ask.asked.route.api == Api::Ollama,
            kind => kind == EngineKind::LlamaCpp,
        },
        // At a bare peer an embedding may have stood in a line, which nobody says.
        embeds: ask.asked.route.op == Op::Embed && offer.node.kind != NodeKind::Bare,
        // Elsewhere the request may have waited.
        from: here.then_some(began),
        most_beside: if here { u32::MAX } else { offer.slots() - 1 },
    }
}

/// Says who answered, and after how many tries.
pub(crate) fn served_by(response: &mut Response<Body>, who: &str, attempts: usize) {
    let headers = response.headers_mut();
    if let Ok(who) = HeaderValue::from_str(who) {
        headers.insert("x-tailherd-served-by", who);
    }
    headers.insert("x-tailherd-attempts", HeaderValue::from(attempts));
}
