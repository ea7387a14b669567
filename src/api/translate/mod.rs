//! Between dialects: a request in the caller's becomes one in a provider's, and the answer comes
//! back in the caller's.
//!
//! Four directions, for providers and engines that do not speak what the caller speaks: Ollama's own to OpenAI
//! chat and to Anthropic messages, Anthropic messages to OpenAI chat, OpenAI responses to OpenAI
//! chat; and Ollama's embeddings to OpenAI's. [`Translation::request`] changes a body; [`Translation::whole`] an answer in one piece;
//! a [`Stream`] takes the provider's bytes, cut anywhere, and gives the caller's.
//!
//! Bodies are values, not types, so that a field nobody here knows goes on as it is; what the
//! other dialect surely refuses is left out. Nothing here waits, opens a socket or reads a clock:
//! times come in. Whatever a provider sends, the caller gets a legal answer in his dialect or its
//! error item, once, and nothing after it.

mod answer;
mod ask;
mod embed;
mod image;
mod piece;
mod sse;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::{Map, Value};

use crate::types::{Api, ApiSet, Op};
use answer::{chat, messages, native, responses, to_messages};
use piece::{Piece, error_text};
use sse::{Event, Events};

/// What the caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Chat,
    Generate,
    Messages,
    Responses,
    Embed,
}

/// What the provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Chat,
    Messages,
}

/// A direction in which can be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    from: From,
    to: To,
}

/// What has to be known of the provider's model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// What the provider calls it.
    pub model: String,
    /// Most tokens it writes, if known.
    pub max_tokens: Option<u64>,
    /// Whether it can be told how much to think.
    pub reasoning: bool,
    /// Whether the provider takes `top_k`, `min_p` and `repetition_penalty`.
    pub sampling: bool,
    /// Whether the provider takes `max_completion_tokens` (OpenAI) instead of `max_tokens`.
    pub completion_tokens: bool,
}

/// A request as the provider gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its body.
    pub body: Value,
    /// Whether the caller wants the answer as a stream; the provider is asked for the same.
    pub stream: bool,
    /// What the answer says back of the request; for [`Reply::asked`].
    pub echoed: Map<String, Value>,
}

/// Why a request cannot be translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It is wrong in its own dialect: what is wrong.
    Wrong(String),
    /// It asks for what the provider has not: what.
    Cannot(String),
    /// It asks for no answer: an empty prompt, which loads a model where there is one to load.
    Nothing,
}

/// What an answer says beside what the provider said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// The model, as the caller spelt it.
    pub model: String,
    /// When it was made, in RFC 3339.
    pub at: String,
    /// The same in seconds since 1970.
    pub unix: u64,
    /// What tells it from others: letters and digits, made up anew for each.
    pub id: String,
    /// [`Asked::echoed`].
    pub asked: Map<String, Value>,
}

impl Translation {
    /// The direction from what a caller asked in to what a provider speaks; `None` = there is
    /// none, or none is needed.
    pub fn between(caller: Api, op: Op, provider: Api) -> Option<Translation> {
        let from = match (caller, op) {
            (Api::Ollama, Op::Chat) => From::Chat,
            (Api::Ollama, Op::Generate) => From::Generate,
            (Api::Messages, Op::Messages) => From::Messages,
            (Api::Responses, Op::Responses) => From::Responses,
            (Api::Ollama, Op::Embed) => From::Embed,
            _ => return None,
        };
        let to = match (from, provider) {
            (_, Api::Chat) => To::Chat,
            (From::Chat | From::Generate, Api::Messages) => To::Messages,
            _ => return None,
        };
        Some(Translation { from, to })
    }

    /// How an engine is asked that does not speak what the caller speaks, and at which route;
    /// `None` = it needs no translation, or there is none.
    pub fn for_engine(caller: Api, op: Op, speaks: ApiSet) -> Option<(Translation, &'static str)> {
        let (through, route) = match op {
            Op::Embed => (Api::Embeddings, "/v1/embeddings"),
            _ => (Api::Chat, "/v1/chat/completions"),
        };
        let needed = !speaks.has(caller) && speaks.has(through);
        let way = needed.then(|| Translation::between(caller, op, Api::Chat)).flatten();
        way.map(|way| (way, route))
    }

