//! Writing Anthropic messages: blocks one after the other, each begun and ended.

use serde_json::{Value, json};

use super::super::Reply;
use super::super::piece::{Call, Piece, Stop, Usage};

/// The kinds of blocks that are written piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
}

/// What was written so far.
#[derive(Debug)]
pub(in super::super) struct Writer {
    reply: Reply,
    begun: bool,
    open: Option<Open>,
    /// The number of the next block.
    index: u64,
    usage: Usage,
    stop: Stop,
}

impl Writer {
    pub(in super::super) fn new(reply: Reply) -> Writer {
        Writer {
            reply,
            begun: false,
            open: None,
            index: 0,
            usage: Usage::default(),
            stop: Stop::default(),
        }
    }

    /// One more piece.
    pub(in super::super) fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Thinking(text) => {
                self.open(Open::Thinking, out);
                self.delta(&json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            Piece::Text(text) => {
                self.open(Open::Text, out);
                self.delta(&json!({ "type": "text_delta", "text": text }), out);
            }
            Piece::Call(call) => {
                self.close(out);
                self.begin(out);
                let block =
                    json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
                self.start_block(&block, out);
                self.delta(
                    &json!({ "type": "input_json_delta", "partial_json": call.text() }),
                    out,
                );
                self.stop_block(out);
            }
            Piece::Usage(usage) => self.usage.update(usage),
            Piece::Stop(stop) => self.stop = stop,
            // This dialect has no place for what it does not know.
            Piece::Other(_) => {}
            Piece::Error(text) => {
                let error = json!({ "type": "api_error", "message": text });
                event(&json!({ "type": "error", "error": error }), out);
            }
        }
    }

    /// The last events.
    pub(in super::super) fn end(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        self.close(out);
        let (reason, word) = stop_reason(&self.stop);
        event(
            &json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": word },
                "usage": counts(&self.usage),
            }),
            out,
        );
        event(&json!({ "type": "message_stop" }), out);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let mut message = message(&self.reply);
        message["content"] = json!([]);
        message["stop_reason"] = Value::Null;
        message["stop_sequence"] = Value::Null;
        message["usage"] = counts(&self.usage);
        event(&json!({ "type": "message_start", "message": message }), out);
    }

    fn open(&mut self, kind: Open, out: &mut Vec<u8>) {
        self.begin(out);
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        let block = match kind {
            Open::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Open::Text => json!({ "type": "text", "text": "" }),
        };
        self.start_block(&block, out);
        self.open = Some(kind);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.stop_block(out);
        }
    }

    fn start_block(&mut self, block: &Value, out: &mut Vec<u8>) {
        event(
            &json!({ "type": "content_block_start", "index": self.index, "content_block": block }),
            out,
        );
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        event(&json!({ "type": "content_block_delta", "index": self.index, "delta": delta }), out);
    }

    fn stop_block(&mut self, out: &mut Vec<u8>) {
        event(&json!({ "type": "content_block_stop", "index": self.index }), out);
        self.index += 1;
    }
}

fn message(reply: &Reply) -> Value {
    json!({ "id": format!("msg_{}", reply.id), "type": "message", "role": "assistant", "model": reply.model })
}

/// What was cached is told apart here.
fn counts(usage: &Usage) -> Value {
    let cached = usage.cached.unwrap_or(0);
    let mut counts = json!({
        "input_tokens": usage.prompt.unwrap_or(0).saturating_sub(cached),
        "output_tokens": usage.output.unwrap_or(0),
    });
    if cached > 0 {
        counts["cache_read_input_tokens"] = cached.into();
    }
    counts
}

fn stop_reason(stop: &Stop) -> (&'static str, Option<&str>) {
    match stop {
        Stop::End => ("end_turn", None),
        Stop::Length => ("max_tokens", None),
        Stop::Tools => ("tool_use", None),
        Stop::Word(word) => ("stop_sequence", word.as_deref()),
        Stop::Refusal => ("refusal", None),
    }
}

fn event(data: &Value, out: &mut Vec<u8>) {
    let name = data["type"].as_str().unwrap_or_default();
    out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
}

/// A whole answer.
pub(in super::super) fn whole(pieces: Vec<Piece>, reply: &Reply) -> Value {
    let (mut thinking, mut text) = (String::new(), String::new());
    let mut calls: Vec<Value> = Vec::new();
    let (mut usage, mut stop) = (Usage::default(), Stop::default());
    for piece in pieces {
        match piece {
            Piece::Thinking(more) => thinking.push_str(&more),
            Piece::Text(more) => text.push_str(&more),
            Piece::Call(Call { id, name, arguments }) => {
                calls.push(
                    json!({ "type": "tool_use", "id": id, "name": name, "input": arguments }),
                );
            }
            Piece::Usage(later) => usage.update(later),
            Piece::Stop(reason) => stop = reason,
            Piece::Other(_) | Piece::Error(_) => {}
        }
    }
    let mut content = Vec::new();
    if !thinking.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "" }));
    }
    if !text.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    content.extend(calls);
    let (reason, word) = stop_reason(&stop);
    let mut message = message(reply);
    message["content"] = content.into();
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = word.into();
    message["usage"] = counts(&usage);
    message
}
