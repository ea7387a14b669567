//! What a sidecar tells of its own engines, line by line: `GET /mesh/v1/reports`.
//!
//! A stream of JSON lines. The first holds every row the reader may see, the next ones what has
//! changed since; a line without rows is a sign of life. One row also goes with each proxied
//! reply, as a header. Rows are claims of the one who sends them: [`Line::read`] bounds their
//! number, their names and their values, and whoever holds them measures the rest for himself.
//! Pure: bytes in, plain values out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use crate::types::Accepting;
use crate::types::ModelKey;

/// Where the stream is.
pub const REPORTS: &str = "/mesh/v1/reports";
/// The header of a reply between sidecars that holds one row.
pub const HEADER: &str = "x-tailherd-report";
/// The version of these lines.
pub const VERSION: u32 = 1;
/// Longest line, its end included.
pub const MOST_LINE: usize = 64 << 10;
/// Longest row in a header.
pub const MOST_HEADER: usize = 1 << 10;
/// Most rows of one node.
pub const MOST_ROWS: usize = 512;
/// Most servers without a sidecar of which one node may tell.
pub const MOST_BARE: usize = 64;
/// Most waiting requests of one reader that are told.
pub const MOST_YOURS: usize = 512;

/// Longest engine's name, reason and attempt.
const MOST_WORD: usize = 64;
/// How much of a digest stands in a row: enough to tell two apart.
const WEIGHTS: usize = 12;
/// Most requests that are believed to run or wait somewhere.
const MOST_REQUESTS: u32 = 1 << 16;
/// Most requests of one sidecar that are believed to be at a server without one.
const MOST_THERE: u32 = 64;
/// Longest wait that is believed, milliseconds: a day.
const MOST_WAIT: u64 = 24 * 3600 * 1000;
/// Longest work that is believed to be left at a server without a sidecar: an hour.
const MOST_LEFT: u64 = 3600 * 1000;
/// Largest window.
const MOST_CONTEXT: u64 = 1 << 27;
/// Largest speed, per second: bytes for loads, tokens for the rest.
const MOST_SPEED: f64 = 1e13;
/// Longest time between two lines that may be announced.
const MOST_PAUSE: u64 = 120 * 1000;

/// Whether a model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In memory.
    Loaded,
    /// Being brought in.
    Loading,
    /// Neither.
    #[default]
    #[serde(other)]
    Cold,
}

/// One model at one engine of the sender.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Row {
    /// The engine's name on its node.
    pub engine: String,
    /// The model's name as that engine lists it.
    pub name: String,
    /// The first twelve digits of its weights' digest; empty = not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub weights: String,
    /// The window it is loaded with; 0 = not loaded, 1 = loaded with one that is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_ctx: u64,
    /// Whether it is in memory.
    pub state: State,
    /// Requests it runs at once.
    pub slots: u32,
    /// Requests that run, of all callers.
    #[serde(skip_serializing_if = "is_none")]
    pub running: u32,
    /// Requests that wait.
    #[serde(skip_serializing_if = "is_none")]
    pub queued: u32,
    /// Requests that ever began on it: what was read before as many as there are slots is read
    /// over. 0 = not counted.
    #[serde(skip_serializing_if = "is_none")]
    pub begun: u32,
    /// How long a new interactive request would wait, in milliseconds, the load it needs
    /// included. It is one with the options the model is loaded with, or with none.
    pub wait_ms: u64,
    /// How much of that is a load which nobody has begun: it does not pass by itself.
    #[serde(skip_serializing_if = "is_zero")]
    pub load_ms: u64,
    /// Whether that load would put nothing else out of memory, as far as is known.
    #[serde(skip_serializing_if = "is_false")]
    pub fits: bool,
    /// Prompt tokens a second; 0 = never measured, as in the next two.
    #[serde(skip_serializing_if = "is_nothing")]
    pub prefill: f64,
    /// Answer tokens a second.
    #[serde(skip_serializing_if = "is_nothing")]
    pub decode: f64,
    /// Bytes of weights loaded a second.
    #[serde(skip_serializing_if = "is_nothing")]
    pub load_rate: f64,
    /// The model's largest window; 0 = not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub context: u64,
    /// For whom it works.
    #[serde(skip_serializing_if = "Accepting::is_all")]
    pub accepting: Accepting,
    /// Why not for all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A request of the reader that waits at the sender. One that is not named has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Yours {
    /// What the reader called it.
    pub attempt: String,
    /// How long it will still wait.
    pub wait_ms: u64,
}