    /// The dialects in which an engine can be asked that speaks these.
    pub fn reaches(speaks: ApiSet) -> ApiSet {
        match speaks.has(Api::Chat) {
            true => speaks.with(Api::Ollama).with(Api::Messages).with(Api::Responses),
            false => speaks,
        }
    }

    /// The dialect and the kind of the answer that a provider gives.
    pub fn spoken(&self) -> (Api, Op) {
        match (self.from, self.to) {
            (From::Embed, _) => (Api::Embeddings, Op::Embed),
            (_, To::Chat) => (Api::Chat, Op::Chat),
            (_, To::Messages) => (Api::Messages, Op::Messages),
        }
    }

    /// The `Content-Type` of the answer that the caller gets.
    pub fn content_type(&self, stream: bool) -> &'static str {
        match (self.from, stream) {
            (From::Chat | From::Generate, true) => "application/x-ndjson",
            (From::Chat | From::Generate | From::Embed, _) => "application/json; charset=utf-8",
            (From::Messages | From::Responses, true) => "text/event-stream",
            (From::Messages | From::Responses, false) => "application/json",
        }
    }

    /// The request for the provider.
    pub fn request(&self, body: Value, target: &Target) -> Result<Asked, Unfit> {
        let Value::Object(body) = body else {
            return Err(Unfit::Wrong("the body is no JSON object".to_owned()));
        };
        let echoed = match self.from {
            From::Responses => responses::echoed(&body),
            _ => Map::new(),
        };
        let generate = self.from == From::Generate;
        let (body, stream) = match (self.from, self.to) {
            (From::Chat | From::Generate, To::Chat) => {
                ask::native_chat::request(body, generate, target)
            }
            (From::Chat | From::Generate, To::Messages) => {
                ask::native_messages::request(body, generate, target)
            }
            (From::Messages, _) => ask::messages_chat::request(body, target),
            (From::Responses, _) => ask::responses_chat::request(body, target),
            (From::Embed, _) => embed::request(body, target).map(|body| (body, false)),
        }?;
        Ok(Asked { body: body.into(), stream, echoed })
    }

    /// A whole answer for the caller; `Err` = the provider failed, whatever its status: its words.
    /// `took` is the time from the request to the answer.
    pub fn whole(&self, body: &Value, reply: &Reply, took: Duration) -> Result<Value, String> {
        Ok(match self.from {
            From::Chat => native::whole(self.pieces(body)?, reply, false, took),
            From::Generate => native::whole(self.pieces(body)?, reply, true, took),
            From::Messages => to_messages::whole(self.pieces(body)?, reply),
            From::Responses => responses::whole(self.pieces(body)?, reply),
            From::Embed => embed::whole(body, reply, took)?,
        })
    }

    fn pieces(&self, body: &Value) -> Result<Vec<Piece>, String> {
        match self.to {
            To::Chat => chat::whole(body),
            To::Messages => messages::whole(body),
        }
    }

    /// A machine for an answer that comes as a stream.
    pub fn stream(&self, reply: Reply) -> Stream {
        let reader = match self.to {
            To::Chat => Reader::Chat(chat::Reader::default()),
            To::Messages => Reader::Messages(messages::Reader::default()),
        };
        let writer = match self.from {
            // Vectors do not come as a stream.
            From::Chat | From::Embed => Writer::Native(native::Writer::new(reply, false)),
            From::Generate => Writer::Native(native::Writer::new(reply, true)),
            From::Messages => Writer::Messages(to_messages::Writer::new(reply)),
            From::Responses => Writer::Responses(Box::new(responses::Writer::new(reply))),
        };
        Stream { events: Events::default(), reader, writer, state: State::Runs }
    }
}

/// What a provider's error body says, for an error in the caller's dialect.
pub fn error_of(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    match (body.get("error"), &body) {
        (Some(error), _) if !error.is_null() => Some(error_text(error)),
        (_, Value::Array(_)) => Some(error_text(&body)),
        _ => body["message"].as_str().map(str::to_owned),
    }
}

