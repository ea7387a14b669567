//! One try: a request goes to one offer, and either an answer begins or it is known why not.
//!
//! In flow an offer and a body that can be sent again; out flows an accepted answer (its
//! first body byte is here) or a [`Fail`] that says whose fault it is, whether another node
//! may be asked, and whether an engine may have been used. A slow node is never a failed one:
//! there is no limit on the time to the first byte, only a vigil that its node shows life.
//!
//! A try is of a node, not of a path: a way that fails is followed by that node's next one
//! inside the same try. `x-tailherd-attempts` counts tries, so a change of ways shows there as
//! nothing; `tailherd_attempts_total` counts each way that failed, with its reason.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::BodyExt;

use crate::api::attempt::{REFUSED, Refused};
use crate::api::headers::{self, Target};
use crate::directory::{Event, Offer, Path, PathCell, Rate, Sent};
use crate::gate::{self, Entered};
use crate::net::PooledBody;
use crate::types::{Dial, Moment, NodeKind, Op};

use super::Proxy;
use super::ask::Ask;
use super::replay::Uplink;
use super::told;
use super::vigil::vigil;
use super::wait::{self, Chosen, Pass};
use super::way::{self, Ways};
use super::whole::{self, Broken};
use super::words::{self, Back, Retelling, Unsaid, Words};

/// Bodies larger than this say how fast a way is.
const LARGE: u64 = 1 << 20;

/// An answer whose first byte has arrived.
pub(crate) struct Accepted {
    pub(crate) head: http::response::Parts,
    pub(crate) first: Option<Bytes>,
    pub(crate) body: PooledBody,
    pub(crate) inflight: Sent,
    pub(crate) ticket: Option<gate::Ticket>,
    pub(crate) path: Option<Arc<PathCell>>,
    pub(crate) started: crate::types::Moment,
    pub(crate) waited: Duration,
    pub(crate) retelling: Option<Retelling>,
}

/// Why a try ended before the first byte. The label of `tailherd_attempts_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The connection could not be made.
    Connect,
    /// The connection is not there yet although the path answered lately.
    SlowConnect,
    /// The node shows no life.
    Silent,
    /// The connection broke before an answer began.
    Reset,
    /// 503 or 429.
    Busy,
    /// Another 5xx.
    Engine,
    /// 404 for the model.
    NotFound,
    /// 404 or 405 for the route.
    Dialect,
    /// A rule or a limit of that node.
    Forbidden,
    /// The node, or this node's own gate, does not take it now. Nothing has failed.
    Refused(Refused),
    /// The node said nothing for longer than it was worth waiting for. Nothing has failed.
    Left,
    /// The node serves us over the tailnet, not on this way.
    UseTailnet,
    /// The node does not let us in on this way.
    Policy,
    /// The engine says that the request itself is wrong.
    Rejected,
    /// The answer may not be passed on (redirect, unknown content type).
    BadAnswer,
}

impl Reason {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::SlowConnect => "slow_connect",
            Reason::Silent => "silent",
            Reason::Reset => "reset",
            Reason::Busy => "busy",
            Reason::Engine => "engine",
            Reason::NotFound => "not_found",
            Reason::Dialect => "dialect",
            Reason::Forbidden => "refused",
            Reason::Refused(refused) => refused.label(),
            Reason::Left => "left",
            Reason::UseTailnet => "use_tailnet",
            Reason::Policy => "policy",
            Reason::Rejected => "rejected",
            Reason::BadAnswer => "bad_answer",
        }
    }

    /// Whether something or somebody failed.
    pub(crate) const fn is_fault(self) -> bool {
        !matches!(self, Reason::Refused(_) | Reason::Left)
    }
}

/// A try that failed before the first byte.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) reason: Reason,
    /// The engine's own answer, to be passed on word for word if nobody else can do better.
    pub(crate) answer: Option<(StatusCode, http::HeaderMap, Bytes)>,
    /// For the log and for the list of what was tried.
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
    /// The word for another sidecar, if this node's gate said no.
    pub(crate) refused: Option<&'static str>,
}

impl Fail {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Fail {
        Fail { reason, answer: None, text: text.into(), retry_after: None, refused: None }
    }