/// The sender's own requests at a model of a server without a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bare {
    /// Which: a digest that only those recognise who use it themselves.
    pub at: String,
    /// How many are there.
    pub inflight: u32,
    /// For how long they will keep it busy, together.
    pub left_ms: u64,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Line<'a> {
    /// [`VERSION`], where `full` is.
    #[serde(skip_serializing_if = "is_none")]
    pub v: u32,
    /// Counts up by one from line to line.
    pub seq: u64,
    /// What was said before holds no longer: the rows of this line and of the next ones are
    /// all there are.
    #[serde(skip_serializing_if = "is_false")]
    pub full: bool,
    /// Within how many milliseconds the next line comes, until said otherwise.
    #[serde(skip_serializing_if = "is_zero")]
    pub next_ms: u64,
    /// For whom the node works, if that changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepting: Option<Accepting>,
    /// Why not for all.
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub why: Cow<'a, str>,
    /// Changes when the list of offers has become another than its numbers, for this reader.
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub list: Cow<'a, str>,
    /// All of the reader's requests that wait, if any does or has just stopped to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yours: Option<Vec<Yours>>,
    /// The sender's requests at servers without a sidecar, all of them, if that changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare: Option<Vec<Bare>>,
    /// Rows that are new or have changed. (Last, so that a sender may append rows that are
    /// already written.)
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Row>,
}

/// Why a line ends the stream.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is longer than [`MOST_LINE`].
    #[error("a line of more than {MOST_LINE} bytes")]
    Long,
    /// It is no JSON object.
    #[error("not a line of a report")]
    Shape,
    /// It is no such line.
    #[error("not a line of a report: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another time.
    #[error("speaks version {0} of reports, this node speaks {VERSION}")]
    Version(u32),
}

impl<'a> Line<'a> {
    /// Reads a line, cut down to what may be believed of anybody. A row whose name is none
    /// costs that row; what is no line at all, the stream.
    pub fn read(text: &'a [u8]) -> Result<Line<'a>, LineError> {
        if text.len() > MOST_LINE {
            return Err(LineError::Long);
        }
        // A list would be read as one of fields in order.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(LineError::Shape);
        }
        let mut line: Line<'a> = serde_json::from_slice(text)?;
        if line.full && line.v != VERSION {
            return Err(LineError::Version(line.v));
        }
        line.next_ms = line.next_ms.min(MOST_PAUSE);
        line.why = Cow::Owned(words(&line.why));
        line.list = Cow::Owned(words(&line.list));
        line.rows.truncate(MOST_ROWS);
        line.rows.retain_mut(Row::bound);
        if let Some(yours) = &mut line.yours {
            yours.truncate(MOST_YOURS);
            yours.retain(|y| is_hex(&y.attempt, MOST_WORD));
            yours.iter_mut().for_each(|y| y.wait_ms = y.wait_ms.min(MOST_WAIT));
        }
        if let Some(bare) = &mut line.bare {
            bare.truncate(MOST_BARE);
            bare.retain(|b| is_hex(&b.at, MOST_WORD));
            for b in bare {
                b.inflight = b.inflight.min(MOST_THERE);
                b.left_ms = b.left_ms.min(MOST_LEFT);
            }
        }
        Ok(line)
    }
}

impl Row {
    /// Reads the row in a header; `None` if it is none.
    pub fn read(text: &[u8]) -> Option<Row> {
        if text.len() > MOST_HEADER {
            return None;
        }
        let mut row: Row = serde_json::from_slice(text).ok()?;
        row.bound().then_some(row)
    }

