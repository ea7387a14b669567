//! A request in the words of a provider, or of an engine that is no Ollama, and its answer in the
//! caller's.
//!
//! In flow a question and a provider's model, or an engine's; out flow the route and the body to send
//! ([`Words`]) and, where the two speak different dialects, the way back ([`Back`]): for an
//! answer in one piece, for a stream while it comes ([`Translated`]), for an error. Where both
//! speak one dialect the bytes of the answer are the provider's.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use serde_json::Value;

use crate::api::hosted::{Fields, Fit, suit};
use crate::api::translate::{self, Reply, State, Stream, Target, Translation, Unfit};
use crate::config::Reach;
use crate::directory::Offer;
use crate::net::BoxError;
use crate::telemetry::Clock;
use crate::telemetry::events::timestamp;
use crate::types::{Api, EngineKind, Moment, NodeKind, Op, ProviderApi, RequestedModel};

use super::ask::Ask;
use super::asked::Asked;
use super::chain::Question;
use super::error::retold;
use super::hosted::{Answer, Hosted};
use super::relay::Relay;

/// Headers of a dialect that a caller may set; they mean nothing in another.
pub(crate) const DIALECT: [&str; 3] = ["anthropic-version", "anthropic-beta", "openai-beta"];

/// A request as a provider gets it.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    /// The route below the provider's base URL.
    pub(crate) path: &'static str,
    pub(crate) body: Bytes,
    /// The way back, where the answer is not in the caller's dialect.
    pub(crate) back: Option<Back>,
}

/// Why a request cannot be put to a provider.
#[derive(Debug)]
pub(crate) enum Unsaid {
    /// It is wrong in its own dialect.
    Wrong(String),
    /// This provider has no words for it.
    Cannot(String),
}

/// From a provider's words to the caller's.
#[derive(Debug, Clone)]
pub(crate) struct Back {
    translation: Translation,
    /// Whether the answer was asked for as a stream.
    pub(crate) stream: bool,
    echoed: serde_json::Map<String, Value>,
}

impl Words {
    /// For an engine that does not speak what the caller speaks, the [`way`] it is asked.
    pub(crate) fn for_engine(
        ask: &Ask<'_>,
        offer: &Offer,
        (translation, path): (Translation, &'static str),
    ) -> Result<Words, Unsaid> {
        let body: Value = serde_json::from_slice(&ask.held.frames().concat()).map_err(|_| odd())?;
        let think = body["think"].as_bool();
        let target = Target {
            model: offer.id.as_ref().unwrap_or(&offer.name).to_string(),
            sampling: true,
            ..Target::default()
        };
        let mut asked = translation.request(body, &target).map_err(Unsaid::from)?;
        engines_own(offer.endpoint.kind, think, &mut asked.body);
        if let Some(most) = ask.max_predict {
            asked.body["max_tokens"] = most.into();
        }
        let back = Back { translation, stream: asked.stream, echoed: asked.echoed };
        Ok(Words { path, body: asked.body.to_string().into(), back: Some(back) })
    }

    pub(crate) fn of(q: &Question<'_>, hosted: &Hosted<'_>) -> Result<Words, Unsaid> {
        let Hosted { provider, model } = hosted;
        let body = q.held.frames().concat();
        let (translation, path) = match hosted.fit(q) {
            Fit::Pass(path) => {
                let mut fields = Fields::read(&body).ok_or_else(odd)?;
                fields.set("model", &Value::from(&*model.id));
                if q.asked.route.api == Api::Ollama {
                    fields.remove("name");
                } else if hosted.speaks() != ProviderApi::Ollama {
                    // OpenClaw sends Ollama's options in every dialect; strict servers refuse them.
                    fields.remove("options");
                }
                for (name, value) in &provider.body {
                    fields.set(name, value);
                }
                return Ok(Words { path: own_path(q, path), body: fields.write(), back: None });
            }
            Fit::Translate(translation, path) => (translation, path),
            Fit::Cannot => {
                return Err(Unsaid::Cannot("it does not speak the caller's dialect".to_owned()));
            }
        };
        let body = serde_json::from_slice(&body).map_err(|_| odd())?;
        let mut asked = translation.request(body, &target(hosted)).map_err(Unsaid::from)?;
        if translation.spoken().0 == Api::Chat {
            suit(&mut asked.body, &model.compat);
        }
        for (name, value) in &provider.body {
            asked.body[name] = value.clone();
        }
        let back = Back { translation, stream: asked.stream, echoed: asked.echoed };
        Ok(Words { path, body: asked.body.to_string().into(), back: Some(back) })
    }
}

/// What OpenAI has no field for, in the field that an engine has for it.
fn engines_own(kind: EngineKind, think: Option<bool>, body: &mut Value) {
    let Some(fields) = body.as_object_mut() else { return };
    if kind != EngineKind::Vllm
        && let Some(penalty) = fields.shift_remove("repetition_penalty")
    {
        fields.insert("repeat_penalty".to_owned(), penalty);
    }
    // A template that knows nothing of it does not read it.
    if kind == EngineKind::LlamaCpp && think == Some(false) {
        let kwargs = serde_json::json!({ "enable_thinking": false });
        fields.insert("chat_template_kwargs".to_owned(), kwargs);
    }
}

fn odd() -> Unsaid {
    Unsaid::Wrong("the body is no JSON object".to_owned())
}

impl From<Unfit> for Unsaid {
    fn from(unfit: Unfit) -> Unsaid {
        match unfit {
            Unfit::Wrong(why) => Unsaid::Wrong(why),
            Unfit::Cannot(what) => Unsaid::Cannot(format!("it cannot be asked for {what}")),
            Unfit::Nothing => Unsaid::Wrong("the request asks for no answer".to_owned()),
        }
    }
}

/// How an offer's engine is asked what it does not speak. A peer's sidecar sees to that itself.
pub(crate) fn way(asked: &Asked, offer: &Offer) -> Option<(Translation, &'static str)> {
    let ours = offer.node.kind != NodeKind::Rich && offer.endpoint.kind != EngineKind::Ollama;
    let speaks = offer.endpoint.native;
    ours.then(|| Translation::for_engine(asked.route.api, asked.route.op, speaks)).flatten()
}

/// Ollama has two routes for vectors, whose answers differ.
fn own_path(q: &Question<'_>, path: &'static str) -> &'static str {
    match (path, q.asked.head.uri.path()) {
        ("/api/embed", "/api/embeddings") => "/api/embeddings",
        _ => path,
    }
}

