//! One try at a hosted provider.
//!
//! In flow a question, a provider and one of its models; out flows the answer on its way to the
//! client, the provider's own words for what is the request's fault, or a [`Fail`] after which
//! the chain's next step may be tried. A provider gets an allow-list of headers, its own key and
//! nobody else's, at the configured origin only: redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::api::echo::Echo;
use crate::api::ending::{Ending, Usage};
use crate::api::headers::{self, Target};
use crate::api::hosted::{Fit, Opening, Rest, Verdict, fit, opening, verdict};
use crate::config::{Auth, Config, HostedModel, Provider};
use crate::directory::accounts::{Skip, today};
use crate::net::home::{self, Belongs};
use crate::net::{Body, ConnectError, PooledBody, full};
use crate::telemetry::events::Finished;
use crate::types::{Moment, NodeId, Outcome, ProviderApi};

use super::ask::host_of;
use super::bill::Bill;
use super::chain::Question;
use super::finish::Finish;
use super::relay::{Idle, Relay};
use super::serve::served_by;
use super::whole::{self, Broken};
use super::words::{self, Back, DIALECT, Words};
use super::{Proxy, REQUEST_ID, Running};

/// What a caller who says nothing of it speaks of Anthropic's dialect.
const ANTHROPIC: HeaderValue = HeaderValue::from_static("2023-06-01");

/// A try that failed before the first byte.
#[derive(Debug)]
pub(crate) struct Fail {
    /// The reason in metrics and logs.
    pub(crate) reason: &'static str,
    /// What is said of it. Never holds what the provider wrote.
    pub(crate) text: String,
    /// The provider's own answer, for when nobody else can do better.
    pub(crate) answer: Option<Box<Answer>>,
}

/// A provider's own answer, whole.
pub(crate) type Answer = (StatusCode, HeaderMap, Bytes);

impl Fail {
    fn new(reason: &'static str, text: impl Into<String>) -> Fail {
        Fail { reason, text: text.into(), answer: None }
    }
}

impl From<Broken> for Fail {
    fn from(broken: Broken) -> Fail {
        let reason = match broken {
            Broken::Silent => "silent",
            Broken::Off(_) => "reset",
            Broken::Long => "bad_answer",
        };
        Fail::new(reason, broken.to_string())
    }
}

/// A provider's model, about to be asked.
#[derive(Clone, Copy)]
pub(crate) struct Hosted<'a> {
    pub(crate) provider: &'a Arc<Provider>,
    pub(crate) model: &'a Arc<HostedModel>,
}

impl Hosted<'_> {
    /// How the caller's dialect fits this model.
    pub(crate) fn fit(&self, q: &Question<'_>) -> Fit {
        fit(q.asked.route.api, q.asked.route.op, self.speaks())
    }

    /// What `served-by` says.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.provider.name, self.model.id)
    }

    /// What connections to it are kept under.
    pub(crate) fn id(&self) -> NodeId {
        NodeId::Configured(format!("provider/{}", self.provider.name).into())
    }

    /// What it speaks for this model.
    pub(crate) fn speaks(&self) -> ProviderApi {
        self.model.api.unwrap_or(self.provider.api)
    }

    /// The upstream request.
    fn request(&self, q: &Question<'_>, words: &Words) -> Option<Request<Body>> {
        let mut head = q.asked.head.headers.clone();
        headers::request(&mut head, Target::Hosted);
        for name in [CONTENT_LENGTH, CONTENT_ENCODING] {
            head.remove(name);
        }
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // What a caller says of his own dialect means nothing in another.
        for name in DIALECT.into_iter().filter(|_| words.back.is_none()) {
            if let Some(value) = q.asked.head.headers.get(name) {
                head.insert(HeaderName::from_static(name), value.clone());
            }
        }
        if self.speaks() == ProviderApi::Messages {
            head.entry(DIALECT[0]).or_insert(ANTHROPIC);
        }
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        match &self.provider.auth {
            Auth::None => {}
            Auth::Bearer(key) => {
                head.insert(AUTHORIZATION, secret(&format!("Bearer {}", key.expose()))?);
            }
            Auth::Header(name, key) => {
                head.insert(HeaderName::from_static(name), secret(key.expose())?);
            }
        }
        for (name, value) in &self.provider.headers {
            head.insert(HeaderName::try_from(name).ok()?, secret(value.expose())?);
        }
        head.insert(HOST, host_of(&self.provider.dial()));
        if let Ok(id) = HeaderValue::from_str(&q.asked.request_id) {
            head.insert(REQUEST_ID, id);
        }
        let mut request = Request::new(full(words.body.clone()));
        *request.method_mut() = q.asked.head.method.clone();
        let query = q.asked.head.uri.query().filter(|_| words.back.is_none());
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let path = format!("{}{}{query}", self.provider.server.prefix, words.path);
        *request.uri_mut() = path.parse().ok()?;
        *request.headers_mut() = head;
        Some(request)
    }

    /// Whether it may be asked now, or why it is passed over.
    pub(crate) fn open(&self, px: &Proxy, now: Moment) -> Result<(), Skip> {
        let dial = self.provider.dial();
        if home::is_bound(&dial)
            && px.homes.belongs(&self.url(), &home::place_of(&dial)) == Belongs::Elsewhere
        {
            return Err(Skip::Elsewhere);
        }
        px.accounts.open(self.provider, &self.model.id, now, today())
    }

    /// What its network is kept under.
    pub(crate) fn url(&self) -> String {
        let server = &self.provider.server;
        format!("provider {}:{}{}", server.host, server.port, server.prefix)
    }

    /// Looks in the background whether a provider that could not be reached is back.
    pub(crate) fn look(&self, px: &Arc<Proxy>) {
        if !px.accounts.look(self.provider, px.clock.now()) {
            return;
        }
        let (px, provider, id) = (Arc::clone(px), Arc::clone(self.provider), self.id());
        tokio::spawn(async move {
            let made = px.pool.fresh(&id, &provider.dial()).await;
            px.accounts.reached(&provider, made.is_ok(), px.clock.now());
        });
    }
}

