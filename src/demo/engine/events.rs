//! The dialects made of named events: OpenAI's responses and Anthropic's messages.

use serde_json::{Value, json};

use super::spec::{Piece, hex};
use super::stamp;
use super::voice::{Finish, Reason, Voice, quote, text, thinking};

/// OpenAI's responses.
pub(super) struct Responses {
    pub(super) model: String,
    pub(super) serial: u64,
    pub(super) limit: Option<u64>,
    pub(super) said: String,
    pub(super) sequence: u64,
}

impl Responses {
    fn item(&self) -> String {
        format!("msg_{}", 100_000 + self.serial % 900_000)
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        if let Some(map) = data.as_object_mut() {
            map.insert("type".into(), kind.into());
            map.insert("sequence_number".into(), self.sequence.into());
        }
        self.sequence += 1;
        format!("event: {kind}\ndata: {data}\n\n")
    }

    fn message(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.map(part).into_iter().collect();
        json!({"id": self.item(), "type": "message", "status": status, "role": "assistant", "content": content})
    }

    fn response(&self, status: &str, output: Vec<Value>, finish: Option<&Finish>) -> Value {
        json!({
            "background": false, "completed_at": finish.map(|_| stamp::seconds()),
            "created_at": stamp::seconds(), "error": null, "frequency_penalty": 0,
            "id": format!("resp_{}", 100_000 + self.serial % 900_000), "incomplete_details": null,
            "instructions": null, "max_output_tokens": self.limit, "max_tool_calls": null,
            "metadata": {}, "model": self.model, "object": "response", "output": output,
            "parallel_tool_calls": true, "presence_penalty": 0, "previous_response_id": null,
            "prompt_cache_key": null, "reasoning": null, "safety_identifier": null,
            "service_tier": "default", "status": status, "store": false, "temperature": 1,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_logprobs": 0, "top_p": 1, "truncation": "disabled",
            "usage": finish.map(|f| json!({
                "input_tokens": f.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": f.tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": f.prompt_tokens + f.tokens,
            })),
        })
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Voice for Responses {
    fn open(&mut self) -> String {
        let response = self.response("in_progress", Vec::new(), None);
        let mut out = self.event("response.created", json!({"response": response}));
        out += &self.event("response.in_progress", json!({"response": response}));
        let item = self.message("in_progress", None);
        out += &self.event("response.output_item.added", json!({"item": item, "output_index": 0}));
        let added = json!({"content_index": 0, "item_id": self.item(), "output_index": 0, "part": part("")});
        out + &self.event("response.content_part.added", added)
    }

    fn piece(&mut self, piece: &Piece) -> String {
        let Piece::Text(delta) = piece else { return String::new() };
        self.said += delta;
        let data = json!({"content_index": 0, "delta": delta, "item_id": self.item(), "logprobs": [], "output_index": 0});
        self.event("response.output_text.delta", data)
    }

    fn end(&mut self, finish: &Finish) -> String {
        let said = std::mem::take(&mut self.said);
        let id = self.item();
        let done = json!({"content_index": 0, "item_id": id, "logprobs": [], "output_index": 0, "text": said});
        let mut out = self.event("response.output_text.done", done);
        let done =
            json!({"content_index": 0, "item_id": id, "output_index": 0, "part": part(&said)});
        out += &self.event("response.content_part.done", done);
        let item = self.message("completed", Some(&said));
        out += &self.event("response.output_item.done", json!({"item": item, "output_index": 0}));
        let response = self.response("completed", vec![item], Some(finish));
        out + &self.event("response.completed", json!({"response": response}))
    }

    fn whole(&mut self, pieces: &[Piece], finish: &Finish) -> String {
        let item = self.message("completed", Some(&text(pieces)));
        self.response("completed", vec![item], Some(finish)).to_string()
    }
}

/// Anthropic's messages.
pub(super) struct Messages {
    pub(super) model: String,
    pub(super) serial: u64,
    pub(super) prompt_tokens: u64,
    pub(super) block: Option<(u64, &'static str)>,
}

fn anthropic_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "end_turn",
        Reason::Length => "max_tokens",
        Reason::Tool => "tool_use",
    }
}

fn event(kind: &str, rest: &str) -> String {
    format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}}}\n\n")
}

