//! The caller's own spelling in an answer's `model`.
//!
//! An engine echoes the name it was asked for. Where that is not what the caller wrote
//! (`tiny@desk`, an alias) the echo is put right, because clients compare it. Frames flow
//! through; all but that one value leave as they came, as the very same bytes where nothing
//! is replaced. At most the start of such a value is held back until its end comes.

use bytes::Bytes;

use super::json::{self, Event, Lexer};
use crate::types::Api;

/// Rewrites one answer's body. A unary answer's `Content-Length` has to be dropped first.
#[derive(Debug, Clone)]
pub struct Echo {
    from: String,
    /// The JSON string that takes its place.
    to: String,
    /// The member that may hold `model` as well: `response` or `message`.
    parent: Option<&'static str>,
    place: Place,
    lexer: Lexer,
    /// The key being read, or the value being held back, as written and with its quote.
    held: Vec<u8>,
    holding: Holding,
    /// Whether the last key at the top is `parent`.
    in_parent: bool,
    /// Whether the last key is a `model` that counts.
    at_model: bool,
}

/// Where in the stream the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing was read: lines of JSON begin with a bracket, events do not.
    Start,
    /// In lines of JSON, or in one document.
    Json,
    /// In broken JSON, up to the end of the line.
    Broken,
    /// At the start of a line of events, this far into `data:`.
    Field(usize),
    /// In the data of an event.
    Data,
    /// In a line of events that is passed over.
    Line,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    Nothing,
    Key,
    Value,
}

const DATA: &[u8] = b"data:";

/// Longest value that is held back, as written: a name of 256 bytes, all escaped.
const MAX_HELD: usize = 2048;

impl Echo {
    /// Replaces `from`, as the engine was asked, by `to`, as the caller wrote.
    pub fn new(api: Api, from: &str, to: &str) -> Echo {
        Echo {
            from: from.to_owned(),
            to: json::quote(to),
            parent: match api {
                Api::Responses => Some("response"),
                Api::Messages => Some("message"),
                _ => None,
            },
            place: Place::Start,
            lexer: Lexer::new(2),
            held: Vec::new(),
            holding: Holding::Nothing,
            in_parent: false,
            at_model: false,
        }
    }

    /// One frame in, one frame out.
    pub fn feed(&mut self, frame: Bytes) -> Bytes {
        let mut out = Out { frame: &frame, copied: 0, bytes: Vec::new() };
        let mut at = 0;
        while let Some(byte) = frame.get(at).copied() {
            match self.place {
                Place::Start if byte.is_ascii_whitespace() => at += 1,
                Place::Start => {
                    self.place =
                        if matches!(byte, b'{' | b'[') { Place::Json } else { Place::Field(0) };
                }
                Place::Json => at = self.json(&frame, at, frame.len(), &mut out),
                Place::Field(n) if DATA.get(n) == Some(&byte) => {
                    at += 1;
                    self.place = if n + 1 == DATA.len() {
                        self.fresh(Place::Data)
                    } else {
                        Place::Field(n + 1)
                    };
                }
                Place::Field(_) => self.place = Place::Line,
                Place::Data | Place::Line | Place::Broken => {
                    let end = memchr::memchr(b'\n', &frame[at..]).map(|n| at + n);
                    if self.place == Place::Data {
                        self.json(&frame, at, end.unwrap_or(frame.len()), &mut out);
                    }
                    if end.is_some() {
                        self.release(&mut out, end.unwrap_or(at));
                        let next =
                            if self.place == Place::Broken { Place::Json } else { Place::Field(0) };
                        self.place = self.fresh(next);
                    }
                    at = end.map_or(frame.len(), |end| end + 1);
                }
            }
        }
        out.finish()
    }

    /// What was held back when the stream stopped.
    pub fn finish(self) -> Bytes {
        if self.holding == Holding::Value { Bytes::from(self.held) } else { Bytes::new() }
    }

    /// Reads JSON of `frame[from..to]`; returns how far it came.
    fn json(&mut self, frame: &Bytes, from: usize, to: usize, out: &mut Out<'_>) -> usize {
        let input = &frame[..to];
        let mut at = from;
        // Where in this frame the token being kept begins.
        let mut start = from;
        loop {
            match self.lexer.next(input, &mut at) {
                Event::KeyOpen => {
                    start = at;
                    self.held.clear();
                    self.holding = Holding::Key;
                }
                Event::KeyClose => {
                    self.hold(&frame[start..at - 1]);
                    self.key();
                }
                Event::StrOpen if std::mem::take(&mut self.at_model) => {
                    start = at - 1;
                    self.held.clear();
                    self.holding = Holding::Value;
                }
                Event::StrClose if self.holding == Holding::Value => {
                    self.value(frame, start, at, out);
                }
                Event::StrOpen | Event::ScalarOpen | Event::Open(_) => {
                    self.at_model = false;
                }
                Event::StrClose | Event::ScalarClose | Event::Close => {}
                Event::More => {
                    match self.holding {
                        Holding::Nothing => {}
                        Holding::Key => self.hold(&frame[start..to]),
                        Holding::Value => {
                            out.copy_to(start);
                            self.hold(&frame[start..to]);
                            out.copied = to;
                            if self.held.len() > MAX_HELD {
                                self.release(out, to);
                            }
                        }
                    }
                    return to;
                }
                Event::Trailing if self.place == Place::Json => {
                    // The next line begins.
                    at -= 1;
                    self.fresh(Place::Json);
                }
                Event::Trailing | Event::Fault(_) => {
                    self.release(out, start);
                    if self.place == Place::Json {
                        self.place = Place::Broken;
                    }
                    return at;
                }
            }
        }
    }