/// Asks a provider. `tried`: how many tries there were before this one.
pub(crate) async fn attempt(
    px: &Arc<Proxy>,
    config: &Config,
    q: &Question<'_>,
    hosted: Hosted<'_>,
    words: Words,
    tried: u32,
    running: &mut Option<Running>,
) -> Result<Response<Body>, Fail> {
    let Hosted { provider, model } = hosted;
    let started = px.clock.now();
    let this = Try { px, config, q, hosted, tried, started };
    let request = hosted.request(q, &words).ok_or_else(unfit)?;
    px.accounts.sent(provider, started, today());
    let place = px.begins(q.asked, &q.model.bare);
    place.sent(&hosted.label(), false, Duration::ZERO);
    let limit = provider.timeout.unwrap_or(px.timing.hosted_head);
    let response = match timeout(limit, this.send(&words, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(fail)) => return Err(this.rested(fail)),
        Err(_) => {
            let text = format!("it said nothing for {} s", limit.as_secs());
            return Err(this.rested(Fail::new("silent", text)));
        }
    };
    let back = words.back;
    let (mut head, mut body) = response.into_parts();
    if !head.status.is_success() {
        let bytes = whole::error(&mut body, limit).await;
        let said = (head.status, head.headers, bytes);
        return this.refused(back.as_ref(), said);
    }
    if let Err(reject) = headers::response(head.status, &mut head.headers) {
        return Err(this.rested(Fail::new("bad_answer", reject.to_string())));
    }
    let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let kind = kind.unwrap_or_default();
    let mut first = BytesMut::new();
    loop {
        let frame = match timeout(limit, body.frame()).await {
            Ok(frame) => frame,
            Err(_) => {
                return Err(this.rested(Fail::new("silent", "it fell silent")));
            }
        };
        match frame {
            Some(Ok(frame)) => first.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            Some(Err(_)) => {
                return Err(this.rested(Fail::new("reset", "it broke off")));
            }
            None => break,
        }
        match opening(&kind, &first) {
            Opening::Unclear => {}
            Opening::Answer => break,
            Opening::Error(status) => {
                let status = status.and_then(|s| StatusCode::from_u16(s).ok());
                let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
                let said = (status, head.headers, item(&first));
                return this.refused(back.as_ref(), said);
            }
        }
    }
    let spoken = back.as_ref().map_or((q.asked.route.api, q.asked.route.op), Back::spoken);
    let mut ending = Ending::new(spoken.0, spoken.1, Some(&kind));
    let odd = |text| this.rested(Fail::new("bad_answer", text));
    if let Some(back) = &back
        && !back.is_as_asked(&kind)
    {
        return Err(odd(match back.stream {
            true => "it answered with no stream",
            false => "it answered with a stream that nobody asked for",
        }));
    }
    let mut whole = None;
    if let Some(back) = back.as_ref().filter(|back| !back.stream) {
        let bytes = whole::whole(&mut body, std::mem::take(&mut first), limit).await;
        let bytes = bytes.map_err(|broken| this.rested(Fail::from(broken)))?;
        ending.feed(&bytes);
        let took = px.clock.now().since(started);
        let answer = back.clone().whole(q.model, px.next_attempt_id(), &bytes, took);
        whole = Some(answer.map_err(|_| odd("its answer could not be read"))?);
    }
    px.accounts.answered(provider, &model.id);
    let attempts = tried.saturating_add(1);
    let Some(running) = running.take() else {
        return Err(Fail::new("body", "the request was answered already"));
    };
    let mut finish = Finish {
        clock: px.clock,
        arrived: q.arrived,
        attempted: started,
        first_byte: None,
        last_byte: None,
        handed: None,
        held: Duration::ZERO,
        pace: None,
        meter: px.meter(q.asked, &model.id, &provider.name),
        ticket: None,
        inflight: None,
        path: None,
        events: Arc::clone(&px.events),
        line: Some(Finished {
            node: hosted.label().into(),
            attempts,
            ..Finished::of(place.what())
        }),
        lesson: None,
        breaks: None,
        failed: false,
        streamed: ending.is_tracked(),
        usage: Usage::default(),
        items: 0,
        outcome: None,
        place,
        bill: Some(Bill {
            px: Arc::clone(px),
            provider: Arc::clone(provider),
            model: Arc::clone(model),
            prompt: q.held.read(),
        }),
        _running: running,
    };
    head.headers.remove(CONTENT_LENGTH);
    if let Some(back) = &back {
        head.headers.insert(CONTENT_TYPE, back.content_type());
    }
    let body = match whole {
        Some(answer) => {
            finish.byte();
            (finish.usage, finish.outcome) = (ending.usage(), Some(Outcome::Done));
            full(answer)
        }
        None => {
            let limit = provider.timeout.unwrap_or(px.timing.idle_after_first_byte);
            let idle = Idle { limit, dead: limit };
            let first = (!first.is_empty()).then(|| first.freeze());
            let echo = Echo::new(q.asked.route.api, &model.id, &q.model.spelling);
            let echo = back.is_none().then_some(echo);
            let who = provider.name.to_string();
            let relay = Relay::new(body, first, ending, echo, who, idle, finish);
            match back {
                Some(back) => {
                    let id = px.next_attempt_id();
                    back.stream(q.model, id, relay, px.clock, started).boxed_unsync()
                }
                None => relay.boxed_unsync(),
            }
        }
    };
    let mut response = Response::from_parts(head, body);
    served_by(&mut response, &hosted.label(), attempts);
    Ok(response)
}