    /// It was not taken, although nothing has failed.
    pub(crate) fn refused(refused: Refused) -> Fail {
        Fail::new(Reason::Refused(refused), refused.text())
    }

    /// Whether the request, or a part of it, had left when it failed.
    fn was_sent(&self) -> bool {
        !matches!(self.reason, Reason::Connect | Reason::SlowConnect)
    }

    /// Whether the try may have made an engine work, and so counts against the budget.
    pub(crate) fn used_engine(&self) -> bool {
        matches!(self.reason, Reason::Reset | Reason::Engine | Reason::BadAnswer)
    }
}

/// Asks the offer that was chosen, on one way after the other. If another candidate is left, a
/// connect that is late on a path that answered lately gives way to it.
pub(crate) async fn attempt(
    px: &Proxy,
    ask: &Ask<'_>,
    chosen: &Chosen<'_>,
) -> Result<Accepted, Fail> {
    let (offer, others) = (chosen.offer, chosen.others);
    let words = in_its_words(px, ask, offer).await?;
    let words = words.as_ref();
    let started = px.clock.now();
    let inflight = ask.leaves(chosen, started);
    if offer.node.is_this() {
        let ticket = enter_gate(px, ask, chosen).await?;
        let waited = px.clock.now().since(started);
        let dial = &offer.endpoint.dial;
        let prefix = &offer.endpoint.prefix;
        let to = To { dial, prefix, target: Target::Engine, pass: None, uplink: None, words };
        let (head, first, body, retelling) = send(px, ask, offer, to, None).await?;
        if ask.unload && head.status.is_success() {
            px.gates.of(&offer.endpoint).note_unloaded(offer.weights.as_ref(), &offer.key);
        }
        let path = None;
        return Ok(Accepted {
            head,
            first,
            body,
            inflight,
            ticket,
            path,
            started,
            waited,
            retelling,
        });
    }
    let answered = move |path: &Arc<Path>, (head, first, body, retelling): Answer| {
        if path.cell.ok(px.clock.now(), None) {
            px.directory.send(Event::Paths(offer.node.id.clone()));
        }
        let (ticket, path, waited) = (None, Some(Arc::clone(&path.cell)), Duration::ZERO);
        Accepted { head, first, body, inflight, ticket, path, started, waited, retelling }
    };
    let mut ways = Ways::of(&offer.node);
    // Ways whose connect was late, to come back to when nothing else is left.
    let mut late: Vec<&Arc<Path>> = Vec::new();
    let mut silent = false;
    let race = |path: &Path, silent| way::race(&path.cell, &px.timing, silent, px.clock.now());
    loop {
        let (path, limit) = match ways.take() {
            Some(path) if ways.more() || others => (path, race(path, silent)),
            taken => match taken.or_else(|| late.pop()) {
                Some(path) => (path, None),
                None => return Err(Fail::new(Reason::Connect, "no path")),
            },
        };
        let fail = match Box::pin(on_path(px, ask, chosen, path, words, limit)).await {
            Ok(sent) => return Ok(answered(path, sent)),
            Err(fail) => fail,
        };
        if fail.reason == Reason::SlowConnect {
            late.push(path);
        }
        silent |= fail.reason == Reason::Silent;
        let stranded = fail.reason == Reason::UseTailnet && !others && late.is_empty();
        let again =
            !fail.was_sent() || (ask.held.replayable() && !ask.asked.route.op.is_never_retried());
        if !ways.failed(&px.directory, path, fail.reason) || !again {
            return Err(fail);
        }
        if stranded
            && !ways.more()
            && let Some(path) = way::called(px, &offer.node).await
        {
            let sent = Box::pin(on_path(px, ask, chosen, &path, words, None)).await?;
            return Ok(answered(&path, sent));
        }
        if !ways.more() && (others || late.is_empty()) {
            // Another candidate comes first, and then perhaps this one again.
            let slow = || Fail::new(Reason::SlowConnect, fail.text.clone());
            return Err(if late.is_empty() { fail } else { slow() });
        }
        if fail.used_engine() && !px.retries.lock().spend() {
            return Err(fail);
        }
        px.metrics.attempt(offer.node.name.as_str(), fail.reason.label());
        tracing::info!(
            request_id = %ask.asked.request_id, node = %offer.node.name, path = path.kind.label(),
            reason = fail.reason.label(), "a way failed before the first byte",
        );
    }
}

