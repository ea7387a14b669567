//! Writing OpenAI responses: numbered events about items, each begun, filled and ended.

use serde_json::{Map, Value, json};

use super::super::Reply;
use super::super::piece::{Call, Piece, Stop, Usage};

/// The item that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Reasoning,
    Message,
}

/// What was written so far.
#[derive(Debug)]
pub(in super::super) struct Writer {
    reply: Reply,
    begun: bool,
    sequence: u64,
    open: Option<Open>,
    /// The text of the open item.
    text: String,
    /// The items that are whole.
    items: Vec<Value>,
    usage: Usage,
    stop: Stop,
}

impl Writer {
    pub(in super::super) fn new(reply: Reply) -> Writer {
        Writer {
            reply,
            begun: false,
            sequence: 0,
            open: None,
            text: String::new(),
            items: Vec::new(),
            usage: Usage::default(),
            stop: Stop::default(),
        }
    }

    /// One more piece.
    pub(in super::super) fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Thinking(text) => {
                self.open(Open::Reasoning, out);
                let said = json!({ "summary_index": 0, "delta": text });
                self.about("response.reasoning_summary_text.delta", said, out);
                self.text.push_str(&text);
            }
            Piece::Text(text) => {
                self.open(Open::Message, out);
                let said = json!({ "content_index": 0, "delta": text, "logprobs": [] });
                self.about("response.output_text.delta", said, out);
                self.text.push_str(&text);
            }
            Piece::Call(call) => self.call(&call, out),
            Piece::Usage(usage) => self.usage.update(usage),
            Piece::Stop(stop) => self.stop = stop,
            Piece::Other(_) => {}
            Piece::Error(text) => {
                // Without the `error` object in it the SDKs hand the event on and raise nothing.
                let error =
                    json!({ "type": "api_error", "code": "upstream_lost", "message": text });
                let event = json!({ "code": "upstream_lost", "message": text, "param": null, "error": error });
                self.event("error", event, out);
            }
        }
    }

    /// The last events.
    pub(in super::super) fn end(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        self.close(out);
        let (status, _) = status(&self.stop);
        let whole = response(&self.reply, std::mem::take(&mut self.items), &self.stop, &self.usage);
        self.event(&format!("response.{status}"), json!({ "response": whole }), out);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let mut begun = frame(&self.reply);
        begun["status"] = "in_progress".into();
        for name in ["response.created", "response.in_progress"] {
            self.event(name, json!({ "response": begun }), out);
        }
    }

    fn open(&mut self, kind: Open, out: &mut Vec<u8>) {
        self.begin(out);
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        self.open = Some(kind);
        let mut item = match kind {
            Open::Reasoning => reasoning(&self.id(), ""),
            Open::Message => message(&self.id(), ""),
        };
        item["status"] = "in_progress".into();
        let (list, part, name) = parts(kind, "");
        item[list] = json!([]);
        self.event(
            "response.output_item.added",
            json!({ "output_index": self.items.len(), "item": item }),
            out,
        );
        self.about(&format!("response.{name}.added"), part, out);
    }

    /// Ends the open item.
    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(kind) = self.open else { return };
        let text = std::mem::take(&mut self.text);
        let (_, part, name) = parts(kind, &text);
        match kind {
            Open::Reasoning => {
                let said = json!({ "summary_index": 0, "text": text });
                self.about("response.reasoning_summary_text.done", said, out);
            }
            Open::Message => {
                let said = json!({ "content_index": 0, "text": text, "logprobs": [] });
                self.about("response.output_text.done", said, out);
            }
        }
        self.about(&format!("response.{name}.done"), part, out);
        let item = match kind {
            Open::Reasoning => reasoning(&self.id(), &text),
            Open::Message => message(&self.id(), &text),
        };
        self.open = None;
        self.whole(item, out);
    }

    fn call(&mut self, call: &Call, out: &mut Vec<u8>) {
        self.begin(out);
        self.close(out);
        let item = function_call(&format!("fc_{}_{}", self.reply.id, self.items.len()), call);
        let mut begun = item.clone();
        begun["status"] = "in_progress".into();
        begun["arguments"] = "".into();
        let id = item["id"].clone();
        let index = self.items.len();
        self.event(
            "response.output_item.added",
            json!({ "output_index": index, "item": begun }),
            out,
        );
        for (name, field) in [("delta", "delta"), ("done", "arguments")] {
            let mut said = json!({ "output_index": index, "item_id": id });
            said[field] = call.text().into();
            self.event(&format!("response.function_call_arguments.{name}"), said, out);
        }
        self.whole(item, out);
    }

    fn whole(&mut self, item: Value, out: &mut Vec<u8>) {
        let said = json!({ "output_index": self.items.len(), "item": item });
        self.items.push(item);
        self.event("response.output_item.done", said, out);
    }

    /// The id of the open item.
    fn id(&self) -> String {
        let kind = if self.open == Some(Open::Reasoning) { "rs" } else { "msg" };
        format!("{kind}_{}_{}", self.reply.id, self.items.len())
    }

    /// An event about the open item.
    fn about(&mut self, name: &str, mut said: Value, out: &mut Vec<u8>) {
        said["output_index"] = self.items.len().into();
        said["item_id"] = self.id().into();
        self.event(name, said, out);
    }

    fn event(&mut self, name: &str, said: Value, out: &mut Vec<u8>) {
        let mut event = json!({ "type": name, "sequence_number": self.sequence });
        self.sequence += 1;
        if let (Some(event), Value::Object(said)) = (event.as_object_mut(), said) {
            event.extend(said);
        }
        out.extend_from_slice(format!("event: {name}\ndata: {event}\n\n").as_bytes());
    }
}

