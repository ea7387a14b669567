//! A push lexer for JSON: bytes in as they come, events out, nothing kept.
//!
//! It checks the whole grammar as Go's and serde's decoders do, so that "valid" here means
//! valid there, but tells its user only of tokens near the top: text and images deep inside
//! a request are skipped with `memchr`. It never copies and never allocates; who wants the
//! bytes of a token slices them out of the chunk.

use std::borrow::Cow;

/// Deepest nesting that is read.
pub(super) const MAX_DEPTH: u8 = 128;

/// Why a text is not JSON that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is nothing.
    #[error("missing request body")]
    Empty,
    /// It stops in the middle. The text is Go's.
    #[error("unexpected EOF")]
    Cut,
    /// It is not JSON.
    #[error("invalid JSON")]
    Syntax,
    /// Nested deeper than 128 levels. Engines might still read it, so it may not pass where
    /// a rule has to be checked.
    #[error("JSON nested too deep")]
    TooDeep,
}

/// What the lexer met. "Inside" is the container in which a token stands: [`Lexer::depth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// An object (`false`) or array (`true`) begins. The depth is already that of its inside.
    Open(bool),
    /// It ended. The depth is that of the container around it.
    Close,
    /// A key begins; the position is behind its opening quote.
    KeyOpen,
    /// A key ended; the position is behind its closing quote.
    KeyClose,
    /// A string value begins; the position is behind its opening quote.
    StrOpen,
    /// A string value ended; the position is behind its closing quote.
    StrClose,
    /// A number, `true`, `false` or `null` begins; the position is behind its first byte.
    ScalarOpen,
    /// It ended; the position is behind its last byte.
    ScalarClose,
    /// The chunk is used up.
    More,
    /// Something other than white space follows the top-level value. Nothing more is read.
    Trailing,
    /// The text is not JSON. Nothing more is read.
    Fault(Problem),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value has to come.
    Value,
    /// `{` was read: a key or `}`.
    FirstKey,
    /// `,` was read in an object: a key.
    Key,
    /// A key was read: `:`.
    Colon,
    /// `[` was read: a value or `]`.
    FirstItem,
    /// A value was read: `,` or the end of the container.
    After,
    Str {
        key: bool,
        esc: Esc,
    },
    Num(Num),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    /// The top-level value is complete.
    Done,
    Trailing,
    Broken(Problem),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Esc {
    None,
    /// A backslash was read.
    Slash,
    /// `\u` was read and this many digits are missing.
    Hex(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Num {
    Minus,
    Zero,
    Int,
    Dot,
    Frac,
    E,
    Sign,
    Exp,
}

impl Num {
    /// The next state, or `None` if `byte` does not belong to the number.
    const fn step(self, byte: u8) -> Option<Num> {
        Some(match (self, byte) {
            (Num::Minus, b'0') => Num::Zero,
            (Num::Minus, b'1'..=b'9') | (Num::Int, b'0'..=b'9') => Num::Int,
            (Num::Zero | Num::Int, b'.') => Num::Dot,
            (Num::Dot | Num::Frac, b'0'..=b'9') => Num::Frac,
            (Num::Zero | Num::Int | Num::Frac, b'e' | b'E') => Num::E,
            (Num::E, b'+' | b'-') => Num::Sign,
            (Num::E | Num::Sign | Num::Exp, b'0'..=b'9') => Num::Exp,
            _ => return None,
        })
    }

    const fn is_whole(self) -> bool {
        matches!(self, Num::Zero | Num::Int | Num::Frac | Num::Exp)
    }
}

/// The lexer. Feed it chunk after chunk; it remembers only where it stands.
#[derive(Debug, Clone)]
pub(super) struct Lexer {
    state: State,
    /// One bit per level, 1 = object.
    stack: u128,
    depth: u8,
    /// Tokens inside deeper containers than this are not told of.
    watch: u8,
    /// Bytes of strings that are no text.
    encoded: u64,
}

/// From how long on a piece of a string may be encoded data: shorter ones are not looked at.
const LONG: usize = 1024;
/// How much of its inside and of its end are looked at. A text has a blank or a comma in that,
/// and `data:image/png;base64,` stands before it.
const LOOK: usize = 64;

/// Whether so long a piece of a string is base64 and no text.
fn is_encoded(piece: &[u8]) -> bool {
    let base64 =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_' | b'=');
    piece.len() >= LONG
        && piece[LOOK..2 * LOOK].iter().all(base64)
        && piece[piece.len() - LOOK..].iter().all(base64)
}

impl Lexer {
    /// A lexer that tells of tokens whose container stands at most `watch` deep (1 = the
    /// members of the top-level value).
    pub(super) const fn new(watch: u8) -> Lexer {
        Lexer { state: State::Value, stack: 0, depth: 0, watch, encoded: 0 }
    }

    /// How many containers are open.
    pub(super) const fn depth(&self) -> u8 {
        self.depth
    }

    /// How many bytes of strings so far were images and the like, as base64.
    pub(super) const fn encoded(&self) -> u64 {
        self.encoded
    }

    /// Whether the innermost open container is an object.
    pub(super) const fn in_object(&self) -> bool {
        self.depth > 0 && self.stack >> (self.depth - 1) & 1 == 1
    }

    /// What is wrong if no more bytes come.
    pub(super) const fn end(&self) -> Option<Problem> {
        match self.state {
            State::Done | State::Trailing => None,
            State::Num(num) if self.depth == 0 && num.is_whole() => None,
            State::Value if self.depth == 0 => Some(Problem::Empty),
            State::Broken(problem) => Some(problem),
            _ => Some(Problem::Cut),
        }
    }

    /// Reads on from `*at` to the next event.
    pub(super) fn next(&mut self, input: &[u8], at: &mut usize) -> Event {
        loop {
            let seen = self.depth <= self.watch;
            let event = match self.state {
                State::Broken(problem) => return Event::Fault(problem),
                State::Trailing => return Event::Trailing,
                State::Str { key, esc } => match self.string(input, at, key, esc) {
                    None => return Event::More,
                    Some(event) => event,
                },
                State::Num(num) => {
                    let Some(byte) = input.get(*at) else { return Event::More };
                    match num.step(*byte) {
                        Some(next) => {
                            self.state = State::Num(next);
                            *at += 1;
                            continue;
                        }
                        None if num.is_whole() => {
                            self.after();
                            Event::ScalarClose
                        }
                        None => self.broken(Problem::Syntax),
                    }
                }
                State::Word(rest) => {
                    let Some(byte) = input.get(*at) else { return Event::More };
                    match rest.split_first() {
                        Some((want, rest)) if want == byte => {
                            *at += 1;
                            if rest.is_empty() {
                                self.after();
                                Event::ScalarClose
                            } else {
                                self.state = State::Word(rest);
                                continue;
                            }
                        }
                        _ => self.broken(Problem::Syntax),
                    }
                }
                _ => {
                    let Some(byte) = input.get(*at).copied() else { return Event::More };
                    if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                        *at += 1;
                        continue;
                    }
                    *at += 1;
                    match self.structure(byte) {
                        Some(event) => event,
                        None => continue,
                    }
                }
            };
            match event {
                Event::Fault(_) | Event::Trailing => return event,
                // The depth has changed: what counts is the container around it.
                Event::Close if self.depth <= self.watch => return event,
                Event::Close => {}
                _ if seen => return event,
                _ => {}
            }
        }
    }

    fn structure(&mut self, byte: u8) -> Option<Event> {
        match (self.state, byte) {
            (State::FirstKey | State::Key, b'"') => {
                self.state = State::Str { key: true, esc: Esc::None };
                return Some(Event::KeyOpen);
            }
            (State::FirstKey, b'}') | (State::FirstItem, b']') => return Some(self.close()),
            (State::Colon, b':') => self.state = State::Value,
            (State::Value | State::FirstItem, _) => return Some(self.value(byte)),
            (State::After, b',') => {
                self.state = if self.in_object() { State::Key } else { State::Value };
            }
            (State::After, b'}') if self.in_object() => return Some(self.close()),
            (State::After, b']') if !self.in_object() => return Some(self.close()),
            (State::Done, _) => {
                self.state = State::Trailing;
                return Some(Event::Trailing);
            }
            _ => return Some(self.broken(Problem::Syntax)),
        }
        None
    }

    fn value(&mut self, byte: u8) -> Event {
        self.state = match byte {
            b'"' => {
                self.state = State::Str { key: false, esc: Esc::None };
                return Event::StrOpen;
            }
            b'{' | b'[' => {
                if self.depth == MAX_DEPTH {
                    return self.broken(Problem::TooDeep);
                }
                let bit = 1 << self.depth;
                let object = byte == b'{';
                self.stack = if object { self.stack | bit } else { self.stack & !bit };
                self.depth += 1;
                self.state = if object { State::FirstKey } else { State::FirstItem };
                return Event::Open(!object);
            }
            b'-' => State::Num(Num::Minus),
            b'0' => State::Num(Num::Zero),
            b'1'..=b'9' => State::Num(Num::Int),
            b't' => State::Word(b"rue"),
            b'f' => State::Word(b"alse"),
            b'n' => State::Word(b"ull"),
            _ => return self.broken(Problem::Syntax),
        };
        Event::ScalarOpen
    }

    /// Reads on inside a string; `None` = the chunk is used up.
    fn string(&mut self, input: &[u8], at: &mut usize, key: bool, mut esc: Esc) -> Option<Event> {
        let event = loop {
            let rest = input.get(*at..).unwrap_or_default();
            let Some(first) = rest.first() else { break None };
            match esc {
                Esc::None => {
                    let end = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
                    // Written so that the compiler turns it into vector instructions.
                    if rest[..end].iter().fold(false, |bad, b| bad | (*b < 0x20)) {
                        return Some(self.broken(Problem::Syntax));
                    }
                    if is_encoded(&rest[..end]) {
                        self.encoded += end as u64;
                    }
                    *at += end;
                    match rest.get(end) {
                        None => break None,
                        Some(b'"') => {
                            *at += 1;
                            break Some(if key { Event::KeyClose } else { Event::StrClose });
                        }
                        Some(_) => {
                            *at += 1;
                            esc = Esc::Slash;
                        }
                    }
                }
                Esc::Slash => {
                    esc = match first {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Esc::None,
                        b'u' => Esc::Hex(4),
                        _ => return Some(self.broken(Problem::Syntax)),
                    };
                    *at += 1;
                }
                Esc::Hex(left) => {
                    if !first.is_ascii_hexdigit() {
                        return Some(self.broken(Problem::Syntax));
                    }
                    esc = if left == 1 { Esc::None } else { Esc::Hex(left - 1) };
                    *at += 1;
                }
            }
        };
        match event {
            Some(Event::KeyClose) => self.state = State::Colon,
            Some(_) => self.after(),
            None => self.state = State::Str { key, esc },
        }
        event
    }

    fn close(&mut self) -> Event {
        self.depth = self.depth.saturating_sub(1);
        self.after();
        Event::Close
    }

    fn after(&mut self) {
        self.state = if self.depth == 0 { State::Done } else { State::After };
    }

    fn broken(&mut self, problem: Problem) -> Event {
        self.state = State::Broken(problem);
        Event::Fault(problem)
    }
}

/// The text of a string token (without its quotes) as Go reads it: what is not UTF-8, and
/// half a surrogate pair, become U+FFFD.
pub(super) fn unescape(raw: &[u8]) -> Cow<'_, str> {
    // Most texts are written as they are.
    if memchr::memchr(b'\\', raw).is_none()
        && let Ok(text) = std::str::from_utf8(raw)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let plain = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
        for chunk in rest[..plain].utf8_chunks() {
            text.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|_| text.push(char::REPLACEMENT_CHARACTER));
        }
        rest = &rest[plain..];
        let Some(kind) = rest.get(1) else { break };
        match kind {
            b'u' => {
                let high = hex(rest);
                rest = rest.get(6..).unwrap_or_default();
                let c = char::decode_utf16([high, hex(rest)]).next();
                match c {
                    Some(Ok(c)) => {
                        if c.len_utf16() == 2 {
                            rest = rest.get(6..).unwrap_or_default();
                        }
                        text.push(c);
                    }
                    _ => text.push(char::REPLACEMENT_CHARACTER),
                }
                continue;
            }
            b'b' => text.push('\u{8}'),
            b'f' => text.push('\u{c}'),
            b'n' => text.push('\n'),
            b'r' => text.push('\r'),
            b't' => text.push('\t'),
            other => text.push(char::from(*other)),
        }
        rest = rest.get(2..).unwrap_or_default();
    }
    Cow::Owned(text)
}

