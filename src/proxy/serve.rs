//! The loop of a request: choose an offer, try it, and on a failure before the first byte
//! choose again.
//!
//! In flow an [`Ask`] and a [`Plan`]; out flows the response the client gets. Each offer fails
//! once. Connect failures, 404s and silence cost no budget; tries that may have used an engine
//! do. A node that refused a request, or from whose queue it was taken back, has not failed: it
//! may be chosen again ([`Tried`]). The next attempt begins only when the last has ended, and
//! nothing is tried again once a body byte has left.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;

use crate::api::echo::Echo;
use crate::api::ending::Ending;
use crate::balance::pace::Pace;
use crate::balance::prefix::Print;
use crate::balance::{self, Choice};
use crate::config::Config;
use crate::directory::reason::Reason;
use crate::directory::weigh::Scales;
use crate::directory::{Need, Offer, candidates};
use crate::net::Body;
use crate::telemetry::events::Finished;
use crate::telemetry::running::Place;
use crate::types::{Api, Capabilities, EngineKind, Moment, NodeKind, Op, Outcome};

use super::ask::Ask;
use super::attempt::{Accepted, attempt};
use super::error::{Failure, full};
use super::finish::{Finish, Lesson};
use super::plan::Plan;
use super::relay::{Idle, Relay};
use super::rest;
use super::told;
use super::tried::Tried;
use super::wait::{Among, Chosen};
use super::words::Retelling;
use super::{Proxy, Running, explain};

/// Who answered.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("x-tailherd-served-by");
/// After how many tries.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-tailherd-attempts");

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
    let need = need(px, ask);
    let place = px.begins(ask.asked, ask.model.key.short());
    let among = Among { offers: &plan.offers, need: &need, wants: &wants };
    let mut tried = Tried::default();
    let mut numbers = Vec::with_capacity(plan.offers.len());
    loop {
        let now = px.clock.now();
        numbers.clear();
        candidates::of(&plan.offers, &need, now, &mut numbers);
        tried.leave_out(&mut numbers);
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
        tracing::debug!(
            request_id = %ask.asked.request_id, node = %offer.node.name, model = %offer.key,
            total = pick.terms.total, among = pick.among, "trying",
        );
        let scales = Scales { offers: &plan.offers, need: &need, ask: &wants, now };
        tried.why = Some(Reason::of(&scales, &numbers, &pick, plan.pinned.is_some()));
        explain::sent(&place, offer, &pick.terms);
        let explained = ask
            .asked
            .wishes
            .explain
            .then(|| explain::header(&scales, pick.index, &tried.words(&plan.offers)));
        let chosen = Chosen::new(among, &pick, offer, &tried, numbers.len() > 1, ask, now);
        match attempt(px, ask, &chosen).await {
            Ok(accepted) => {
                if accepted.head.status.is_success() && ask.asked.route.op.is_inference() {
                    rest::succeeded(px, offer, accepted.started);
                }
                let told = Told { tried, explained, print: need.print, place };
                return Ok(respond(px, ask, offer, accepted, arrived, told, running));
            }
            Err(fail) => {
                rest::failed(px, config, offer, &fail, now);
                let refusal = chosen.refusal(&fail);
                if !tried.note(px, config, ask, pick.index, offer, fail, refusal) {
                    break;
                }
            }
        }
    }
    tried.give_up(px, ask, plan, arrived)
}

/// What the choice has to know of the request.
fn wants(ask: &Ask<'_>, config: &Config) -> balance::Ask {
    let op = ask.asked.route.op;
    let nothing_written = op == Op::Embed || ask.peeked.is_bare(ask.asked.route.api, op);
    balance::Ask {
        prompt_tokens: ask.prompt().tokens(0.0) as u64,
        max_output: if nothing_written { Some(0) } else { ask.most_tokens() },
        num_ctx: ask.peeked.load_key(ask.asked.route.api).num_ctx,
        min_context: ask.taken.min_context,
        prefer_local: config.prefer_local,
    }
}

/// What the model has to be able to do, as far as the request's head and shape tell.
fn need(px: &Proxy, ask: &Ask<'_>) -> Need {
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
        prompt: ask.prompt(),
        print: if op.is_inference() { print(px, ask) } else { Print::default() },
    }
}

/// What the prompt begins with, and its session. Neither leaves this node.
fn print(px: &Proxy, ask: &Ask<'_>) -> Print {
    let (frames, bytes) = (ask.held.frames(), ask.held.read());
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Print::of(frames.iter().map(|frame| &**frame), bytes, &px.prints)
        .within(ask.asked.wishes.session.as_deref(), &px.prints)
}

/// What is told of a request beside its answer.
struct Told {
    tried: Tried,
    /// For `x-tailherd-explain`, if it was asked for.
    explained: Option<HeaderValue>,
    /// Of its prompt.
    print: Print,
    place: Place,
}

