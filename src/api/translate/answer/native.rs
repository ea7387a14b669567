//! Writing Ollama's own dialect: a line for each piece, and one that says `done`.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::Reply;
use super::super::piece::{Call, Piece, Stop, Usage};

/// What was written so far.
#[derive(Debug)]
pub(in super::super) struct Writer {
    reply: Reply,
    /// `/api/generate`, which has no messages.
    generate: bool,
    /// Calls that go into one line.
    calls: Vec<Value>,
    other: Map<String, Value>,
    usage: Usage,
    stop: Stop,
    first: Option<Duration>,
    last: Duration,
}

impl Writer {
    pub(in super::super) fn new(reply: Reply, generate: bool) -> Writer {
        Writer {
            reply,
            generate,
            calls: Vec::new(),
            other: Map::new(),
            usage: Usage::default(),
            stop: Stop::default(),
            first: None,
            last: Duration::ZERO,
        }
    }

    /// One more piece, which came so long after the request.
    pub(in super::super) fn piece(&mut self, piece: Piece, at: Duration, out: &mut Vec<u8>) {
        if let Piece::Thinking(_) | Piece::Text(_) | Piece::Call(_) = piece {
            self.first.get_or_insert(at);
            self.last = at;
        }
        if !matches!(piece, Piece::Call(_)) {
            self.flush(out);
        }
        match piece {
            Piece::Thinking(text) => self.line(&[("thinking", text.into())], out),
            Piece::Text(text) => self.line(&[("content", text.into())], out),
            Piece::Call(call) => self.calls.push(tool_call(self.calls.len(), &call)),
            Piece::Usage(usage) => self.usage.update(usage),
            Piece::Stop(stop) => self.stop = stop,
            // A generated text has no message to hold them.
            Piece::Other(_) if self.generate => {}
            Piece::Other(other) => self.other.extend(other),
            Piece::Error(text) => line(&json!({ "error": text }), out),
        }
    }

    /// The last line.
    pub(in super::super) fn end(&mut self, at: Duration, out: &mut Vec<u8>) {
        self.flush(out);
        let other: Vec<(String, Value)> = std::mem::take(&mut self.other).into_iter().collect();
        let mut last = self.head(&other);
        let first = self.first.unwrap_or(at);
        finish(&mut last, &self.stop, &self.usage, at, Some((first, self.last.max(first))));
        line(&Value::Object(last), out);
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if !self.calls.is_empty() {
            let calls = std::mem::take(&mut self.calls);
            self.line(&[("tool_calls", calls.into())], out);
        }
    }

    fn line(&self, said: &[(&str, Value)], out: &mut Vec<u8>) {
        let said: Vec<(String, Value)> =
            said.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut object = self.head(&said);
        object.insert("done".to_owned(), false.into());
        line(&Value::Object(object), out);
    }

    fn head(&self, said: &[(String, Value)]) -> Map<String, Value> {
        head(&self.reply, self.generate, said)
    }
}

/// A line up to what is said in it.
fn head(reply: &Reply, generate: bool, said: &[(String, Value)]) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("model".to_owned(), reply.model.clone().into());
    object.insert("created_at".to_owned(), reply.at.clone().into());
    if generate {
        object.insert("response".to_owned(), "".into());
        for (name, value) in said {
            let name = if name == "content" { "response" } else { name };
            object.insert(name.to_owned(), value.clone());
        }
        return object;
    }
    let mut message = Map::new();
    message.insert("role".to_owned(), "assistant".into());
    message.insert("content".to_owned(), "".into());
    message.extend(said.iter().cloned());
    object.insert("message".to_owned(), message.into());
    object
}

/// What stands in the last line alone. `pieces`: when the first and the last one came.
fn finish(
    object: &mut Map<String, Value>,
    stop: &Stop,
    usage: &Usage,
    took: Duration,
    pieces: Option<(Duration, Duration)>,
) {
    let ns = |time: Duration| Value::from(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
    set("done", true.into());
    set("done_reason", if *stop == Stop::Length { "length" } else { "stop" }.into());
    set("total_duration", ns(took));
    set("load_duration", 0.into());
    if let Some(tokens) = usage.prompt {
        set("prompt_eval_count", tokens.into());
    }
    if let Some((first, _)) = pieces {
        set("prompt_eval_duration", ns(first));
    }
    if let Some(tokens) = usage.output {
        set("eval_count", tokens.into());
    }
    set("eval_duration", ns(pieces.map_or(took, |(first, last)| last.saturating_sub(first))));
}

fn tool_call(index: usize, call: &Call) -> Value {
    json!({
        "id": call.id,
        "function": { "index": index, "name": call.name, "arguments": call.arguments },
    })
}

fn line(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.push(b'\n');
}

/// A whole answer.
pub(in super::super) fn whole(
    pieces: Vec<Piece>,
    reply: &Reply,
    generate: bool,
    took: Duration,
) -> Value {
    let (mut content, mut thinking) = (String::new(), String::new());
    let (mut calls, mut said) = (Vec::new(), Vec::new());
    let (mut usage, mut stop) = (Usage::default(), Stop::default());
    for piece in pieces {
        match piece {
            Piece::Thinking(text) => thinking.push_str(&text),
            Piece::Text(text) => content.push_str(&text),
            Piece::Call(call) => calls.push(tool_call(calls.len(), &call)),
            Piece::Usage(later) => usage.update(later),
            Piece::Stop(reason) => stop = reason,
            Piece::Other(_) if generate => {}
            Piece::Other(other) => said.extend(other),
            Piece::Error(_) => {}
        }
    }
    said.push(("content".to_owned(), content.into()));
    if !thinking.is_empty() {
        said.push(("thinking".to_owned(), thinking.into()));
    }
    if !calls.is_empty() {
        said.push(("tool_calls".to_owned(), calls.into()));
    }
    let mut object = head(reply, generate, &said);
    finish(&mut object, &stop, &usage, took, None);
    Value::Object(object)
}
