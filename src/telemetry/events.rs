//! The last requests and the last things that happened, for `status` and `requests`.
//!
//! In flow names, times and enum words; out flows a copy for whoever looks. Never a prompt, an
//! answer or a key: there is no field that could hold one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use super::running::{Place, Running, Under};
use crate::types::{Api, ClientKind, Op, Outcome};

/// How many finished requests, and how many notes, are kept.
pub const KEPT: usize = 200;

/// A finished request.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// Counts up with every request, so that a follower sees what it missed.
    pub seq: u64,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Who asked: `local` or a principal.
    pub caller: Arc<str>,
    /// The node it came from; empty for a program on this one.
    pub from: Arc<str>,
    /// Which kind of program asked, as far as it says.
    pub client: ClientKind,
    /// The dialect.
    #[serde(serialize_with = "api")]
    pub api: Api,
    /// The operation.
    #[serde(serialize_with = "op")]
    pub op: Op,
    /// The model asked for; empty for none.
    pub model: Arc<str>,
    /// The node that answered; empty for none.
    pub node: Arc<str>,
    /// Milliseconds in this node's gate, if it passed it.
    pub wait_ms: Option<u64>,
    /// Milliseconds to the first byte of the answer's body.
    pub ttft_ms: Option<u64>,
    /// Milliseconds in all.
    pub took_ms: u64,
    /// Prompt tokens, if the engine said.
    pub prompt_tokens: Option<u64>,
    /// Answer tokens, if the engine said.
    pub tokens: Option<u64>,
    /// Answer tokens a second: the engine's own number, else as the pieces came.
    pub tokens_per_second: Option<f64>,
    /// How many tries it took.
    pub attempts: u32,
    /// How often it was taken from a queue to stand in another.
    pub moves: u32,
    /// How often a node refused it before any work.
    pub refusals: u32,
    /// Why that node, in a few words.
    pub why: Why,
    /// How it ended.
    #[serde(serialize_with = "outcome")]
    pub outcome: Outcome,
}

impl Finished {
    /// The line of a request of which nothing is known yet but who asks for what.
    pub fn of(what: &Running) -> Finished {
        Finished {
            seq: 0,
            at: what.since,
            caller: Arc::clone(&what.caller),
            from: Arc::clone(&what.from),
            client: what.client,
            api: what.api,
            op: what.op,
            model: Arc::clone(&what.model),
            node: "".into(),
            wait_ms: None,
            ttft_ms: None,
            took_ms: 0,
            prompt_tokens: None,
            tokens: None,
            tokens_per_second: None,
            attempts: 0,
            moves: 0,
            refusals: 0,
            why: Why::default(),
            outcome: Outcome::Done,
        }
    }
}

/// A few words that are put together when somebody reads them.
#[derive(Clone, Default)]
pub struct Why(Option<Arc<dyn fmt::Display + Send + Sync>>);

impl Why {
    /// What this will say.
    pub fn new(words: impl fmt::Display + Send + Sync + 'static) -> Why {
        Why(Some(Arc::new(words)))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |words| words.fmt(f))
    }
}

impl fmt::Debug for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Something that happened: a node seen for the first time, a step of the ladder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// What kind of thing, one word: `new_node`, `rung`, `load_failed`.
    pub kind: &'static str,
    /// One sentence for people.
    pub text: String,
}

/// The rings, and what runs now.
#[derive(Debug, Default)]
pub struct Events {
    finished: Mutex<Requests>,
    notes: Mutex<VecDeque<Arc<Note>>>,
    under: Arc<Under>,
    /// The number of the last request that ended.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    ring: VecDeque<Arc<Finished>>,
}

impl Events {
    /// Empty rings.
    pub fn new() -> Arc<Events> {
        Arc::default()
    }

    /// A request ended. Its `seq` is set here.
    pub fn finished(&self, mut finished: Finished) {
        let last = {
            // One lock for number and place: a follower takes what is after a number.
            let mut requests = self.finished.lock();
            requests.last += 1;
            finished.seq = requests.last;
            push(&mut requests.ring, finished);
            requests.last
        };
        self.last.send_if_modified(|was| {
            let newer = *was < last;
            *was = last.max(*was);
            newer
        });
    }

    /// A request is under way, until what is returned is dropped.
    pub fn begins(&self, running: Running) -> Place {
        Under::begins(&self.under, running)
    }

