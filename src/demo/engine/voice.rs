//! How an answer is written down: one voice per dialect.
//!
//! The texts are those of the recordings of Ollama 0.32.15, byte for byte but for ids and
//! times.

use std::time::Duration;

use serde_json::{Value, json};

use super::spec::Piece;
use super::stamp;

/// The text of an engine that died under Ollama.
pub(super) const CRASHED: &str = "an error was encountered while running the model: unexpected EOF";

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Stop,
    Length,
    Tool,
}

/// What the end of an answer says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
    pub(super) reason: Reason,
    pub(super) prompt_tokens: u64,
    pub(super) tokens: u64,
    pub(super) total: Duration,
    pub(super) load: Duration,
    pub(super) prefill: Duration,
    pub(super) decode: Duration,
}

/// One dialect's way to say an answer.
pub(super) trait Voice: Send {
    fn stream_type(&self) -> &'static str {
        "text/event-stream"
    }
    fn whole_type(&self) -> &'static str {
        "application/json"
    }
    /// What stands before the first piece.
    fn open(&mut self) -> String {
        String::new()
    }
    fn piece(&mut self, piece: &Piece) -> String;
    fn end(&mut self, finish: &Finish) -> String;
    /// What is said when the engine process dies in mid-answer.
    fn crash(&mut self) -> String {
        String::new()
    }
    /// The answer in one go.
    fn whole(&mut self, pieces: &[Piece], finish: &Finish) -> String;
}