/// No request can be made of it.
fn unfit() -> Fail {
    Fail::new("body", "the request cannot be put in its words")
}

/// One try, as it runs.
#[derive(Clone, Copy)]
struct Try<'a> {
    px: &'a Arc<Proxy>,
    config: &'a Config,
    q: &'a Question<'a>,
    hosted: Hosted<'a>,
    /// How many tries there were before this one.
    tried: u32,
    started: Moment,
}

impl Try<'_> {
    /// Sends the request, once more on a new connection if a kept one turned out to be dead.
    async fn send(
        &self,
        words: &Words,
        request: Request<Body>,
    ) -> Result<Response<PooledBody>, Fail> {
        let Try { px, q, hosted, .. } = *self;
        let (id, dial) = (hosted.id(), hosted.provider.dial());
        let unreached = |error: ConnectError| {
            px.accounts.reached(hosted.provider, false, px.clock.now());
            Fail::new("connect", error.to_string())
        };
        let lease = px.pool.acquire(&id, &dial).await.map_err(unreached)?;
        px.accounts.reached(hosted.provider, true, px.clock.now());
        if home::is_bound(&dial) {
            px.homes.answered(&hosted.url(), &home::place_of(&dial));
        }
        let reused = lease.reused;
        match lease.send(request).await {
            Ok(response) => Ok(response),
            Err(_) if reused => {
                let lease = px.pool.fresh(&id, &dial).await.map_err(unreached)?;
                let request = hosted.request(q, words).ok_or_else(unfit)?;
                lease.send(request).await.map_err(|_| Fail::new("reset", "it broke off"))
            }
            Err(_) => Err(Fail::new("reset", "it broke off")),
        }
    }

    /// What is no answer: the provider rests, where the failure was its own.
    fn rested(&self, fail: Fail) -> Fail {
        let Try { px, config, hosted, .. } = *self;
        if fail.reason != "connect" && fail.reason != "body" {
            let rest = (Rest::Model(None), fail.reason);
            let now = px.clock.now();
            px.accounts.failed(hosted.provider, &hosted.model.id, rest, &config.failover, now);
        }
        fail
    }

    /// An error of the provider's: for the caller, or for the next step.
    fn refused(
        &self,
        back: Option<&Back>,
        (status, mut head, bytes): Answer,
    ) -> Result<Response<Body>, Fail> {
        let Try { px, config, q, hosted, tried, started } = *self;
        let verdict = verdict(status.as_u16(), retry_after(&head), &bytes);
        let clean = headers::response(status, &mut head).is_ok();
        head.remove(CONTENT_LENGTH);
        let bytes = without_key(&hosted.provider.auth, bytes);
        let (status, head, bytes) = words::error(q.asked, back, (status, head, bytes));
        match verdict {
            Verdict::Tell => {
                px.accounts.answered(hosted.provider, &hosted.model.id);
                let now = px.clock.now();
                if let Some(meter) = px.meter(q.asked, &hosted.model.id, &hosted.provider.name) {
                    meter.finish(Outcome::Done, now.since(q.arrived));
                }
                px.events.finished(Finished {
                    node: hosted.label().into(),
                    attempts: tried + 1,
                    took_ms: u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX),
                    ..px.line(q.asked, &q.model.bare)
                });
                Ok(said(&hosted.label(), (status, head, bytes), tried + 1))
            }
            Verdict::Next { rest, why } => {
                let failed = (rest, why);
                let now = px.clock.now();
                px.accounts.failed(
                    hosted.provider,
                    &hosted.model.id,
                    failed,
                    &config.failover,
                    now,
                );
                if rest == Rest::Billing {
                    tracing::error!(
                        provider = %hosted.provider.name, status = status.as_u16(),
                        "the provider {}: it rests for {} s", match why {
                            "key" => "refused the key",
                            _ => "wants money",
                        }, config.failover.billing_cooldown.as_secs(),
                    );
                }
                // What a provider says of a key may quote it.
                let answer = (clean && why != "key").then(|| Box::new((status, head, bytes)));
                let text = match why {
                    "key" => format!(
                        "refused the key ({status}; models.providers.{}.apiKey)",
                        hosted.provider.name
                    ),
                    _ => format!("answered {status}"),
                };
                Err(Fail { answer, ..Fail::new(why, text) })
            }
        }
    }
}