/// The list in an item that holds its text, the part in that list, and what events call it.
fn parts(kind: Open, text: &str) -> (&'static str, Value, &'static str) {
    match kind {
        Open::Reasoning => (
            "summary",
            json!({ "summary_index": 0, "part": { "type": "summary_text", "text": text } }),
            "reasoning_summary_part",
        ),
        Open::Message => {
            ("content", json!({ "content_index": 0, "part": output_text(text) }), "content_part")
        }
    }
}

fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn message(id: &str, text: &str) -> Value {
    json!({
        "id": id, "type": "message", "status": "completed", "role": "assistant",
        "content": [output_text(text)],
    })
}

fn reasoning(id: &str, text: &str) -> Value {
    json!({
        "id": id, "type": "reasoning", "status": "completed",
        "summary": [{ "type": "summary_text", "text": text }],
    })
}

fn function_call(id: &str, call: &Call) -> Value {
    json!({
        "id": id, "type": "function_call", "status": "completed", "call_id": call.id,
        "name": call.name, "arguments": call.text(),
    })
}

fn status(stop: &Stop) -> (&'static str, Value) {
    match stop {
        Stop::Length => ("incomplete", json!({ "reason": "max_output_tokens" })),
        Stop::Refusal => ("incomplete", json!({ "reason": "content_filter" })),
        _ => ("completed", Value::Null),
    }
}

/// A response in which nothing is said yet; what was asked is said back.
fn frame(reply: &Reply) -> Value {
    let mut frame = json!({
        "id": format!("resp_{}", reply.id), "object": "response", "created_at": reply.unix,
        "status": "completed", "background": false, "error": null, "incomplete_details": null,
        "instructions": null, "max_output_tokens": null, "max_tool_calls": null, "metadata": {},
        "model": reply.model, "output": [], "parallel_tool_calls": true,
        "previous_response_id": null, "reasoning": null, "service_tier": "default", "store": false,
        "temperature": 1, "text": { "format": { "type": "text" } }, "tool_choice": "auto",
        "tools": [], "top_p": 1, "truncation": "disabled", "usage": null,
    });
    for (name, value) in &reply.asked {
        frame[name.as_str()] = value.clone();
    }
    frame
}

fn response(reply: &Reply, items: Vec<Value>, stop: &Stop, usage: &Usage) -> Value {
    let mut whole = frame(reply);
    let (status, details) = status(stop);
    whole["status"] = status.into();
    whole["incomplete_details"] = details;
    whole["output"] = items.into();
    whole["usage"] = json!({
        "input_tokens": usage.prompt.unwrap_or(0),
        "input_tokens_details": { "cached_tokens": usage.cached.unwrap_or(0) },
        "output_tokens": usage.output.unwrap_or(0),
        "output_tokens_details": { "reasoning_tokens": usage.reasoning.unwrap_or(0) },
        "total_tokens": usage.total(),
    });
    whole
}

/// What of a request is said back in its answer.
pub(in super::super) fn echoed(asked: &Map<String, Value>) -> Map<String, Value> {
    const ECHOED: [&str; 11] = [
        "instructions",
        "max_output_tokens",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_p",
        "user",
    ];
    let of = |name: &&str| {
        Some(((*name).to_owned(), asked.get(*name).filter(|v| !v.is_null())?.clone()))
    };
    ECHOED.iter().filter_map(of).collect()
}

/// A whole answer.
pub(in super::super) fn whole(pieces: Vec<Piece>, reply: &Reply) -> Value {
    let (mut thinking, mut text) = (String::new(), String::new());
    let mut calls = Vec::new();
    let (mut usage, mut stop) = (Usage::default(), Stop::default());
    for piece in pieces {
        match piece {
            Piece::Thinking(more) => thinking.push_str(&more),
            Piece::Text(more) => text.push_str(&more),
            Piece::Call(call) => calls.push(call),
            Piece::Usage(later) => usage.update(later),
            Piece::Stop(reason) => stop = reason,
            Piece::Other(_) | Piece::Error(_) => {}
        }
    }
    let mut items: Vec<Value> = Vec::new();
    if !thinking.is_empty() {
        items.push(reasoning(&format!("rs_{}_0", reply.id), &thinking));
    }
    if !text.is_empty() {
        items.push(message(&format!("msg_{}_{}", reply.id, items.len()), &text));
    }
    for call in &calls {
        items.push(function_call(&format!("fc_{}_{}", reply.id, items.len()), call));
    }
    response(reply, items, &stop, &usage)
}