    /// The wait so many milliseconds later, if nothing else happens.
    pub fn wait_after(&self, passed: u64) -> u64 {
        let passes = self.wait_ms.saturating_sub(self.load_ms);
        self.load_ms.min(self.wait_ms) + passes.saturating_sub(passed)
    }

    /// Its JSON.
    pub fn write(&self) -> Vec<u8> {
        // Plain data always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Cuts its claims down; false if nothing can be made of it.
    fn bound(&mut self) -> bool {
        let engine = !self.engine.is_empty()
            && self.engine.len() <= MOST_WORD
            && self.engine.bytes().all(|b| b.is_ascii_graphic());
        if !engine || ModelKey::parse(&self.name).is_err() {
            return false;
        }
        if !is_hex(&self.weights, WEIGHTS) {
            self.weights.clear();
        }
        self.why = words(&self.why);
        self.slots = self.slots.clamp(1, MOST_REQUESTS);
        self.running = self.running.min(MOST_REQUESTS);
        self.queued = self.queued.min(MOST_REQUESTS);
        self.wait_ms = self.wait_ms.min(MOST_WAIT);
        self.load_ms = self.load_ms.min(self.wait_ms);
        self.context = self.context.min(MOST_CONTEXT);
        self.num_ctx = match self.state {
            State::Loaded => self.num_ctx.clamp(1, MOST_CONTEXT),
            State::Loading | State::Cold => 0,
        };
        for speed in [&mut self.prefill, &mut self.decode, &mut self.load_rate] {
            let sane = speed.is_finite() && *speed > 0.0;
            *speed = if sane { speed.min(MOST_SPEED) } else { 0.0 };
        }
        true
    }
}

/// The part of a digest that stands in a row.
pub fn weights(digest: &str) -> &str {
    digest.get(..WEIGHTS).unwrap_or_default()
}

fn is_hex(text: &str, most: usize) -> bool {
    !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A reason as it may be shown: printable ASCII, short.
pub(super) fn words(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MOST_WORD).collect()
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_none(value: &u32) -> bool {
    *value == 0
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_nothing(value: &f64) -> bool {
    *value <= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(name: &str) -> Row {
        let (engine, name) = ("ollama".into(), name.into());
        Row { engine, name, slots: 1, ..Row::default() }
    }

    #[test]
    fn lines_look_like_this() {
        let first = Line {
            v: VERSION,
            seq: 1,
            full: true,
            next_ms: 15000,
            accepting: Some(Accepting::All),
            list: "9f3c".into(),
            rows: vec![
                Row {
                    weights: "46e0c10c039e".into(),
                    num_ctx: 8192,
                    state: State::Loaded,
                    slots: 4,
                    running: 3,
                    begun: 41,
                    prefill: 3900.0,
                    decode: 78.5,
                    load_rate: 1.4e9,
                    context: 131072,
                    ..row("qwen3:8b")
                },
                Row {
                    wait_ms: 6800,
                    load_ms: 5800,
                    fits: true,
                    accepting: Accepting::Mine,
                    why: "battery".into(),
                    ..row("big:70b")
                },
            ],
            ..Line::default()
        };
        let text = r#"{"v":1,"seq":1,"full":true,"nextMs":15000,"accepting":"all","list":"9f3c","rows":[{"engine":"ollama","name":"qwen3:8b","weights":"46e0c10c039e","numCtx":8192,"state":"loaded","slots":4,"running":3,"begun":41,"waitMs":0,"prefill":3900.0,"decode":78.5,"loadRate":1400000000.0,"context":131072},{"engine":"ollama","name":"big:70b","state":"cold","slots":1,"waitMs":6800,"loadMs":5800,"fits":true,"accepting":"mine","why":"battery"}]}"#;
        assert_eq!(serde_json::to_string(&first).unwrap(), text);
        assert_eq!(Line::read(text.as_bytes()).unwrap(), first);
        let beat = Line { seq: 2, ..Line::default() };
        assert_eq!(serde_json::to_string(&beat).unwrap(), r#"{"seq":2}"#);
        let bare = Bare { at: "ab12".into(), inflight: 1, left_ms: 5200 };
        let told = Line {
            seq: 3,
            yours: Some(vec![Yours { attempt: "0f".into(), wait_ms: 900 }]),
            bare: Some(vec![bare]),
            ..Line::default()
        };
        let text = r#"{"seq":3,"yours":[{"attempt":"0f","waitMs":900}],"bare":[{"at":"ab12","inflight":1,"leftMs":5200}]}"#;
        assert_eq!(serde_json::to_string(&told).unwrap(), text);
        assert_eq!(Line::read(text.as_bytes()).unwrap(), told);
    }

    #[test]
    fn versions_mix_and_another_one_ends_the_stream() {
        let newer = br#"{"v":1,"seq":9,"full":true,"mood":[1],"accepting":"friends",
            "rows":[{"engine":"o","name":"a","state":"warming","slots":2,"cost":1}]}"#;
        let line = Line::read(newer).unwrap();
        assert_eq!(line.accepting, Some(Accepting::None));
        assert_eq!((line.rows[0].state, line.rows[0].slots), (State::Cold, 2));
        for far in [r#"{"v":2,"seq":1,"full":true}"#, r#"{"seq":1,"full":true}"#] {
            assert!(matches!(Line::read(far.as_bytes()), Err(LineError::Version(_))), "{far}");
        }
        for odd in ["", "[]", "{", r#"{"seq":-1}"#, r#"{"rows":[{"waitMs":1e999}]}"#, "\u{0}"] {
            assert!(Line::read(odd.as_bytes()).is_err(), "{odd}");
        }
        let long = format!(r#"{{"why":"{}"}}"#, "x".repeat(MOST_LINE));
        assert!(matches!(Line::read(long.as_bytes()), Err(LineError::Long)));
    }

    #[test]
    fn claims_are_cut_down_and_a_bad_name_costs_its_row() {
        let rows: Vec<Row> = ["tiny", "bad name", "tiny@desk", "\u{1b}]52;x", &"x".repeat(300)]
            .into_iter()
            .map(row)
            .chain([
                Row { engine: "a\nb".into(), ..row("tiny") },
                Row { engine: String::new(), ..row("t") },
            ])
            .chain([Row {
                weights: "../../etc".into(),
                num_ctx: u64::MAX,
                state: State::Loaded,
                slots: 0,
                running: u32::MAX,
                queued: u32::MAX,
                wait_ms: u64::MAX,
                prefill: 1e300,
                decode: -1.0,
                context: u64::MAX,
                why: "\u{202e}so\r\nx".into(),
                ..row("ok")
            }])
            .collect();
        let bare = vec![
            Bare { at: "ab".into(), inflight: u32::MAX, left_ms: u64::MAX },
            Bare { at: "nas\u{1b}".into(), inflight: 1, left_ms: 1 },
        ];
        let line = Line { next_ms: u64::MAX, bare: Some(bare), rows, ..Line::default() };
        let text = serde_json::to_vec(&line).unwrap();
        let read = Line::read(&text).unwrap();
        let names: Vec<&str> = read.rows.iter().map(|r| &*r.name).collect();
        assert_eq!((names, read.next_ms), (vec!["tiny", "ok"], MOST_PAUSE));
        let cut = Row {
            weights: String::new(),
            num_ctx: MOST_CONTEXT,
            state: State::Loaded,
            slots: 1,
            running: MOST_REQUESTS,
            queued: MOST_REQUESTS,
            wait_ms: MOST_WAIT,
            prefill: MOST_SPEED,
            context: MOST_CONTEXT,
            why: "sox".into(),
            ..row("ok")
        };
        assert_eq!(read.rows[1], cut);
        let left = vec![Bare { at: "ab".into(), inflight: MOST_THERE, left_ms: MOST_LEFT }];
        assert_eq!(read.bare, Some(left));
    }

    #[test]
    fn a_wait_passes_and_a_load_that_was_not_begun_does_not() {
        let told = Row { wait_ms: 6800, load_ms: 5800, ..row("big") };
        for (passed, left) in [(0, 6800), (400, 6400), (1000, 5800), (99_000, 5800)] {
            assert_eq!(told.wait_after(passed), left);
        }
        assert_eq!(Row { wait_ms: 900, ..row("tiny") }.wait_after(1000), 0);
        let odd = Row { wait_ms: 5, load_ms: u64::MAX, ..row("tiny") };
        assert_eq!(Row::read(&odd.write()).map(|row| row.load_ms), Some(5));
    }

    #[test]
    fn no_more_rows_than_a_node_may_have() {
        let line = Line { rows: vec![Row::default(); 600], ..Line::default() };
        let text = serde_json::to_string(&line).unwrap().replace(r#""name":"""#, r#""name":"a""#);
        let text = text.replace(r#""engine":"""#, r#""engine":"o""#);
        assert_eq!(Line::read(text.as_bytes()).unwrap().rows.len(), MOST_ROWS);
    }

    #[test]
    fn a_header_holds_one_row_or_nothing() {
        let told = Row { wait_ms: 5, ..row("tiny") };
        assert_eq!(Row::read(&told.write()), Some(told.clone()));
        let far = Row { why: "x".repeat(MOST_HEADER), ..told };
        for odd in [far.write(), b"[]".to_vec(), b"{}".to_vec(), row("a b").write()] {
            assert_eq!(Row::read(&odd), None);
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::{Value, json};
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,300}".prop_map(Value::from),
            Just(json!("loaded")),
        ];
        let row = proptest::collection::btree_map(
            prop_oneof![
                Just("engine"),
                Just("name"),
                Just("weights"),
                Just("numCtx"),
                Just("state"),
                Just("slots"),
                Just("waitMs"),
                Just("prefill"),
                Just("accepting"),
                Just("why"),
                Just("attempt"),
                Just("at"),
                Just("inflight"),
                Just("leftMs"),
            ]
            .prop_map(str::to_owned),
            leaf.clone(),
            0..9,
        )
        .prop_map(|map| Value::Object(map.into_iter().collect()));
        let rows = proptest::collection::vec(prop_oneof![4 => row, 1 => leaf.clone()], 0..6)
            .prop_map(Value::from);
        proptest::collection::btree_map(
            prop_oneof![
                Just("v"),
                Just("seq"),
                Just("full"),
                Just("nextMs"),
                Just("accepting"),
                Just("why"),
                Just("list"),
                Just("rows"),
                Just("yours"),
                Just("bare"),
            ]
            .prop_map(str::to_owned),
            prop_oneof![2 => leaf, 3 => rows],
            0..6,
        )
        .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    fn within_bounds(line: &Line<'_>) -> bool {
        let speed = |s: f64| s.is_finite() && (0.0..=MOST_SPEED).contains(&s);
        line.rows.len() <= MOST_ROWS
            && line.next_ms <= MOST_PAUSE
            && line.rows.iter().all(|r| {
                r.name.len() <= 256
                    && ModelKey::parse(&r.name).is_ok()
                    && r.engine.len() <= MOST_WORD
                    && r.why.len() <= MOST_WORD
                    && r.wait_ms <= MOST_WAIT
                    && r.slots >= 1
                    && r.num_ctx <= MOST_CONTEXT
                    && [r.prefill, r.decode, r.load_rate].into_iter().all(speed)
            })
            && line.bare.iter().flatten().count() <= MOST_BARE
            && line
                .bare
                .iter()
                .flatten()
                .all(|b| b.inflight <= MOST_THERE && b.left_ms <= MOST_LEFT)
            && line.yours.iter().flatten().all(|y| y.attempt.len() <= MOST_WORD)
    }

    proptest! {
        #[test]
        fn no_line_of_anybody_panics_or_passes_the_bounds(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            json in any_json(),
        ) {
            for text in [noise, json.to_string().into_bytes()] {
                if let Ok(line) = Line::read(&text) {
                    prop_assert!(within_bounds(&line), "{line:?}");
                }
                if let Some(row) = Row::read(&text) {
                    let alone = Line { rows: vec![row], ..Line::default() };
                    prop_assert!(within_bounds(&alone));
                }
            }
        }
    }
}