/// What is known of a provider's model. What only some servers take is sent to those that are
/// known to take it: OpenAI alone has given up `max_tokens`; servers that one runs oneself, and
/// OpenRouter, take the samplers of llama.cpp.
fn target(hosted: &Hosted<'_>) -> Target {
    let Hosted { provider, model } = hosted;
    let host = &*provider.server.host;
    let of = |domain: &str| host == domain || host.ends_with(&format!(".{domain}"));
    Target {
        model: model.id.to_string(),
        max_tokens: model.max_tokens,
        reasoning: model.compat.effort.unwrap_or(model.reasoning),
        sampling: provider.reach < Reach::Far || of("openrouter.ai"),
        completion_tokens: model.compat.completion_tokens.unwrap_or(of("openai.com")),
    }
}

impl Back {
    /// The dialect and the kind of the provider's answer.
    pub(crate) fn spoken(&self) -> (Api, Op) {
        self.translation.spoken()
    }

    /// Whether an answer of this kind is a stream, or none, as it was asked for.
    pub(crate) fn is_as_asked(&self, kind: &str) -> bool {
        self.stream == kind.starts_with("text/event-stream")
    }

    pub(crate) fn content_type(&self) -> HeaderValue {
        HeaderValue::from_static(self.translation.content_type(self.stream))
    }

    fn reply(self, model: &RequestedModel, id: String) -> Reply {
        let now = SystemTime::now();
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let model = model.spelling.to_string();
        Reply { model, at: timestamp(now), unix, id, asked: self.echoed }
    }

    /// An answer in one piece; `Err` = the provider failed: its words.
    pub(crate) fn whole(
        self,
        model: &RequestedModel,
        id: String,
        body: &[u8],
        took: std::time::Duration,
    ) -> Result<Bytes, String> {
        let body: Value =
            serde_json::from_slice(body).map_err(|_| "its answer is no JSON".to_owned())?;
        let translation = self.translation;
        let answer = translation.whole(&body, &self.reply(model, id), took)?;
        Ok(answer.to_string().into())
    }

    /// A stream, from what is relayed of the provider's.
    pub(crate) fn stream(
        self,
        model: &RequestedModel,
        id: String,
        relay: Relay,
        clock: Clock,
        since: Moment,
    ) -> Translated {
        let translation = self.translation;
        let words = translation.stream(self.reply(model, id));
        Translated { relay: Some(relay), words, clock, since }
    }
}