    /// A lexer for the next document.
    fn fresh(&mut self, place: Place) -> Place {
        self.lexer = Lexer::new(2);
        self.in_parent = false;
        self.at_model = false;
        self.holding = Holding::Nothing;
        self.held.clear();
        place
    }

    fn hold(&mut self, bytes: &[u8]) {
        // A key this long is none of ours; a value this long is let go.
        if self.holding == Holding::Value || self.held.len() + bytes.len() <= 256 {
            self.held.extend_from_slice(bytes);
        } else {
            self.held.clear();
            self.held.push(b'?');
        }
    }

    fn key(&mut self) {
        let key = json::unescape(&self.held);
        self.holding = Holding::Nothing;
        match self.lexer.depth() {
            1 => {
                self.in_parent = self.parent == Some(&*key);
                self.at_model = key == "model";
            }
            _ => self.at_model = self.in_parent && key == "model",
        }
    }

    /// A `model` ended before `end`; of this frame it began at `start`.
    fn value(&mut self, frame: &Bytes, start: usize, end: usize, out: &mut Out<'_>) {
        let before = std::mem::take(&mut self.held);
        self.holding = Holding::Nothing;
        let text = [before.as_slice(), &frame[start..end]].concat();
        let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
        if json::unescape(inner) == self.from {
            out.copy_to(start);
            out.bytes.extend_from_slice(self.to.as_bytes());
            out.copied = end;
        } else if !before.is_empty() {
            out.bytes.extend_from_slice(&before);
        }
    }

    /// Lets go of what is held back; the frame is copied up to `at`.
    fn release(&mut self, out: &mut Out<'_>, at: usize) {
        if self.holding == Holding::Value && !self.held.is_empty() {
            out.copy_to(at);
            out.bytes.append(&mut self.held);
        }
        self.holding = Holding::Nothing;
    }
}

/// The frame that goes out: shared with the one that came in until something differs.
struct Out<'a> {
    frame: &'a Bytes,
    /// How much of the frame stands in `bytes` or was left out.
    copied: usize,
    bytes: Vec<u8>,
}

impl Out<'_> {
    fn copy_to(&mut self, to: usize) {
        if let Some(bytes) = self.frame.get(self.copied..to) {
            self.bytes.extend_from_slice(bytes);
            self.copied = to;
        }
    }

    fn finish(mut self) -> Bytes {
        if self.copied == 0 && self.bytes.is_empty() {
            return self.frame.clone();
        }
        self.copy_to(self.frame.len());
        Bytes::from(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(api: Api, body: &str, want: &str) {
        for step in [1, 2, 3, 5, 11, 64, body.len().max(1)] {
            let mut echo = Echo::new(api, "tiny", "tiny@\"desk");
            let frames = body.as_bytes().chunks(step).map(Bytes::copy_from_slice);
            let mut out: Vec<u8> = frames.flat_map(|f| echo.feed(f)).collect();
            out.extend_from_slice(&echo.finish());
            assert_eq!(String::from_utf8_lossy(&out), want, "in {step}s");
        }
    }

    const NEW: &str = r#""tiny@\"desk""#;

    #[test]
    fn the_callers_spelling_is_put_in_where_the_engine_echoes() {
        let lines = "{\"model\":\"tiny\",\"a\":1}\n{ \"model\" : \"t\\u0069ny\" }\n";
        let want = format!("{{\"model\":{NEW},\"a\":1}}\n{{ \"model\" : {NEW} }}\n");
        check(Api::Ollama, lines, &want);
        let events = "event: x\ndata: {\"model\":\"tiny\"}\n\n: c\ndata:{\"model\":\"tiny\"}\r\n\r\ndata: [DONE]\n\n";
        check(Api::Chat, events, &events.replace("\"tiny\"", NEW));
        let created = "data: {\"response\":{\"id\":1,\"model\":\"tiny\"}}\n\n";
        check(Api::Responses, created, &created.replace("\"tiny\"", NEW));
        check(Api::Chat, created, created);
        let start = "data: {\"type\":\"x\",\"message\":{\"model\":\"tiny\"}}\n\n";
        check(Api::Messages, start, &start.replace("\"tiny\"", NEW));
    }

    #[test]
    fn everything_else_leaves_as_it_came() {
        for body in [
            r#"{"model":"tiny2","message":{"model":"tiny","content":"{\"model\":\"tiny\"}"}}"#,
            r#"{"name":"tiny","models":["tiny"],"model":["tiny"]}"#,
            r#"{"model":null,"x":"tiny"}"#,
            r#"{"model":"tin"#,
            "{\"model\":\"ti\nny\"}\n",
            "data: {\"model\":\"tin\n\ndata: {\"x\"",
            "not json at all, \"model\":\"tiny\"",
            "",
        ] {
            check(Api::Ollama, body, body);
        }
        let long = format!("{{\"model\":\"tiny{}\"}}", "y".repeat(5000));
        check(Api::Ollama, &long, &long);
    }

    #[test]
    fn a_broken_line_does_not_spoil_the_next() {
        let body = "{\"model\":oops}\n{\"model\":\"tiny\"}\n";
        check(Api::Ollama, body, &body.replace("\"tiny\"", NEW));
    }

    #[test]
    fn frames_without_the_name_are_the_very_same() {
        let mut echo = Echo::new(Api::Chat, "tiny", "x");
        let frame = Bytes::from_static(b"data: {\"model\":\"other\"}\n\n");
        assert_eq!(echo.feed(frame.clone()).as_ptr(), frame.as_ptr());
    }
}
