//! Whether an answer came to its end, what it counted, and what to append when it did not.
//!
//! The bytes of an answer flow past ([`Ending::feed`]) exactly as they go to the client;
//! nothing is changed or held back. Out come [`Ending::complete`], [`Ending::usage`] and, for
//! a stream that stopped in the middle, [`Ending::repair`]: the dialect's own error item,
//! without which most clients take a cut stream for a whole answer.
//!
//! Only streams of a dialect we know have an end to look for ([`Ending::is_tracked`]). A
//! unary JSON answer is collected up to a bound for its usage; anything else flows past
//! unread, and so does a stream with a line too long to be one.

mod item;
mod usage;

use bytes::Bytes;

use super::json::quote;
use crate::types::{Api, Op};
pub use usage::{DoneReason, Usage};

/// Longest line that is read; beyond it the answer is no stream of items.
const MAX_LINE: usize = 16 << 20;

/// Most bytes of a unary answer that are kept to read its usage.
const MAX_WHOLE: usize = 4 << 20;

/// In what shape an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Ollama's lines.
    Native,
    /// Chat or text completions: unnamed events.
    Chat,
    /// OpenAI's responses: named events with sequence numbers.
    Responses,
    /// Anthropic's messages: named events.
    Messages,
    /// One JSON document.
    Whole,
    /// Nothing we read.
    Opaque,
}

/// Watches one answer. Make it when the head is there, feed it every body frame.
#[derive(Debug, Clone)]
pub struct Ending {
    shape: Shape,
    api: Api,
    /// The start of a line whose end has not come, or the whole of a unary answer.
    pending: Vec<u8>,
    /// Whether a line of the current event was read and not its blank line.
    in_event: bool,
    seen: item::Seen,
}

impl Ending {
    /// For an answer of this dialect and operation with this `Content-Type`.
    pub fn new(api: Api, op: Op, content_type: Option<&str>) -> Ending {
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let is = |want: &str| essence.eq_ignore_ascii_case(want);
        let shape = if is("application/x-ndjson") && api == Api::Ollama {
            Shape::Native
        } else if is("text/event-stream") {
            match api {
                Api::Chat | Api::Completions => Shape::Chat,
                Api::Responses => Shape::Responses,
                Api::Messages => Shape::Messages,
                _ => Shape::Opaque,
            }
        } else if is("application/json") && op.is_inference() {
            Shape::Whole
        } else {
            Shape::Opaque
        };
        Ending { shape, api, pending: Vec::new(), in_event: false, seen: item::Seen::default() }
    }

    /// Whether the answer is a stream whose end can be told from a cut.
    pub const fn is_tracked(&self) -> bool {
        !matches!(self.shape, Shape::Whole | Shape::Opaque)
    }

    /// Reads one frame. Whole lines are read where they stand; only the start of an
    /// unfinished one is copied.
    pub fn feed(&mut self, frame: &[u8]) {
        match self.shape {
            Shape::Opaque => return,
            Shape::Whole => {
                if self.pending.len() + frame.len() > MAX_WHOLE {
                    self.give_up();
                } else {
                    self.pending.extend_from_slice(frame);
                }
                return;
            }
            _ => {}
        }
        let mut rest = frame;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, tail) = (&rest[..end], &rest[end + 1..]);
            if self.pending.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.line(&whole);
                // Its memory serves the next unfinished line.
                whole.clear();
                self.pending = whole;
            }
            rest = tail;
        }
        if self.pending.len() + rest.len() > MAX_LINE {
            self.give_up();
        } else {
            self.pending.extend_from_slice(rest);
        }
    }

    /// Whether the dialect's end marker came (an error item is one). Means nothing unless
    /// [`Ending::is_tracked`].
    pub fn complete(&self) -> bool {
        if self.seen.is_complete() {
            return true;
        }
        // The last line of a stream may lack its newline.
        let mut last = Ending { pending: Vec::new(), seen: self.seen.clone(), ..*self };
        last.line(&self.pending);
        last.seen.is_complete()
    }

    /// Whether the answer ended by an error item of the upstream.
    pub const fn failed(&self) -> bool {
        self.seen.failed()
    }

    /// Whether the answer stands in the middle of a line or event.
    pub fn mid_item(&self) -> bool {
        self.is_tracked() && (!self.pending.is_empty() || self.in_event)
    }

    /// How many pieces of output came.
    pub const fn items(&self) -> u64 {
        self.seen.items()
    }

    /// What the answer says it counted, as far as it came.
    pub fn usage(&self) -> Usage {
        match self.shape {
            Shape::Whole => Usage::of_body(self.api, &self.pending),
            _ => self.seen.usage(),
        }
    }

    /// What to append to a stream that stopped before its end: the dialect's error item,
    /// after whatever ends the piece it stopped in. No end marker follows it. Empty for an
    /// answer that is not tracked: that one has to be cut.
    pub fn repair(&self, text: &str) -> Bytes {
        let message = quote(text);
        let (gap, item) = match self.shape {
            Shape::Whole | Shape::Opaque => return Bytes::new(),
            Shape::Native => {
                let gap = if self.pending.is_empty() { "" } else { "\n" };
                return Bytes::from(format!("{gap}{}\n", super::error::native(text)));
            }
            Shape::Chat => (
                "",
                format!(
                    "data: {{\"error\":{{\"message\":{message},\"type\":\"api_error\",\"param\":null,\"code\":\"upstream_lost\"}}}}"
                ),
            ),
            Shape::Messages => (
                "event: error\n",
                format!(
                    "data: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":{message}}}}}"
                ),
            ),
            // Without the `error` object in it the SDKs hand the event on and raise nothing.
            Shape::Responses => (
                "event: error\n",
                format!(
                    "data: {{\"type\":\"error\",\"code\":\"upstream_lost\",\"message\":{message},\"param\":null,\"error\":{{\"type\":\"api_error\",\"code\":\"upstream_lost\",\"message\":{message}}},\"sequence_number\":{}}}",
                    self.seen.next_sequence(),
                ),
            ),
        };
        let end = if self.mid_item() { "\n\n" } else { "" };
        Bytes::from(format!("{end}{gap}{item}\n\n"))
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if self.shape == Shape::Native {
            self.seen.native(line);
            return;
        }
        if line.is_empty() {
            self.in_event = false;
            self.seen.event_over();
            return;
        }
        self.in_event = true;
        if let Some(name) = field(line, b"event") {
            self.seen.event(name);
        } else if let Some(data) = field(line, b"data") {
            match self.shape {
                Shape::Chat => self.seen.chat(data),
                Shape::Messages => self.seen.messages(data),
                Shape::Responses => self.seen.responses(data),
                Shape::Native | Shape::Whole | Shape::Opaque => {}
            }
        }
    }

    /// From here on the answer is opaque.
    fn give_up(&mut self) {
        self.shape = Shape::Opaque;
        self.pending = Vec::new();
    }
}

/// The value of a line `name: value` of an event.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests;
