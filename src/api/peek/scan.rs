//! The scanner: from bytes to [`Peeked`].

use std::mem;

use super::super::json::{Event, Lexer, unescape};
use super::field::{Field, MAX_KEY, Opt};
use super::{At, Conflict, Content, KeepAlive, Peeked};

/// Longest value, as written, that is kept: a model name has at most 256 bytes, and each may
/// be escaped.
const MAX_VALUE: usize = 4096;

/// Reads a body frame by frame. See the [module](super).
#[derive(Debug, Clone)]
pub struct Scanner {
    lexer: Lexer,
    /// Bytes in the frames before the one being read.
    base: usize,
    /// The token being kept, as written.
    kept: Vec<u8>,
    /// How many bytes of it may be kept; `None` = nothing is kept.
    keep: Option<usize>,
    /// Where the value being read began.
    start: usize,
    /// The top-level field whose value is being read.
    field: Option<Field>,
    /// The option whose value is being read.
    opt: Option<Opt>,
    /// Whether the container being read has had an element.
    filled: bool,
    /// The fields met, as bits.
    met: u32,
    stopped: bool,
    out: Peeked,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner::new()
    }
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new() -> Scanner {
        Scanner {
            lexer: Lexer::new(2),
            base: 0,
            kept: Vec::new(),
            keep: None,
            start: 0,
            field: None,
            opt: None,
            filled: false,
            met: 0,
            stopped: false,
            out: Peeked::default(),
        }
    }

    /// The model so far: not empty, and final unless a second `model` follows. `name` counts
    /// only at the end, since `model` may still come.
    pub fn model(&self) -> Option<&str> {
        self.out.model.as_ref().map(|m| m.value.as_str()).filter(|m| !m.is_empty())
    }

    /// Reads one more frame.
    pub fn feed(&mut self, frame: &[u8]) {
        let mut at = 0;
        let mut from = 0;
        while !self.stopped {
            let event = self.lexer.next(frame, &mut at);
            match event {
                Event::KeyOpen | Event::StrOpen | Event::ScalarOpen => {
                    from = at - usize::from(event == Event::ScalarOpen);
                    self.open(event, self.base + at - 1);
                }
                Event::KeyClose | Event::StrClose | Event::ScalarClose => {
                    let quote = usize::from(event != Event::ScalarClose);
                    self.keep(frame.get(from..at.saturating_sub(quote)).unwrap_or_default());
                    self.close(event, self.base + at);
                }
                Event::Open(_) => self.enter(self.base + at - 1),
                Event::Close => self.leave(),
                Event::More => {
                    self.keep(frame.get(from..).unwrap_or_default());
                    break;
                }
                Event::Trailing => {
                    self.out.conflict.get_or_insert(Conflict::Trailing);
                    self.stopped = true;
                }
                Event::Fault(_) => self.stopped = true,
            }
        }
        self.base += frame.len();
    }

    /// What the body says, now that it is whole.
    pub fn finish(mut self) -> Peeked {
        self.out.problem = self.lexer.end();
        self.out.encoded = self.lexer.encoded();
        if let (Some(model), Some(name)) = (&self.out.model, &self.out.name) {
            let (model, name) = (model.value.as_str(), name.value.as_str());
            if !model.is_empty() && !name.is_empty() && model != name {
                self.out.conflict.get_or_insert(Conflict::ModelAndName);
            }
        }
        self.out
    }

    fn keep(&mut self, bytes: &[u8]) {
        if let Some(left) = self.keep {
            let taken = bytes.get(..left).unwrap_or(bytes);
            self.kept.extend_from_slice(taken);
            self.keep = Some(left - taken.len());
        }
    }

    /// A key, string or scalar begins at `start`.
    fn open(&mut self, event: Event, start: usize) {
        let in_options = self.field == Some(Field::Options) && self.lexer.in_object();
        self.kept.clear();
        self.keep = None;
        if self.lexer.depth() > 1 {
            self.filled = true;
        }
        match (event, self.lexer.depth()) {
            (Event::KeyOpen, 1) => self.keep = Some(MAX_KEY + 1),
            (Event::KeyOpen, 2) if in_options => self.keep = Some(MAX_KEY + 1),
            (Event::KeyOpen, _) => {}
            (_, 1) if self.field.is_some() => {
                self.start = start;
                self.keep = Some(MAX_VALUE);
            }
            (_, 2) if in_options && self.opt.is_some() => {
                self.start = start;
                self.keep = Some(MAX_VALUE);
            }
            _ => {}
        }
    }

    /// It ended before `end`.
    fn close(&mut self, event: Event, end: usize) {
        let Some(_) = self.keep.take() else { return };
        let raw = mem::take(&mut self.kept);
        match (event, self.lexer.depth()) {
            (Event::KeyClose, 1) => self.key(&raw),
            (Event::KeyClose, _) => {
                self.opt = (raw.len() <= MAX_KEY).then(|| Opt::of(&unescape(&raw))).flatten();
            }
            (event, depth) => {
                let is_text = event == Event::StrClose;
                if depth == 1 {
                    if let Some(field) = self.field.take() {
                        self.value(field, &raw, is_text, end);
                    }
                } else if let Some(opt) = self.opt.take() {
                    self.option(opt, &raw, is_text, end);
                }
            }
        }
        self.kept = raw;
    }

    fn key(&mut self, raw: &[u8]) {
        self.field = None;
        if raw.len() > MAX_KEY {
            return;
        }
        let Some((field, exact)) = Field::of(&unescape(raw)) else { return };
        if self.met & field.bit() != 0 {
            self.out.conflict.get_or_insert(Conflict::Twice(field.name()));
        }
        self.met |= field.bit();
        self.out.folded |= !exact;
        self.field = Some(field);
    }

    fn value(&mut self, field: Field, raw: &[u8], is_text: bool, end: usize) {
        let range = self.start..end;
        let null = !is_text && raw == b"null";
        let content = match (null, is_text && raw.is_empty()) {
            (true, _) => Content::Absent,
            (_, true) => Content::Empty,
            _ => Content::Some,
        };
        let flag = match raw {
            b"true" if !is_text => Some(true),
            b"false" if !is_text => Some(false),
            _ => None,
        };
        let out = &mut self.out;
        let text = match field {
            Field::Model => &mut out.model,
            Field::Name => &mut out.name,
            Field::From => &mut out.from,
            Field::Source => &mut out.source,
            Field::Destination => &mut out.destination,
            // Of another type Go makes an error, so what is kept then does not matter.
            Field::Stream | Field::Shift if !null && flag.is_none() => return,
            Field::Stream => return out.stream = flag,
            Field::Shift => return out.shift = flag,
            Field::Think => return out.think = if is_text { Some(true) } else { flag },
            // Go leaves a text as it was when `null` comes.
            Field::Prompt if null => return,
            Field::Suffix if null => return,
            Field::Prompt => return out.prompt = content,
            Field::Suffix => return out.suffix = content,
            Field::Messages => return out.messages = content,
            Field::Input => return out.input = content,
            Field::Tools => return out.tools = content,
            Field::Images => return out.images = content,
            Field::MaxTokens | Field::MaxCompletionTokens | Field::MaxOutputTokens => {
                if !null {
                    out.max_tokens = integer(raw, is_text).map(|value| At { value, range });
                }
                return;
            }
            Field::KeepAlive => {
                // Back in its quotes, to tell `"10"` from `10`.
                let mut json = Vec::with_capacity(raw.len() + 2);
                let mark: &[u8] = if is_text { b"\"" } else { b"" };
                for part in [mark, raw, mark] {
                    json.extend_from_slice(part);
                }
                out.keep_alive = KeepAlive::read(&json).map(|value| At { value, range });
                return;
            }
            Field::Options => {
                if null {
                    self.forget_options();
                }
                return;
            }
        };
        if is_text {
            *text = Some(At { value: unescape(raw).into_owned(), range });
        }
    }

    fn option(&mut self, opt: Opt, raw: &[u8], is_text: bool, end: usize) {
        let range = self.start..end;
        let number = || integer(raw, is_text).map(|value| At { value, range });
        match opt {
            Opt::NumCtx => self.out.num_ctx = number(),
            Opt::NumPredict => self.out.num_predict = number(),
            Opt::Runner(name) if is_text || raw == b"null" => {
                self.out.runner.remove(name);
            }
            Opt::Runner(name) => {
                // One spelling for one number: `5` and `5.0` load the same runner.
                let value = match integer(raw, false) {
                    Some(n) => n.to_string(),
                    None => String::from_utf8_lossy(raw).into_owned(),
                };
                self.out.runner.insert(name.to_owned(), value);
            }
        }
    }

    /// `null` in place of `options` empties what an earlier one said.
    fn forget_options(&mut self) {
        self.out.num_ctx = None;
        self.out.num_predict = None;
        self.out.runner.clear();
    }

    /// A container begins.
    fn enter(&mut self, start: usize) {
        match self.lexer.depth() {
            2 => {
                self.start = start;
                self.filled = false;
                self.opt = None;
            }
            3 => {
                self.filled = true;
                // An option that is no scalar is none.
                if let Some(opt) = self.opt.take() {
                    self.option(opt, b"null", false, start);
                }
            }
            _ => {}
        }
    }

    /// A container ended.
    fn leave(&mut self) {
        if self.lexer.depth() != 1 {
            return;
        }
        let Some(field) = self.field.take() else { return };
        let content = if self.filled { Content::Some } else { Content::Empty };
        match field {
            Field::Prompt => self.out.prompt = content,
            Field::Messages => self.out.messages = content,
            Field::Input => self.out.input = content,
            Field::Tools => self.out.tools = content,
            Field::Images => self.out.images = content,
            _ => {}
        }
    }
}

/// A number as Ollama's options take it: what is behind the point is cut off.
fn integer(raw: &[u8], is_text: bool) -> Option<i64> {
    if is_text {
        return None;
    }
    let text = std::str::from_utf8(raw).ok()?;
    // `as` saturates, and a JSON number is never NaN.
    text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|n| n as i64))
}
