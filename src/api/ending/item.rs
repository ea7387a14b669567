//! Reading the items of a stream: lines and events.
//!
//! Almost every item is a piece of text, and is told as such by a few searches without being
//! parsed. A search can only be wrong towards parsing: inside a JSON string a quote carries
//! a backslash, so `"done"` or `"error"` as searched for are never text.

use memchr::memmem::find;
use serde::Deserialize;

use super::usage::{Choice, Counts, DoneReason, Native, Timings, Usage};

/// The name of the event being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Event {
    /// No name came.
    #[default]
    Unnamed,
    /// A piece of output.
    Delta,
    /// One that is read: start, last counts, end, error.
    Notable,
    /// Any other.
    Plain,
}

/// What came so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    ended: bool,
    failed: bool,
    items: u64,
    /// Choices met and choices finished, as bits.
    choices: u64,
    finished: u64,
    /// One more than the last sequence number.
    sequence: u64,
    event: Event,
    usage: Usage,
}

impl Seen {
    pub(super) const fn is_complete(&self) -> bool {
        self.ended || self.failed || self.finished != 0 && self.finished == self.choices
    }

    pub(super) const fn failed(&self) -> bool {
        self.failed
    }

    pub(super) const fn items(&self) -> u64 {
        self.items
    }

    pub(super) const fn next_sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) const fn usage(&self) -> Usage {
        self.usage
    }

    /// One line of Ollama's own dialect.
    pub(super) fn native(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        // The last member closes the whole line, so it is a top-level one.
        if line.ends_with(b"\"done\":false}") && find(line, b"\"error\"").is_none() {
            self.items += 1;
            return;
        }
        let Ok(item) = serde_json::from_slice::<Native>(line) else { return };
        if item.error.is_some() {
            self.failed = true;
        } else if item.done == Some(true) || item.status.as_ref().is_some_and(|s| s == "success") {
            self.ended = true;
            item.fill(&mut self.usage);
        } else {
            self.items += 1;
        }
    }

    /// The name of the event whose data come next.
    pub(super) fn event(&mut self, name: &[u8]) {
        self.event = match name {
            b"content_block_delta" => Event::Delta,
            b"message_start"
            | b"message_delta"
            | b"message_stop"
            | b"error"
            | b"response.completed"
            | b"response.failed"
            | b"response.incomplete" => Event::Notable,
            name if name.ends_with(b".delta") => Event::Delta,
            _ => Event::Plain,
        };
    }

    /// A blank line came.
    pub(super) fn event_over(&mut self) {
        self.event = Event::Unnamed;
    }

    /// The data of a chat or text completion event.
    pub(super) fn chat(&mut self, data: &[u8]) {
        if data.trim_ascii() == b"[DONE]" {
            self.ended = true;
            return;
        }
        if self.is_plain_chunk(data) {
            self.items += 1;
            return;
        }
        #[derive(Deserialize)]
        struct Chunk {
            #[serde(default)]
            choices: Option<Vec<Choice>>,
            #[serde(default)]
            usage: Option<Counts>,
            #[serde(default)]
            timings: Option<Timings>,
            #[serde(default)]
            error: Option<serde::de::IgnoredAny>,
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else { return };
        self.failed |= chunk.error.is_some();
        self.usage.count(chunk.usage);
        self.usage.time(chunk.timings);
        let mut open = false;
        for choice in chunk.choices.into_iter().flatten() {
            let bit = 1 << choice.index.min(63);
            self.choices |= bit;
            if let Some(word) = choice.finish_reason {
                self.finished |= bit;
                self.usage.done_reason = Some(DoneReason::of(&word));
            } else {
                open = true;
            }
        }
        self.items += u64::from(open);
    }

    /// Whether the data are one unfinished choice and nothing else; notes its number.
    fn is_plain_chunk(&mut self, data: &[u8]) -> bool {
        const FINISH: &[u8] = b"\"finish_reason\":null";
        const INDEX: &[u8] = b"\"index\":";
        let Some(finish) = find(data, FINISH) else { return false };
        let again = &data[finish + FINISH.len()..];
        if find(again, b"\"finish_reason\"").is_some()
            || find(data, b"\"usage\"").is_some()
            || find(data, b"\"error\"").is_some()
        {
            return false;
        }
        // A tool call has a number of its own; with one choice its number is the first.
        let Some(index) = find(data, INDEX) else { return false };
        match data.get(index + INDEX.len()..) {
            Some([digit @ b'0'..=b'9', b',' | b'}', ..]) => {
                self.choices |= 1 << (digit - b'0');
                true
            }
            _ => false,
        }
    }

    /// The data of an Anthropic event.
    pub(super) fn messages(&mut self, data: &[u8]) {
        match self.event {
            Event::Delta => return self.items += 1,
            Event::Plain => return,
            Event::Notable | Event::Unnamed => {}
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            message: Option<Message>,
            #[serde(default)]
            delta: Option<Delta>,
            #[serde(default)]
            usage: Option<Counts>,
        }
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            usage: Option<Counts>,
        }
        #[derive(Deserialize)]
        struct Delta {
            #[serde(default)]
            stop_reason: Option<String>,
        }
        let Ok(data) = serde_json::from_slice::<Data>(data) else { return };
        match data.kind.as_str() {
            "content_block_delta" => self.items += 1,
            "message_start" => self.usage.count(data.message.and_then(|m| m.usage)),
            "message_delta" => {
                self.usage.count(data.usage);
                let word = data.delta.and_then(|d| d.stop_reason);
                self.usage.done_reason = word.map(|w| DoneReason::of(&w));
            }
            "message_stop" => self.ended = true,
            "error" => self.failed = true,
            _ => {}
        }
    }

    /// The data of an OpenAI responses event.
    pub(super) fn responses(&mut self, data: &[u8]) {
        const SEQUENCE: &[u8] = b"\"sequence_number\":";
        if let Some(at) = find(data, SEQUENCE) {
            let digits = data[at + SEQUENCE.len()..].iter().take_while(|b| b.is_ascii_digit());
            let last =
                digits.fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d - b'0')));
            self.sequence = last.saturating_add(1);
        }
        match self.event {
            Event::Delta => return self.items += 1,
            Event::Plain => return,
            Event::Notable | Event::Unnamed => {}
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            response: Option<Response>,
        }
        #[derive(Deserialize)]
        struct Response {
            #[serde(default)]
            usage: Option<Counts>,
            #[serde(default)]
            incomplete_details: Option<Details>,
        }
        #[derive(Deserialize)]
        struct Details {
            #[serde(default)]
            reason: Option<String>,
        }
        let Ok(data) = serde_json::from_slice::<Data>(data) else { return };
        match data.kind.as_str() {
            "response.completed" | "response.incomplete" => self.ended = true,
            "response.failed" | "error" => self.failed = true,
            kind => {
                self.items += u64::from(kind.ends_with(".delta"));
                return;
            }
        }
        let Some(response) = data.response else { return };
        self.usage.count(response.usage);
        if self.ended {
            let why = response.incomplete_details.and_then(|d| d.reason);
            self.usage.done_reason = Some(why.map_or(DoneReason::Stop, |why| DoneReason::of(&why)));
        }
    }
}