/// The code unit of a `\u` escape at the start of `rest`; 0 if there is none (which no surrogate
/// pair ends in).
fn hex(rest: &[u8]) -> u16 {
    match rest.get(..6) {
        Some([b'\\', b'u', digits @ ..]) => digits
            .iter()
            .try_fold(0, |n: u16, d| char::from(*d).to_digit(16).map(|d| n << 4 | d as u16))
            .unwrap_or(0),
        _ => 0,
    }
}

/// A JSON string of `text`, quotes included, as Go writes it: `<`, `>`, `&` and the two line
/// separators are escaped.
pub(super) fn quote(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the lexer takes `text`, fed in pieces of `step` bytes.
    fn problem(text: &[u8], step: usize) -> Option<Problem> {
        let mut lexer = Lexer::new(1);
        for chunk in text.chunks(step.max(1)) {
            let mut at = 0;
            loop {
                match lexer.next(chunk, &mut at) {
                    Event::More => break,
                    Event::Fault(p) => return Some(p),
                    Event::Trailing => return Some(Problem::Syntax),
                    _ => {}
                }
            }
        }
        lexer.end()
    }

    #[test]
    fn it_knows_the_grammar() {
        for good in [
            "0",
            "-0.5e+7 ",
            " [ ] ",
            "{}",
            r#"{"a":[1,{"b":null}],"c":"\u00e9\n"}"#,
            "true",
            "[[],[[]],{}]",
            "1E9",
        ] {
            assert_eq!(problem(good.as_bytes(), 1), None, "{good}");
        }
        for bad in [
            "01",
            "-",
            "1.",
            "1e",
            "[1,]",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":1,}"#,
            "tru",
            "nul1",
            "{\"a\":\"\n\"}",
            r#""\x""#,
            r#""\u12g4""#,
            "]",
            "[}",
            "{a:1}",
            "1 2",
            "[1 2]",
            "+1",
        ] {
            assert!(problem(bad.as_bytes(), 1).is_some(), "{bad}");
        }
        assert_eq!(problem(b"", 1), Some(Problem::Empty));
        assert_eq!(problem(b"{\"model\":", 3), Some(Problem::Cut));
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(problem(deep(128).as_bytes(), 50), None);
        assert_eq!(problem(deep(129).as_bytes(), 50), Some(Problem::TooDeep));
    }

    #[test]
    fn escapes_are_read_as_go_reads_them() {
        for (raw, want) in [
            (&br"mod\u0065l"[..], "model"),
            (br"\ud83d\ude00\/\\\t", "\u{1f600}/\\\t"),
            (br"\ud83dx", "\u{fffd}x"),
            (br"\ud83d\u0041", "\u{fffd}A"),
            (br"\ude00", "\u{fffd}"),
            (b"a\xff\xfeb", "a\u{fffd}\u{fffd}b"),
        ] {
            assert_eq!(unescape(raw), want);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_serde(text in r#"[\[\]{}:,"\\u0-9a-f.eE+\- \ntrslU]{0,24}"#, step in 1usize..9) {
            let serde = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(problem(text.as_bytes(), step).is_none(), serde);
        }

        #[test]
        fn quoted_text_comes_back(text in any::<String>()) {
            let quoted = quote(&text);
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text.clone());
            let inner = &quoted.as_bytes()[1..quoted.len() - 1];
            prop_assert_eq!(unescape(inner), text);
        }
    }
}
