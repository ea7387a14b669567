//! Reading OpenAI chat completions, as the many who speak it do.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::piece::{Call, Piece, Stop, Usage, error_text, joined, text};

/// Most tool calls of one answer.
const MOST_CALLS: usize = 128;

/// What came so far of a stream.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    calls: BTreeMap<u64, Parts>,
    /// How many calls were told.
    told: usize,
    stopped: bool,
    done: bool,
}

/// A tool call as it comes.
#[derive(Debug, Default)]
struct Parts {
    id: String,
    name: String,
    arguments: String,
}

impl Reader {
    /// Whether all came that had to.
    pub(in super::super) fn is_whole(&self) -> bool {
        self.done || self.stopped
    }

    /// Whether nothing comes after this.
    pub(in super::super) fn is_done(&self) -> bool {
        self.done
    }

    /// The data of one event.
    pub(in super::super) fn event(&mut self, data: &str, out: &mut Vec<Piece>) {
        if data.trim() == "[DONE]" {
            self.calls_over(out);
            self.done = true;
            return;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(data) else {
            return out
                .push(Piece::Error("the provider sent something that is no JSON".to_owned()));
        };
        if let Some(error) = failure(&chunk) {
            return out.push(Piece::Error(error));
        }
        let choice = chunk["choices"]
            .as_array()
            .and_then(|all| all.iter().find(|c| c["index"].as_u64().unwrap_or(0) == 0));
        if let Some(choice) = choice {
            let delta = &choice["delta"];
            said(delta, out);
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                self.call(call);
            }
            if let Some(reason) = text(choice, "finish_reason") {
                let calls = self.calls_over(out);
                self.stopped = true;
                out.push(Piece::Stop(stop(reason, calls)));
            }
        }
        if let Some(usage) = usage(&chunk) {
            out.push(Piece::Usage(usage));
        }
    }

    /// A piece of a tool call. Most number their calls; who does not begins each with its id.
    fn call(&mut self, call: &Value) {
        let last = self.calls.keys().next_back().copied();
        let index = call["index"].as_u64().unwrap_or_else(|| match (last, text(call, "id")) {
            (Some(last), Some(id)) if self.calls[&last].id != id => last + 1,
            (last, _) => last.unwrap_or(0),
        });
        if self.calls.len() >= MOST_CALLS && !self.calls.contains_key(&index) {
            return;
        }
        let parts = self.calls.entry(index).or_default();
        if let Some(id) = text(call, "id") {
            parts.id = id.to_owned();
        }
        if let Some(name) = text(&call["function"], "name")
            && parts.name != name
        {
            parts.name.push_str(name);
        }
        match &call["function"]["arguments"] {
            Value::String(more) => parts.arguments.push_str(more),
            // Some send them as an object, at once.
            Value::Object(all) => parts.arguments = Value::Object(all.clone()).to_string(),
            _ => {}
        }
    }

    /// The calls are whole. Returns how many there were in all.
    fn calls_over(&mut self, out: &mut Vec<Piece>) -> usize {
        for (_, parts) in std::mem::take(&mut self.calls) {
            out.push(call_of(parts.id, parts.name, &parts.arguments, self.told));
            self.told += 1;
        }
        self.told
    }
}

/// A call, which has an id even where the provider gave none.
fn call_of(id: String, name: String, arguments: &str, number: usize) -> Piece {
    let id = if id.is_empty() { format!("call_{number:08}") } else { id };
    Call::read(id, name, arguments).map_or_else(Piece::Error, Piece::Call)
}

/// What a message or a piece of one says, thinks and holds beside.
fn said(message: &Value, out: &mut Vec<Piece>) {
    let thinking = text(message, "reasoning_content").or_else(|| text(message, "reasoning"));
    out.extend(thinking.map(|thinking| Piece::Thinking(thinking.to_owned())));
    let said = joined(&message["content"]);
    if !said.is_empty() {
        out.push(Piece::Text(said));
    }
    // A refusal is what is said instead.
    out.extend(text(message, "refusal").map(|said| Piece::Text(said.to_owned())));
    const KNOWN: [&str; 9] = [
        "role",
        "content",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "refusal",
        "tool_calls",
        "function_call",
        "name",
    ];
    let other: Map<String, Value> = message
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !KNOWN.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !other.is_empty() {
        out.push(Piece::Other(other));
    }
}

/// A whole answer; `Err` = it is a failure after all.
pub(in super::super) fn whole(body: &Value) -> Result<Vec<Piece>, String> {
    if let Some(error) = failure(body) {
        return Err(error);
    }
    let Some(choice) = body["choices"].get(0) else {
        return Err("the provider's answer holds no choice".to_owned());
    };
    let mut out = Vec::new();
    said(&choice["message"], &mut out);
    let calls = choice["message"]["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    for (number, call) in calls.iter().take(MOST_CALLS).enumerate() {
        let function = &call["function"];
        let arguments = match &function["arguments"] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let own = |value: &Value, name| text(value, name).unwrap_or_default().to_owned();
        match call_of(own(call, "id"), own(function, "name"), &arguments, number) {
            Piece::Error(error) => return Err(error),
            piece => out.push(piece),
        }
    }
    out.extend(usage(body).map(Piece::Usage));
    out.push(Piece::Stop(stop(text(choice, "finish_reason").unwrap_or("stop"), calls.len())));
    Ok(out)
}

/// What went wrong, said with status 200.
fn failure(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null());
    if let Some(error) = error {
        return Some(error_text(error));
    }
    if body.is_array() {
        return Some(error_text(body));
    }
    // vLLM: `{"object":"error","message":…}`.
    if body["object"] == "error" {
        return Some(error_text(body));
    }
    let choice = body["choices"].get(0)?;
    (choice["finish_reason"] == "error").then(|| match choice.get("error") {
        Some(error) => error_text(error),
        None => "the provider failed in mid-answer".to_owned(),
    })
}

fn stop(reason: &str, calls: usize) -> Stop {
    match reason {
        "length" | "max_tokens" => Stop::Length,
        "tool_calls" | "function_call" => Stop::Tools,
        "content_filter" => Stop::Refusal,
        // Some say `stop` after tool calls.
        _ if calls > 0 => Stop::Tools,
        _ => Stop::End,
    }
}

fn usage(body: &Value) -> Option<Usage> {
    // Groq has it under a name of its own in streams.
    let counts = [&body["usage"], &body["x_groq"]["usage"]].into_iter().find(|u| u.is_object())?;
    let number = |name: &str| counts[name].as_u64();
    Some(Usage {
        prompt: number("prompt_tokens"),
        cached: counts["prompt_tokens_details"]["cached_tokens"].as_u64(),
        output: number("completion_tokens"),
        reasoning: counts["completion_tokens_details"]["reasoning_tokens"].as_u64(),
    })
}
