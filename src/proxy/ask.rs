//! A request ready to be sent, as often as it takes.
//!
//! In flow an [`Asked`] head, its peeked body and the plan; out flows one upstream request
//! per attempt, each with the same body, headers cut for where it goes, and the model spelt
//! as that engine knows it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
use http::{HeaderMap, Request, Uri};

use crate::api::attempt;
use crate::api::headers::{self, Target};
use crate::api::peek::{self, KeepAlive, Peeked};
use crate::balance::prompt::Prompt;
use crate::directory::{Offer, Sent};
use crate::gate;
use crate::net::Body;
use crate::types::{Api, Class, Dial, EngineKind, Moment, NodeKind, Op, RequestedModel};

use super::REQUEST_ID;
use super::asked::Asked;
use super::chain::Taken;
use super::replay::{Held, Uplink};
use super::wait::{Chosen, Pass};
use super::words::{DIALECT, Words};

/// A body of so many bytes takes no time worth counting to be sent.
const QUICK_BODY: u64 = 64 * 1024;

/// A request and everything its attempts need.
pub(crate) struct Ask<'a> {
    pub(crate) asked: &'a Asked,
    pub(crate) model: &'a RequestedModel,
    pub(crate) peeked: &'a Peeked,
    pub(crate) held: &'a Held,
    /// How the step is taken that this request is a part of.
    pub(crate) taken: Taken,
    /// An empty prompt with `keep_alive: 0`.
    pub(crate) unload: bool,
    /// Whether the body was decoded here and goes on as identity.
    pub(crate) decoded: bool,
    /// `keep_alive` cut to what this node allows, as JSON text.
    pub(crate) keep_alive: Option<String>,
    pub(crate) max_inflight: Option<u32>,
    pub(crate) may_load: bool,
    /// Tokens after which the answer ends whatever else the body says, where a rule wants that.
    pub(crate) max_predict: Option<u64>,
    pub(crate) class: Class,
}