#[derive(Debug)]
enum Reader {
    Chat(chat::Reader),
    Messages(messages::Reader),
}

impl Reader {
    fn event(&mut self, event: &Event, out: &mut Vec<Piece>) {
        match self {
            Reader::Chat(reader) => reader.event(&event.data, out),
            Reader::Messages(reader) => reader.event(&event.data, out),
        }
    }

    fn is_whole(&self) -> bool {
        match self {
            Reader::Chat(reader) => reader.is_whole(),
            Reader::Messages(reader) => reader.is_whole(),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Reader::Chat(reader) => reader.is_done(),
            Reader::Messages(reader) => reader.is_done(),
        }
    }
}

#[derive(Debug)]
enum Writer {
    Native(native::Writer),
    Messages(to_messages::Writer),
    Responses(Box<responses::Writer>),
}

impl Writer {
    fn piece(&mut self, piece: Piece, at: Duration, out: &mut Vec<u8>) {
        match self {
            Writer::Native(writer) => writer.piece(piece, at, out),
            Writer::Messages(writer) => writer.piece(piece, out),
            Writer::Responses(writer) => writer.piece(piece, out),
        }
    }

    fn end(&mut self, at: Duration, out: &mut Vec<u8>) {
        match self {
            Writer::Native(writer) => writer.end(at, out),
            Writer::Messages(writer) => writer.end(out),
            Writer::Responses(writer) => writer.end(out),
        }
    }
}

/// Where a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// More may come.
    Runs,
    /// The answer is whole.
    Whole,
    /// The error item was written.
    Failed,
}

/// A provider's stream becoming the caller's.
#[derive(Debug)]
pub struct Stream {
    events: Events,
    reader: Reader,
    writer: Writer,
    state: State,
}

impl Stream {
    /// Takes the provider's next bytes, which came so long after the request; what the caller
    /// gets for them is appended to `out`.
    pub fn push(&mut self, bytes: &[u8], at: Duration, out: &mut Vec<u8>) {
        if self.state != State::Runs {
            return;
        }
        let mut events = Vec::new();
        let fed = self.events.feed(bytes, |event| events.push(event));
        for event in events {
            self.event(&event, at, out);
        }
        if fed.is_err() {
            self.fail("the provider sent an event that is too long", at, out);
        }
    }

    /// The provider's stream is over. One that was not whole ends in an error item.
    pub fn finish(&mut self, at: Duration, out: &mut Vec<u8>) {
        let mut events = Vec::new();
        self.events.finish(|event| events.push(event));
        for event in events {
            self.event(&event, at, out);
        }
        if self.state != State::Runs {
            return;
        }
        if self.reader.is_whole() {
            return self.end(at, out);
        }
        let said = error_of(self.events.odd());
        self.fail(said.as_deref().unwrap_or("the provider stopped in mid-answer"), at, out);
    }

    /// It broke off, for this reason: writes the error item, unless the answer is whole.
    pub fn broke(&mut self, why: &str, at: Duration, out: &mut Vec<u8>) {
        match self.state {
            State::Runs if self.reader.is_whole() => self.end(at, out),
            State::Runs => self.fail(why, at, out),
            _ => {}
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    fn event(&mut self, event: &Event, at: Duration, out: &mut Vec<u8>) {
        if self.state != State::Runs {
            return;
        }
        let mut pieces = Vec::new();
        self.reader.event(event, &mut pieces);
        for piece in pieces {
            match piece {
                Piece::Error(text) => return self.fail(&text, at, out),
                piece => self.writer.piece(piece, at, out),
            }
        }
        if self.reader.is_done() {
            self.end(at, out);
        }
    }

    fn end(&mut self, at: Duration, out: &mut Vec<u8>) {
        self.state = State::Whole;
        self.writer.end(at, out);
    }

    fn fail(&mut self, why: &str, at: Duration, out: &mut Vec<u8>) {
        self.state = State::Failed;
        self.writer.piece(Piece::Error(why.to_owned()), at, out);
    }
}