/// Asks on one way, for as long as the node shows life there and nobody else would be quicker.
async fn on_path(
    px: &Proxy,
    ask: &Ask<'_>,
    chosen: &Chosen<'_>,
    path: &Path,
    words: Option<&Words>,
    limit: Option<Duration>,
) -> Result<Answer, Fail> {
    let offer = chosen.offer;
    let rich = offer.node.kind == NodeKind::Rich;
    let target = if rich { Target::Mesh } else { Target::Bare };
    let pass = rich.then(|| chosen.pass(px));
    let uplink = Some(&path.cell.uplink);
    let pass = pass.as_ref();
    let to = To { dial: &path.dial, prefix: &path.prefix, target, pass, uplink, words };
    tokio::select! {
        biased;
        sent = send(px, ask, offer, to, limit) => sent,
        () = vigil(px, offer, path) => {
            Err(Fail::new(Reason::Silent, "no sign of life while the answer was awaited"))
        }
        () = wait::at_peer(px, ask, chosen, path, pass) => {
            Err(Fail::new(Reason::Left, "it said nothing for long"))
        }
    }
}

/// Waits for a place at this node's engine.
async fn enter_gate(
    px: &Proxy,
    ask: &Ask<'_>,
    chosen: &Chosen<'_>,
) -> Result<Option<gate::Ticket>, Fail> {
    if !ask.asked.route.op.is_inference() || ask.unload {
        return Ok(None);
    }
    let gate = px.gates.of(&chosen.offer.endpoint);
    let entered = match gate.ask(ask.at_gate(chosen)) {
        Ok(Entered::Runs(ticket)) => return Ok(Some(ticket)),
        Ok(Entered::Waits(waiting)) => {
            let line = waiting.line();
            tokio::select! {
                biased;
                entered = waiting.ticket() => entered,
                // Its place goes with the future: it has not begun, and will not.
                () = wait::in_line(px, ask, chosen, &line) => {
                    return Err(Fail::refused(Refused::Withdrawn));
                }
            }
        }
        Err(refusal) => Err(refusal),
    };
    entered.map(Some).map_err(|refusal| {
        told::own(px, chosen.offer);
        at_gate(ask, refusal)
    })
}

/// What a gate's refusal means for the request.
fn at_gate(ask: &Ask<'_>, refusal: gate::Refusal) -> Fail {
    // Nobody knows when a pause ends that has no end.
    let endless = matches!(refusal.why, gate::Reason::Paused | gate::Reason::Draining)
        && refusal.retry_after.is_zero();
    let retry_after = (!endless).then_some(refusal.retry_after);
    let refused = Some(refusal.why.label());
    let no = |refused: Refused| (Reason::Refused(refused), None, refused.text().to_owned());
    let (reason, answer, text) = match refusal.why {
        // The load failed: the engine's own words, in the caller's dialect.
        gate::Reason::Load(fail) => {
            let status = fail
                .status
                .and_then(|s| StatusCode::from_u16(s).ok())
                // Anything else than an error (a redirect) is no answer of an engine's.
                .filter(|s| s.is_client_error() || s.is_server_error());
            let answer = status.map(|status| {
                let asked = ask.asked;
                let (headers, body) =
                    super::error::engine_said(asked.api(), status, &fail.text, &asked.request_id);
                (status, headers, body)
            });
            let reason = match status {
                Some(StatusCode::NOT_FOUND) => Reason::NotFound,
                Some(StatusCode::SERVICE_UNAVAILABLE) => Reason::Busy,
                Some(status) if status.is_client_error() => Reason::Rejected,
                Some(_) => Reason::Engine,
                None => Reason::Reset,
            };
            (reason, answer, fail.text)
        }
        gate::Reason::NotLoaded => no(Refused::NotLoaded),
        gate::Reason::Full => no(Refused::Full),
        gate::Reason::Wait => no(Refused::Wait),
        gate::Reason::Paused => no(Refused::Paused),
        gate::Reason::Draining => no(Refused::Draining),
        gate::Reason::Withdrawn => no(Refused::Withdrawn),
    };
    Fail { reason, answer, text, retry_after, refused }
}