/// A text as Go's encoder writes it, with quotes.
pub(super) fn quote(text: &str) -> String {
    Value::from(text)
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// All text of an answer.
pub(super) fn text(pieces: &[Piece]) -> String {
    pieces
        .iter()
        .filter_map(|p| if let Piece::Text(t) = p { Some(t.as_str()) } else { None })
        .collect()
}

pub(super) fn thinking(pieces: &[Piece]) -> String {
    let thought = |p: &Piece| if let Piece::Thinking(t) = p { Some(t.clone()) } else { None };
    pieces.iter().filter_map(thought).collect()
}

/// Ollama's own dialect.
pub(super) struct Native {
    pub(super) model: String,
    /// `/api/chat` rather than `/api/generate`.
    pub(super) chat: bool,
    pub(super) serial: u64,
}

impl Native {
    fn head(&self) -> String {
        format!(r#"{{"model":{},"created_at":"{}""#, quote(&self.model), stamp::now())
    }

    fn says(&self, content: &str, thinking: &str, tool: Option<(&str, &str)>) -> String {
        let thought = match thinking {
            "" => String::new(),
            t => format!(r#","thinking":{}"#, quote(t)),
        };
        let content = quote(content);
        if !self.chat {
            return format!(r#","response":{content}{thought}"#);
        }
        let call = tool.map_or_else(String::new, |(name, city)| {
            format!(
                r#","tool_calls":[{{"id":"call_{:08}","function":{{"index":0,"name":{},"arguments":{{"city":{}}}}}}}]"#,
                self.serial, quote(name), quote(city)
            )
        });
        format!(r#","message":{{"role":"assistant","content":{content}{thought}{call}}}"#)
    }

    fn tail(&self, f: &Finish) -> String {
        let reason = if f.reason == Reason::Length { "length" } else { "stop" };
        let context = if self.chat { "" } else { r#","context":[266,107,108,260]"# };
        format!(
            r#","done":true,"done_reason":"{reason}"{context},"total_duration":{},"load_duration":{},"prompt_eval_count":{},"prompt_eval_duration":{},"eval_count":{},"eval_duration":{}}}"#,
            f.total.as_nanos(),
            f.load.as_nanos(),
            f.prompt_tokens,
            f.prefill.as_nanos(),
            f.tokens,
            f.decode.as_nanos()
        )
    }

    /// The answer to a request that only loads or unloads: one object, never a stream.
    pub(super) fn moved(&self, reason: &str) -> String {
        format!(
            r#"{}{},"done":true,"done_reason":"{reason}"}}"#,
            self.head(),
            self.says("", "", None)
        )
    }
}

impl Voice for Native {
    fn stream_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn whole_type(&self) -> &'static str {
        "application/json; charset=utf-8"
    }

    fn piece(&mut self, piece: &Piece) -> String {
        let says = match piece {
            Piece::Text(t) => self.says(t, "", None),
            Piece::Thinking(t) => self.says("", t, None),
            Piece::Tool { name, city } => self.says("", "", Some((name, city))),
        };
        format!("{}{says},\"done\":false}}\n", self.head())
    }

    fn end(&mut self, finish: &Finish) -> String {
        format!("{}{}{}\n", self.head(), self.says("", "", None), self.tail(finish))
    }

    fn crash(&mut self) -> String {
        format!("{{\"error\":{}}}\n", quote(CRASHED))
    }

    fn whole(&mut self, pieces: &[Piece], finish: &Finish) -> String {
        let tool = pieces.iter().find_map(|p| match p {
            Piece::Tool { name, city } => Some((name.as_str(), city.as_str())),
            _ => None,
        });
        let says = self.says(&text(pieces), &thinking(pieces), tool);
        format!("{}{says}{}", self.head(), self.tail(finish))
    }
}

/// OpenAI's chat completions.
pub(super) struct Chat {
    pub(super) model: String,
    pub(super) serial: u64,
    pub(super) usage: bool,
    pub(super) begun: bool,
}

fn openai_usage(f: &Finish) -> String {
    format!(
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}}"#,
        f.prompt_tokens,
        f.tokens,
        f.prompt_tokens + f.tokens
    )
}

impl Chat {
    fn head(&self, object: &str, model: &str) -> String {
        format!(
            r#"{{"id":"chatcmpl-{}","object":"{object}","created":{},"model":{},"system_fingerprint":"fp_ollama","choices":["#,
            self.serial % 999,
            stamp::seconds(),
            quote(model)
        )
    }

    fn chunk(&self, model: &str, choice: &str, more: &str) -> String {
        format!("data: {}{choice}]{more}}}\n\n", self.head("chat.completion.chunk", model))
    }

    fn call(&self, name: &str, city: &str) -> String {
        let arguments = quote(&json!({ "city": city }).to_string());
        format!(
            r#""tool_calls":[{{"id":"call_{:08}","index":0,"type":"function","function":{{"name":{},"arguments":{arguments}}}}}]"#,
            self.serial,
            quote(name)
        )
    }
}

fn chat_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "stop",
        Reason::Length => "length",
        Reason::Tool => "tool_calls",
    }
}

impl Voice for Chat {
    fn piece(&mut self, piece: &Piece) -> String {
        let role = if self.begun { "" } else { r#""role":"assistant","# };
        self.begun = true;
        let delta = match piece {
            Piece::Text(t) => format!(r#"{role}"content":{}"#, quote(t)),
            Piece::Thinking(t) => format!(r#"{role}"content":"","reasoning":{}"#, quote(t)),
            Piece::Tool { name, city } => {
                format!(r#"{role}"content":"",{}"#, self.call(name, city))
            }
        };
        let choice = format!(r#"{{"index":0,"delta":{{{delta}}},"finish_reason":null}}"#);
        self.chunk(&self.model, &choice, "")
    }

    fn end(&mut self, f: &Finish) -> String {
        let choice =
            format!(r#"{{"index":0,"delta":{{}},"finish_reason":"{}"}}"#, chat_reason(f.reason));
        let mut out = self.chunk(&self.model, &choice, "");
        if self.usage {
            out += &self.chunk(&self.model, "", &format!(r#","usage":{}"#, openai_usage(f)));
        }
        out + "data: [DONE]\n\n"
    }

    fn crash(&mut self) -> String {
        self.chunk("", r#"{"index":0,"delta":{"content":""},"finish_reason":null}"#, "")
    }

    fn whole(&mut self, pieces: &[Piece], f: &Finish) -> String {
        let thought = match thinking(pieces).as_str() {
            "" => String::new(),
            t => format!(r#","reasoning":{}"#, quote(t)),
        };
        let call = pieces.iter().find_map(|p| match p {
            Piece::Tool { name, city } => Some(format!(",{}", self.call(name, city))),
            _ => None,
        });
        format!(
            r#"{}{{"index":0,"message":{{"role":"assistant","content":{}{thought}{}}},"finish_reason":"{}"}}],"usage":{}}}"#,
            self.head("chat.completion", &self.model),
            quote(&text(pieces)),
            call.unwrap_or_default(),
            chat_reason(f.reason),
            openai_usage(f)
        )
    }
}

/// OpenAI's old completions.
pub(super) struct Completions {
    pub(super) model: String,
    pub(super) serial: u64,
}

impl Completions {
    fn body(&self, text: &str, reason: &str, more: &str) -> String {
        format!(
            r#"{{"id":"cmpl-{}","object":"text_completion","created":{},"choices":[{{"text":{},"index":0,"finish_reason":{reason}}}],"model":{},"system_fingerprint":"fp_ollama"{more}}}"#,
            self.serial % 999,
            stamp::seconds(),
            quote(text),
            quote(&self.model)
        )
    }
}

impl Voice for Completions {
    fn piece(&mut self, piece: &Piece) -> String {
        let text = if let Piece::Text(t) = piece { t } else { "" };
        format!("data: {}\n\n", self.body(text, "null", ""))
    }

    fn end(&mut self, f: &Finish) -> String {
        let reason = format!("\"{}\"", chat_reason(f.reason));
        format!("data: {}\n\ndata: [DONE]\n\n", self.body("", &reason, ""))
    }

    fn whole(&mut self, pieces: &[Piece], f: &Finish) -> String {
        let usage = format!(r#","usage":{}"#, openai_usage(f));
        self.body(&text(pieces), &format!("\"{}\"", chat_reason(f.reason)), &usage)
    }
}