/// A provider's own words, for the caller.
pub(crate) fn said(who: &str, (status, head, bytes): Answer, attempts: u32) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    *response.headers_mut() = head;
    served_by(&mut response, who, attempts);
    response
}

/// The first item of a stream that is an error, as a body of its own.
fn item(first: &[u8]) -> Bytes {
    let lines = first.split(|b| *b == b'\n');
    let data = lines.filter_map(|line| line.strip_prefix(b"data:")).next();
    Bytes::copy_from_slice(data.map_or(first, <[u8]>::trim_ascii))
}

/// A body in which the key does not stand, should a provider quote it.
fn without_key(auth: &Auth, bytes: Bytes) -> Bytes {
    let (Auth::Bearer(key) | Auth::Header(_, key)) = auth else { return bytes };
    let found = memchr::memmem::find(&bytes, key.expose().as_bytes()).is_some();
    match found && !key.expose().is_empty() {
        true => Bytes::from(String::from_utf8_lossy(&bytes).replace(key.expose(), "***")),
        false => bytes,
    }
}

/// `retry-after-ms`, or `Retry-After` in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Secret;

    #[test]
    fn a_provider_that_quotes_the_key_is_not_quoted() {
        let auth = Auth::Bearer(Secret::new("sk-canary"));
        let body = Bytes::from_static(br#"{"error":{"message":"bad key sk-canary"}}"#);
        assert_eq!(without_key(&auth, body), r#"{"error":{"message":"bad key ***"}}"#);
    }
}