/// Turns an accepted attempt into the client's response.
fn respond(
    px: &Arc<Proxy>,
    ask: &Ask<'_>,
    offer: &Arc<Offer>,
    accepted: Accepted,
    arrived: Moment,
    told: Told,
    running: Running,
) -> Response<Body> {
    let Told { tried, explained, print, place } = told;
    let (attempts, moves, refusals) = (tried.attempts() + 1, tried.tries.moves, tried.refusals);
    let why = tried.reason();
    let Accepted { mut head, first, body, inflight, ticket, path, started, waited, retelling } =
        accepted;
    let asked = ask.asked;
    let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let own = (asked.route.api, asked.route.op);
    let spoken = retelling.as_ref().map_or(own, |retelling| retelling.back.spoken());
    let mut ending = Ending::new(spoken.0, spoken.1, kind);
    let echo = ask
        .spelling(offer)
        .filter(|_| head.status.is_success() && retelling.is_none())
        .map(|sent| Echo::new(asked.route.api, &sent, &ask.model.spelling));
    let here = offer.node.is_this();
    let mut finish = Finish {
        clock: px.clock,
        arrived,
        attempted: started,
        first_byte: None,
        last_byte: None,
        handed: None,
        held: std::time::Duration::ZERO,
        pace: pace(ask, offer, ending.is_tracked()),
        meter: px.meter(asked, offer.key.short(), offer.node.name.as_str()),
        ticket,
        inflight: Some(inflight),
        path,
        events: Arc::clone(&px.events),
        line: Some(Finished {
            node: offer.node.name.as_str().into(),
            wait_ms: here.then(|| u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)),
            attempts,
            moves,
            refusals,
            why,
            ..Finished::of(place.what())
        }),
        lesson: (head.status.is_success() && asked.route.op.is_inference())
            .then(|| lesson(ask, offer, print, started + waited)),
        breaks: (head.status.is_success() && asked.route.op.is_inference())
            .then(|| (Arc::clone(px), Arc::clone(offer))),
        failed: false,
        streamed: ending.is_tracked(),
        usage: crate::api::ending::Usage::default(),
        items: 0,
        outcome: None,
        place,
        bill: None,
        _running: running,
    };
    let idle = Idle { limit: px.timing.idle_after_first_byte, dead: px.timing.probe_limit };
    let edited = echo.is_some() || retelling.is_some();
    let who = offer.node.name.to_string();
    let body = match retelling {
        None => Relay::new(body, first, ending, echo, who, idle, finish).boxed_unsync(),
        Some(Retelling { back, whole }) => {
            head.headers.insert(CONTENT_TYPE, back.content_type());
            if let Some(whole) = whole {
                ending.feed(&first.unwrap_or_default());
                finish.byte();
                (finish.usage, finish.outcome) = (ending.usage(), Some(Outcome::Done));
                full(whole)
            } else {
                let relay = Relay::new(body, first, ending, None, who, idle, finish);
                let id = px.next_attempt_id();
                back.stream(ask.model, id, relay, px.clock, started).boxed_unsync()
            }
        }
    };
    let mut response = Response::from_parts(head, body);
    if edited {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    if asked.is_mesh() && here {
        told::tell(px, offer, response.headers_mut());
    }
    let who = format!("{}/{}", offer.node.name, offer.endpoint.kind.label());
    served_by(&mut response, &who, attempts);
    if let Some(explained) = explained {
        response.headers_mut().insert(explain::HEADER, explained);
    }
    response
}

/// Watches a stream whose pieces are tokens, where it is known how fast they usually come.
fn pace(ask: &Ask<'_>, offer: &Offer, streamed: bool) -> Option<Pace> {
    // While a tool is being called, Ollama says nothing for a while; other engines put several
    // tokens into a piece.
    let by_token = matches!(offer.endpoint.kind, EngineKind::Ollama | EngineKind::LlamaCpp);
    let watched = streamed && by_token && !ask.peeked.tools.is_some();
    watched.then(|| Pace::new(offer.cell.decode.get())).flatten()
}

/// What the answer may teach. `began`: when the engine was given the request.
fn lesson(ask: &Ask<'_>, offer: &Offer, print: Print, began: Moment) -> Lesson {
    let here = offer.node.is_this();
    Lesson {
        client: ask.asked.client,
        print,
        // Of a body that is not all here nobody knows yet what it is.
        prompt: (ask.peeked.is_valid() && ask.held.is_here()).then(|| ask.prompt()),
        window: offer.context.unwrap_or(0),
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
pub(crate) fn served_by(response: &mut Response<Body>, who: &str, attempts: u32) {
    let headers = response.headers_mut();
    if let Ok(who) = HeaderValue::from_str(who) {
        headers.insert(SERVED_BY, who);
    }
    let attempts = match attempts {
        1 => HeaderValue::from_static("1"),
        more => HeaderValue::from(more),
    };
    headers.insert(ATTEMPTS, attempts);
}