impl Ask<'_> {
    /// How `offer`'s engine has to be asked for the model; `None` = as the caller spelt it.
    pub(crate) fn spelling(&self, offer: &Offer) -> Option<Arc<str>> {
        // Other engines than Ollama compare names byte by byte.
        let literal =
            offer.endpoint.kind != EngineKind::Ollama && offer.node.kind != NodeKind::Rich;
        let own = offer.id.as_ref().unwrap_or(&offer.name);
        let wanted = if literal { own } else { &self.model.bare };
        (**wanted != *self.model.spelling).then(|| Arc::clone(wanted))
    }

    /// The upstream request for one attempt at `offer`, by this way.
    pub(crate) fn request(
        &self,
        offer: &Offer,
        dial: &Dial,
        prefix: &str,
        target: Target,
        sent: Option<&Pass>,
        uplink: Option<Uplink>,
    ) -> Request<Body> {
        let mut request = Request::new(self.body(offer, uplink));
        *request.method_mut() = self.asked.head.method.clone();
        *request.uri_mut() = upstream_uri(self.asked, prefix, self.spelling(offer).as_deref());
        *request.headers_mut() = self.headers(dial, target, sent);
        request
    }

    /// The same in an engine's own words.
    pub(crate) fn translated(&self, words: &Words, to: (&Dial, &str, Target)) -> Request<Body> {
        let (dial, prefix, target) = to;
        let body = self.held.attempt(vec![words.body.clone()], self.held.frames().len());
        let mut request = Request::new(body);
        *request.method_mut() = self.asked.head.method.clone();
        let path = format!("{prefix}{}", words.path);
        *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let mut headers = self.headers(dial, target, None);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for name in DIALECT {
            headers.remove(name);
        }
        *request.headers_mut() = headers;
        request
    }

    fn headers(&self, dial: &Dial, target: Target, sent: Option<&Pass>) -> HeaderMap {
        let mut headers = self.asked.head.headers.clone();
        headers::request(&mut headers, target);
        // hyper says the length of the body that really leaves.
        headers.remove(CONTENT_LENGTH);
        if self.decoded {
            headers.remove(CONTENT_ENCODING);
        }
        headers.insert(HOST, host_of(dial));
        if let Ok(id) = HeaderValue::from_str(&self.asked.request_id) {
            headers.insert(REQUEST_ID, id);
        }
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        if target == Target::Mesh {
            set("x-tailherd-hop", "1");
            if let Some(pass) = sent {
                set(attempt::ATTEMPT, &pass.number);
                set(attempt::PLAN, attempt::plan(pass.loads));
                if let Some(budget) = pass.budget {
                    set(attempt::BUDGET, &budget.as_millis().to_string());
                }
            }
            if let Some(session) = &self.asked.wishes.session {
                set("x-tailherd-session", session);
            }
            if self.class == Class::Batch {
                set("x-tailherd-priority", "batch");
            }
        }
        headers
    }

    fn body(&self, offer: &Offer, uplink: Option<Uplink>) -> Body {
        let mut edits = Vec::new();
        if let Some(name) = self.spelling(offer)
            && let Some(field) = self.peeked.wanted()
        {
            edits.push((field.range.clone(), peek::quote(&name)));
        }
        if let (Some(text), Some(field)) = (&self.keep_alive, &self.peeked.keep_alive) {
            edits.push((field.range.clone(), Bytes::from(text.clone())));
        }
        let frames = self.held.frames();
        if let Some(most) = self.max_predict {
            edits.push(peek::ends_with(&frames, &self.limit(most)));
        }
        if edits.is_empty() {
            return self.held.measured(Vec::new(), 0, uplink);
        }
        let skip = frames.len();
        self.held.measured(peek::rewrite_all(&frames, &edits), skip, uplink)
    }

    /// The field that ends an answer after so many tokens, in this request's dialect. Engines
    /// take the last of two, and Ollama adds later `options` to earlier ones.
    fn limit(&self, most: u64) -> String {
        match self.asked.route.api {
            Api::Ollama => format!(r#""options":{{"num_predict":{most}}}"#),
            Api::Responses => format!(r#""max_output_tokens":{most}"#),
            _ => format!(r#""max_tokens":{most}"#),
        }
    }

    /// What the gate has to know. Of a request that came from another sidecar it was that one
    /// which chose.
    pub(crate) fn at_gate(&self, chosen: &Chosen<'_>) -> gate::Ask {
        let offer = chosen.offer;
        let mesh = self.asked.is_mesh();
        gate::Ask {
            model: offer.key.clone(),
            name: offer.name.clone(),
            weights: offer.weights.clone(),
            size: offer.size,
            capabilities: offer.capabilities,
            cell: offer.cell.clone(),
            load_key: self.peeked.load_key(self.asked.route.api),
            class: self.class,
            side: self.asked.side(),
            principal: self.asked.caller.label().into(),
            keep_alive: self.keep_alive.clone().or_else(|| self.said_keep_alive()),
            predicted: self.predicted(chosen),
            // Nobody waits for a guess: only where its speed was measured, and of text.
            reads: if offer.cell.speeds().0 > 0.0 && self.prompt().images == 0 {
                self.reads(chosen)
            } else {
                Duration::ZERO
            },
            wait_budget: if mesh { self.asked.wishes.wait_budget } else { chosen.budget },
            max_inflight: self.max_inflight,
            attempt: self.attempt(),
            may_load: self.may_load && (mesh || chosen.loads),
        }
    }

    /// What its body is made of, as far as it is here: the rest will be like that.
    pub(crate) fn prompt(&self) -> Prompt {
        let read = self.held.read();
        let all = self.held.announced().unwrap_or(read).max(read);
        let share = self.peeked.encoded.min(read) as f64 / read.max(1) as f64;
        let images = (all as f64 * share) as u64;
        Prompt { text: all.saturating_sub(images), images }
    }

    /// Counts the request at an offer, from now until what is returned is dropped.
    pub(crate) fn leaves(&self, chosen: &Chosen<'_>, now: Moment) -> Sent {
        let bytes = self.held.announced().unwrap_or_else(|| self.held.read());
        // A large body may be on its way for long, which says nothing of who waits for it; and
        // how long an image is read is a guess.
        let sure = bytes <= QUICK_BODY && self.prompt().images == 0;
        let prompt = sure.then(|| self.prompt().tokens(chosen.per_byte()));
        Sent::new(chosen.offer, self.predicted(chosen), self.reads(chosen), prompt, now)
    }

    /// What another sidecar calls this request.
    fn attempt(&self) -> Option<gate::Attempt> {
        let from = self.asked.caller.node_id()?;
        let id = self.asked.wishes.attempt.clone()?;
        Some(gate::Attempt { id, from })
    }

    /// The caller's own `keep_alive`, as JSON text: a load has to carry it, since it sticks.
    fn said_keep_alive(&self) -> Option<String> {
        match self.peeked.keep_alive.as_ref()?.value {
            KeepAlive::Forever => Some("-1".to_owned()),
            KeepAlive::For(d) => Some(format!("\"{}ms\"", d.as_millis())),
            KeepAlive::Invalid => None,
        }
    }

    /// Most tokens of the answer, if the request says.
    pub(crate) fn most_tokens(&self) -> Option<u64> {
        let at = self.peeked.predict(self.asked.route.api)?;
        u64::try_from(at.value).ok()
    }

    /// How long the engine itself will take, from what it did before.
    fn predicted(&self, chosen: &Chosen<'_>) -> Duration {
        let cell = &chosen.offer.cell;
        let (_, decode) = cell.speeds();
        let usual = cell.lengths.of(self.asked.client);
        let tokens = written(self.asked.route.op, self.most_tokens(), usual);
        let seconds = tokens / if decode > 0.0 { decode } else { 25.0 };
        self.reads(chosen) + Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }

    /// How long it will read the prompt: what its window does not hold is cut off.
    fn reads(&self, chosen: &Chosen<'_>) -> Duration {
        let offer = chosen.offer;
        let (prefill, _) = offer.cell.speeds();
        let window = offer.context.map_or(f64::INFINITY, |tokens| tokens as f64);
        let prompt = self.prompt().tokens(chosen.per_byte()).min(window);
        let seconds = prompt / if prefill > 0.0 { prefill } else { 300.0 };
        Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }
}

/// How many tokens are written for a request, where an answer has usually so many.
fn written(op: Op, most: Option<u64>, usual: f64) -> f64 {
    match (op, most) {
        (Op::Embed, _) => 0.0,
        (_, Some(most)) => usual.min(most as f64),
        (_, None) => usual,
    }
}

/// What `Host` says toward an upstream. Ollama on loopback refuses names it does not know.
pub(crate) fn host_of(dial: &Dial) -> HeaderValue {
    HeaderValue::try_from(dial.host()).unwrap_or(HeaderValue::from_static("localhost"))
}

fn upstream_uri(asked: &Asked, prefix: &str, spelling: Option<&str>) -> Uri {
    // Nearly always it is asked as the client asked, which was read once already.
    if prefix.is_empty()
        && asked.route.path_model.is_none()
        && asked.head.uri.path() == asked.route.upstream
        && let Some(same) = asked.head.uri.path_and_query()
    {
        return Uri::from(same.clone());
    }
    let mut path = match (&asked.route.path_model, spelling) {
        (Some(_), Some(name)) => format!("{prefix}/v1/models/{name}"),
        _ => format!("{prefix}{}", asked.route.upstream),
    };
    if let Some(query) = asked.head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    path.parse().unwrap_or_else(|_| Uri::from_static("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_keeps_an_engine_busy_with_reading_alone() {
        for (op, most, want) in [
            (Op::Embed, None, 0.0),
            (Op::Embed, Some(9), 0.0),
            (Op::Chat, None, 200.0),
            (Op::Chat, Some(9), 9.0),
            (Op::Generate, Some(900), 200.0),
        ] {
            assert_eq!(written(op, most, 200.0), want, "{op:?} {most:?}");
        }
    }
}