    /// Something happened.
    pub fn note(&self, kind: &'static str, text: impl Into<String>) {
        push(&mut self.notes.lock(), Note { at: SystemTime::now(), kind, text: text.into() });
    }

    /// The last requests, newest first.
    pub fn requests(&self) -> Vec<Arc<Finished>> {
        self.finished.lock().ring.iter().rev().cloned().collect()
    }

    /// The kept requests that ended after that number, oldest first.
    pub fn requests_after(&self, seq: u64) -> Vec<Arc<Finished>> {
        self.finished.lock().ring.iter().filter(|line| line.seq > seq).cloned().collect()
    }

    /// The number of the last request that ended, and word of the next ones.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// The requests that run, the longest first.
    pub fn running(&self) -> Vec<serde_json::Value> {
        self.under.shown(SystemTime::now())
    }

    /// The last notes, newest first.
    pub fn notes(&self) -> Vec<Arc<Note>> {
        self.notes.lock().iter().rev().cloned().collect()
    }
}

fn push<T>(ring: &mut VecDeque<Arc<T>>, item: T) {
    if ring.len() == KEPT {
        ring.pop_front();
    }
    ring.push_back(Arc::new(item));
}

fn api<S: Serializer>(api: &Api, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(api.label())
}

fn op<S: Serializer>(op: &Op, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(op.label())
}

fn outcome<S: Serializer>(outcome: &Outcome, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(outcome.label())
}

fn rfc3339<S: Serializer>(at: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&timestamp(*at))
}

/// `2026-11-21T08:43:05.123Z`. Times before 1970 are shown as 1970.
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a civil date, counted in eras of 400 years that begin in March
    // (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        secs / 3600,
        secs / 60 % 60,
        secs % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(model: &str) -> Finished {
        Finished {
            seq: 0,
            at: SystemTime::UNIX_EPOCH,
            caller: "local".into(),
            from: "".into(),
            client: ClientKind::Openclaw,
            api: Api::Ollama,
            op: Op::Chat,
            model: model.into(),
            node: "desk".into(),
            wait_ms: None,
            ttft_ms: Some(12),
            took_ms: 340,
            prompt_tokens: Some(300),
            tokens: Some(20),
            tokens_per_second: Some(62.5),
            attempts: 2,
            moves: 1,
            refusals: 0,
            why: Why::new("only node"),
            outcome: Outcome::Done,
        }
    }

    #[test]
    fn the_last_requests_are_kept_and_no_more() {
        let events = Events::new();
        for i in 0..KEPT + 50 {
            events.finished(finished(&format!("m{i}")));
            events.note("new_node", format!("n{i}"));
        }
        let kept = events.requests();
        assert_eq!(kept.len(), KEPT);
        assert_eq!((&*kept[0].model, kept[0].seq), ("m249", 250));
        assert_eq!((events.notes().len(), events.notes()[0].text.as_str()), (KEPT, "n249"));
    }

    #[test]
    fn a_follower_gets_what_ended_after_what_it_has() {
        let events = Events::new();
        let mut last = events.last();
        assert!(!last.has_changed().unwrap());
        for model in ["a", "b", "c"] {
            events.finished(finished(model));
        }
        assert_eq!((last.has_changed().unwrap(), *last.borrow_and_update()), (true, 3));
        let after = |seq| -> Vec<String> {
            events.requests_after(seq).iter().map(|line| line.model.to_string()).collect()
        };
        assert_eq!(
            (after(0), after(2), after(3)),
            (vec!["a".into(), "b".into(), "c".into()], vec!["c".into()], vec![])
        );
    }

    #[test]
    fn a_row_speaks_the_words_of_status() {
        let events = Events::new();
        events.finished(finished("tiny"));
        assert_eq!(
            serde_json::to_string(&events.requests()[0]).unwrap(),
            r#"{"seq":1,"at":"1970-01-01T00:00:00.000Z","caller":"local","from":"","client":"openclaw","api":"ollama","op":"chat","model":"tiny","node":"desk","waitMs":null,"ttftMs":12,"tookMs":340,"promptTokens":300,"tokens":20,"tokensPerSecond":62.5,"attempts":2,"moves":1,"refusals":0,"why":"only node","outcome":"done"}"#
        );
    }

    #[test]
    fn timestamps_are_dates() {
        for (secs, text) in [
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_250_585, "2026-11-21T08:43:05.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
        ] {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
    }
}