impl Messages {
    fn id(&self) -> String {
        format!("msg_{}", &hex(&self.serial.to_be_bytes())[..24])
    }

    fn close_block(&self) -> String {
        self.block.map_or_else(String::new, |(i, _)| {
            event("content_block_stop", &format!(r#","index":{i}"#))
        })
    }

    /// Opens a block of this kind unless it is open.
    fn block(&mut self, kind: &'static str, start: &str) -> (u64, String) {
        match self.block {
            Some((i, open)) if open == kind => (i, String::new()),
            before => {
                let i = before.map_or(0, |(i, _)| i + 1);
                let mut out = self.close_block();
                out += &event(
                    "content_block_start",
                    &format!(r#","index":{i},"content_block":{start}"#),
                );
                self.block = Some((i, kind));
                (i, out)
            }
        }
    }

    fn tool(&self, name: &str, input: &str) -> String {
        format!(
            r#"{{"type":"tool_use","id":"call_{:08}","name":{},"input":{input}}}"#,
            self.serial,
            quote(name)
        )
    }
}

fn delta(index: u64, delta: &str) -> String {
    event("content_block_delta", &format!(r#","index":{index},"delta":{delta}"#))
}

impl Voice for Messages {
    fn open(&mut self) -> String {
        let tokens = (self.prompt_tokens / 4).max(1);
        event(
            "message_start",
            &format!(
                r#","message":{{"id":"{}","type":"message","role":"assistant","model":{},"content":[],"usage":{{"input_tokens":{tokens},"output_tokens":0}}}}"#,
                self.id(),
                quote(&self.model)
            ),
        )
    }

    fn piece(&mut self, piece: &Piece) -> String {
        match piece {
            Piece::Text(t) => {
                let (i, out) = self.block("text", r#"{"type":"text","text":""}"#);
                out + &delta(i, &format!(r#"{{"type":"text_delta","text":{}}}"#, quote(t)))
            }
            Piece::Thinking(t) => {
                let (i, out) = self.block("thinking", r#"{"type":"thinking","thinking":""}"#);
                out + &delta(i, &format!(r#"{{"type":"thinking_delta","thinking":{}}}"#, quote(t)))
            }
            Piece::Tool { name, city } => {
                let start = self.tool(name, "{}");
                let (i, out) = self.block("tool_use", &start);
                let input = quote(&json!({ "city": city }).to_string());
                out + &delta(i, &format!(r#"{{"type":"input_json_delta","partial_json":{input}}}"#))
            }
        }
    }

    fn end(&mut self, f: &Finish) -> String {
        let stop = format!(
            r#","delta":{{"stop_reason":"{}"}},"usage":{{"input_tokens":{},"output_tokens":{}}}"#,
            anthropic_reason(f.reason),
            f.prompt_tokens,
            f.tokens
        );
        self.close_block() + &event("message_delta", &stop) + &event("message_stop", "")
    }

    fn whole(&mut self, pieces: &[Piece], f: &Finish) -> String {
        let mut content = Vec::new();
        match thinking(pieces).as_str() {
            "" => {}
            t => content.push(format!(r#"{{"type":"thinking","thinking":{}}}"#, quote(t))),
        }
        match text(pieces).as_str() {
            "" => {}
            t => content.push(format!(r#"{{"type":"text","text":{}}}"#, quote(t))),
        }
        for piece in pieces {
            if let Piece::Tool { name, city } = piece {
                content.push(self.tool(name, &json!({ "city": city }).to_string()));
            }
        }
        format!(
            r#"{{"id":"{}","type":"message","role":"assistant","model":{},"content":[{}],"stop_reason":"{}","usage":{{"input_tokens":{},"output_tokens":{}}}}}"#,
            self.id(),
            quote(&self.model),
            content.join(","),
            anthropic_reason(f.reason),
            f.prompt_tokens,
            f.tokens
        )
    }
}