/// A provider's error as the caller reads errors: its text word for word. Gemini's, which stands
/// in a list, is such a one even where the dialects match.
pub(crate) fn error(asked: &Asked, back: Option<&Back>, answer: Answer) -> Answer {
    let wrapped = answer.2.trim_ascii_start().starts_with(b"[");
    if back.is_none() && !wrapped { answer } else { retell(asked, answer) }
}

/// An error in the caller's dialect, in the words in which it was said.
pub(crate) fn retell(asked: &Asked, (status, head, body): Answer) -> Answer {
    let text = translate::error_of(&body);
    let text = text.unwrap_or_else(|| format!("the model's server answered {status}"));
    told(asked, status, &head, &text)
}

/// An error of the provider's in the caller's dialect.
fn told(asked: &Asked, status: StatusCode, head: &HeaderMap, text: &str) -> Answer {
    let (kind, body) = retold(asked.route.api, status, text, &asked.request_id);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, kind);
    if let Some(after) = head.get(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, after.clone());
    }
    (status, headers, body)
}

/// An answer of an engine's that has to be told in other words.
#[derive(Debug)]
pub(crate) struct Retelling {
    pub(crate) back: Back,
    /// All of it in the caller's words, if it came in one piece.
    pub(crate) whole: Option<Bytes>,
}

/// A provider's stream on its way to the caller, in his words. It owns the relay: dropping it is
/// what lets go of the provider.
pub(crate) struct Translated {
    relay: Option<Relay>,
    words: Stream,
    clock: Clock,
    /// When the provider was asked.
    since: Moment,
}

impl http_body::Body for Translated {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut out = Vec::new();
        while out.is_empty() {
            let Some(relay) = this.relay.as_mut() else { return Poll::Ready(None) };
            let polled = std::task::ready!(Pin::new(relay).poll_frame(cx));
            let at = this.clock.now().since(this.since);
            match polled {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    this.words.push(&data, at, &mut out);
                    // After the error item nothing is to come, whatever the provider still sends.
                    if this.words.state() == State::Failed
                        && let Some(relay) = this.relay.take()
                    {
                        relay.failed();
                    }
                }
                Some(Err(why)) => {
                    this.relay = None;
                    this.words.broke(&why.to_string(), at, &mut out);
                }
                None => {
                    this.relay = None;
                    this.words.finish(at, &mut out);
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_engine_is_told_in_its_own_fields_what_openai_has_none_for() {
        use EngineKind::{LlamaCpp, LmStudio, Vllm};
        let quiet = json!({ "enable_thinking": false });
        for (kind, think, want) in [
            (LlamaCpp, None, json!({ "repeat_penalty": 1.5 })),
            (LlamaCpp, Some(true), json!({ "repeat_penalty": 1.5 })),
            (
                LlamaCpp,
                Some(false),
                json!({ "repeat_penalty": 1.5, "chat_template_kwargs": quiet }),
            ),
            (LmStudio, Some(false), json!({ "repeat_penalty": 1.5 })),
            (Vllm, Some(false), json!({ "repetition_penalty": 1.5 })),
        ] {
            let mut body = json!({ "repetition_penalty": 1.5 });
            engines_own(kind, think, &mut body);
            assert_eq!(body, want, "{kind:?} {think:?}");
        }
    }

    #[test]
    fn only_servers_that_take_a_field_get_it() {
        let config = |url: &str| {
            let text = format!("{{ models: {{ providers: {{ p: {{ baseUrl: '{url}' }} }} }} }}");
            crate::config::parse(&text, None, &crate::config::FixedEnv::default()).unwrap()
        };
        for (url, sampling, completion_tokens) in [
            ("https://api.openai.com/v1", false, true),
            ("https://api.groq.com/openai/v1", false, false),
            ("https://openrouter.ai/api/v1", true, false),
            ("https://notopenrouter.ai/api/v1", false, false),
            ("http://127.0.0.1:8000/v1", true, false),
        ] {
            let config = config(url);
            let provider = &config.models.providers["p"];
            let model = Arc::new(provider.model("m").unwrap());
            let target = target(&Hosted { provider, model: &model });
            let got = (target.sampling, target.completion_tokens);
            assert_eq!(got, (sampling, completion_tokens), "{url}");
        }
    }
}