type Answer = (http::response::Parts, Option<Bytes>, PooledBody, Option<Retelling>);

/// Where a request goes on its way to an engine.
#[derive(Clone, Copy)]
struct To<'a> {
    dial: &'a Dial,
    prefix: &'a str,
    target: Target,
    /// What goes with it to another sidecar.
    pass: Option<&'a Pass>,
    /// How fast bodies go there.
    uplink: Option<&'a Arc<Rate>>,
    /// The request in the engine's words, if they are not the caller's.
    words: Option<&'a Words>,
}

/// The request in words that an offer's engine knows, where those are not the caller's.
async fn in_its_words(px: &Proxy, ask: &Ask<'_>, offer: &Offer) -> Result<Option<Words>, Fail> {
    let Some(way) = words::way(ask.asked, offer) else { return Ok(None) };
    let said = |reason, status, text: String| {
        let asked = ask.asked;
        let (head, body) = super::error::engine_said(asked.api(), status, &text, &asked.request_id);
        Fail { answer: Some((status, head, body)), ..Fail::new(reason, text) }
    };
    let read = super::question::read_all(px, ask.held).await;
    read.map_err(|failure| said(Reason::Rejected, failure.status, failure.text))?;
    let kind = offer.endpoint.kind.label();
    if !ask.held.replayable() {
        let text = format!(
            "the model is at {kind}, which does not speak this dialect, and the request is too \
             large to be put into another (limits.replayBytes)"
        );
        return Err(said(Reason::Dialect, StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    Words::for_engine(ask, offer, way).map(Some).map_err(|unsaid| match unsaid {
        Unsaid::Wrong(why) => said(Reason::Rejected, StatusCode::BAD_REQUEST, why),
        Unsaid::Cannot(why) => {
            let text = format!("the model is at {kind}: {why}");
            said(Reason::Dialect, StatusCode::BAD_REQUEST, text)
        }
    })
}

/// Connects, sends, and waits for the first byte of the answer's body.
async fn send(
    px: &Proxy,
    ask: &Ask<'_>,
    offer: &Offer,
    to: To<'_>,
    limit: Option<Duration>,
) -> Result<Answer, Fail> {
    let mut reused_before = false;
    loop {
        let lease = way::connect(px, &offer.node.id, to.dial, limit).await?;
        let reused = lease.reused;
        // Small bodies say nothing of the way.
        let large = ask.held.announced().is_none_or(|bytes| bytes > LARGE);
        let uplink = to.uplink.filter(|_| large).map(|rate| Uplink::new(rate, px.clock));
        let request = match to.words {
            Some(words) => ask.translated(words, (to.dial, to.prefix, to.target)),
            None => ask.request(offer, to.dial, to.prefix, to.target, to.pass, uplink),
        };
        let sent = px.clock.now();
        let response = match lease.send(request).await {
            Ok(response) => response,
            // An idle connection that the other side had closed: nothing was lost, and a
            // fresh one is worth the same try.
            Err(error) if reused && !reused_before && (!error.sent || ask.held.replayable()) => {
                reused_before = true;
                continue;
            }
            Err(error) => return Err(Fail::new(Reason::Reset, error.to_string())),
        };
        let back = to.words.and_then(|words| words.back.as_ref());
        return accept(px, ask, offer, response, back, sent).await;
    }
}

/// Looks at an answer's head, and waits for its first byte.
async fn accept(
    px: &Proxy,
    ask: &Ask<'_>,
    offer: &Offer,
    response: Response<PooledBody>,
    back: Option<&Back>,
    sent: Moment,
) -> Result<Answer, Fail> {
    let (mut head, mut body) = response.into_parts();
    if offer.node.kind == NodeKind::Rich {
        told::hear(px, offer, &head.headers);
    }
    if let Some(reason) = way::refusal(offer.node.kind, &head) {
        return Err(Fail::new(reason, format!("answered {}", head.status)));
    }
    if let Some(refused) = refused(offer.node.kind, &head) {
        // Read to its end, the connection can be used again.
        whole::error(&mut body, px.timing.idle_after_first_byte).await;
        return Err(Fail { retry_after: retry_after(&head.headers), ..Fail::refused(refused) });
    }
    let wrong = back.filter(|_| !head.status.is_success()).map(|_| Reason::Rejected);
    if let Some(reason) = bad_status(&head, ask.asked.route.op).or(wrong) {
        let bytes = whole::error(&mut body, px.timing.idle_after_first_byte).await;
        let reason = match reason {
            // Ollama says 404 as JSON when it lacks the model, as text when it lacks the route.
            Reason::NotFound if !is_json(&head) => Reason::Dialect,
            reason => reason,
        };
        let text = format!("answered {}", head.status);
        let retry_after = retry_after(&head.headers);
        let status = head.status;
        return match headers::response(status, &mut head.headers) {
            Ok(()) => {
                let answer = (status, head.headers, bytes);
                let answer = if back.is_some() { words::retell(ask.asked, answer) } else { answer };
                Err(Fail { answer: Some(answer), retry_after, ..Fail::new(reason, text) })
            }
            Err(_) => Err(Fail { retry_after, ..Fail::new(reason, text) }),
        };
    }
    headers::response(head.status, &mut head.headers)
        .map_err(|reject| Fail::new(Reason::BadAnswer, reject.to_string()))?;
    let first = loop {
        match body.frame().await {
            None => break None,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => break Some(data),
                Err(_) => continue,
            },
            Some(Err(error)) => return Err(Fail::new(Reason::Reset, error.to_string())),
        }
    };
    let Some(back) = back else { return Ok((head, first, body, None)) };
    retold(px, ask, back, (head, first, body), sent).await
}

/// An answer that has to be told in other words; one in one piece is read to its end first.
async fn retold(
    px: &Proxy,
    ask: &Ask<'_>,
    back: &Back,
    (head, first, mut body): (http::response::Parts, Option<Bytes>, PooledBody),
    sent: Moment,
) -> Result<Answer, Fail> {
    let kind = head.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if !back.is_as_asked(kind.unwrap_or_default()) {
        let text = "it answered with a stream, or with none, against what was asked";
        return Err(Fail::new(Reason::BadAnswer, text));
    }
    if back.stream {
        let retelling = Retelling { back: back.clone(), whole: None };
        return Ok((head, first, body, Some(retelling)));
    }
    let (first, pause) =
        (BytesMut::from(first.unwrap_or_default()), px.timing.idle_after_first_byte);
    let all = whole::whole(&mut body, first, pause).await.map_err(|broken| match broken {
        Broken::Off(error) => Fail::new(Reason::Reset, error),
        broken => Fail::new(Reason::BadAnswer, broken.to_string()),
    })?;
    let took = px.clock.now().since(sent);
    let whole = back.clone().whole(ask.model, px.next_attempt_id(), &all, took);
    let whole = whole.map_err(|why| Fail::new(Reason::BadAnswer, why))?;
    let retelling = Retelling { back: back.clone(), whole: Some(whole) };
    Ok((head, Some(all), body, Some(retelling)))
}

/// Whether a sidecar says that it does not take the request now.
fn refused(node: NodeKind, head: &http::response::Parts) -> Option<Refused> {
    let ours = node == NodeKind::Rich && head.status == StatusCode::SERVICE_UNAVAILABLE;
    Refused::of(head.headers.get(REFUSED).filter(|_| ours)?.as_bytes())
}

/// Statuses after which another node may do better.
fn bad_status(head: &http::response::Parts, op: Op) -> Option<Reason> {
    if head.headers.contains_key(REFUSED) {
        return Some(Reason::Forbidden);
    }
    match head.status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(Reason::Busy),
        status if status.is_server_error() => Some(Reason::Engine),
        StatusCode::NOT_FOUND if op != Op::Blob => Some(Reason::NotFound),
        StatusCode::METHOD_NOT_ALLOWED => Some(Reason::Dialect),
        // Ollama refuses a foreign Host with an empty 403.
        StatusCode::FORBIDDEN
            if head.headers.get(http::header::CONTENT_LENGTH).is_some_and(|v| v == "0") =>
        {
            Some(Reason::Forbidden)
        }
        _ => None,
    }
}

fn is_json(head: &http::response::Parts) -> bool {
    head.headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.starts_with("application/json"))
}

/// `Retry-After` in seconds; dates mean a rest of hours, which nobody here waits for.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
