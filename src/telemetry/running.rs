//! The requests that run now, for `status` and `requests`.
//!
//! In flow who asks, for which model, and each step on the way: sent to a node, the first byte,
//! another piece. Out flows a row for each that has not ended. Whoever holds a [`Place`] runs;
//! dropping it ends that. Never a prompt or an answer: pieces are counted, not kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::events::timestamp;
use crate::types::{Api, ClientKind, Op};

/// Most rows that are shown.
const SHOWN: usize = 100;

/// Who asks for what.
#[derive(Debug, Clone)]
pub struct Running {
    /// Since when.
    pub since: SystemTime,
    /// Who asks: `local` or a principal.
    pub caller: Arc<str>,
    /// The node it came from; empty for a program on this one.
    pub from: Arc<str>,
    /// Which kind of program asks.
    pub client: ClientKind,
    /// The dialect.
    pub api: Api,
    /// The operation.
    pub op: Op,
    /// The model.
    pub model: Arc<str>,
}

/// Where it was sent.
#[derive(Debug, Clone, Default)]
struct Sent {
    node: Arc<str>,
    /// Whether the model had to be brought into memory there.
    loads: bool,
    /// How long until its first piece, by the prediction, from `at` on.
    expect: Duration,
    at: Option<SystemTime>,
}

#[derive(Debug)]
struct Row {
    what: Running,
    sent: Mutex<Sent>,
    streams: AtomicBool,
    pieces: AtomicU64,
}

/// All that run.
#[derive(Debug, Default)]
pub(super) struct Under {
    rows: Mutex<(u64, BTreeMap<u64, Arc<Row>>)>,
}

/// One request that runs, until dropped.
#[derive(Debug)]
pub struct Place {
    under: Arc<Under>,
    number: u64,
    row: Arc<Row>,
}

impl Place {
    /// Who asks for what.
    pub fn what(&self) -> &Running {
        &self.row.what
    }

    /// It is sent to a node, where its first piece is expected after so long.
    pub fn sent(&self, node: &str, loads: bool, expect: Duration) {
        let at = Some(SystemTime::now());
        *self.row.sent.lock() = Sent { node: node.into(), loads, expect, at };
    }

    /// Its answer is here, so many pieces of it.
    pub fn streams(&self, pieces: u64) {
        self.row.streams.store(true, Relaxed);
        self.row.pieces.store(pieces, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.under.rows.lock().1.remove(&self.number);
    }
}

impl Under {
    pub(super) fn begins(under: &Arc<Under>, what: Running) -> Place {
        let row = Arc::new(Row {
            what,
            sent: Mutex::default(),
            streams: AtomicBool::new(false),
            pieces: AtomicU64::new(0),
        });
        let mut rows = under.rows.lock();
        rows.0 += 1;
        let number = rows.0;
        rows.1.insert(number, Arc::clone(&row));
        Place { under: Arc::clone(under), number, row }
    }

    /// The rows, the longest running first.
    pub(super) fn shown(&self, now: SystemTime) -> Vec<Value> {
        let rows: Vec<Arc<Row>> = self.rows.lock().1.values().take(SHOWN).cloned().collect();
        rows.iter().map(|row| row.shown(now)).collect()
    }
}

impl Row {
    fn shown(&self, now: SystemTime) -> Value {
        let ms = |from: SystemTime| {
            u64::try_from(now.duration_since(from).unwrap_or_default().as_millis()).unwrap_or(0)
        };
        let sent = self.sent.lock().clone();
        let state = match (self.streams.load(Relaxed), sent.loads) {
            (true, _) => "streaming",
            (false, true) => "loading",
            (false, false) => "waiting",
        };
        let expected = u64::try_from(sent.expect.as_millis()).unwrap_or(u64::MAX);
        let left =
            sent.at.filter(|_| state != "streaming").map(|at| expected.saturating_sub(ms(at)));
        let what = &self.what;
        json!({
            "since": timestamp(what.since), "caller": &*what.caller, "from": &*what.from,
            "client": what.client, "api": what.api.label(), "op": what.op.label(),
            "model": &*what.model, "node": &*sent.node, "state": state, "runsMs": ms(what.since),
            // By the prediction, and 0 when it is over.
            "leftMs": left,
            "pieces": self.pieces.load(Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_shown_from_its_first_step_to_its_end() {
        let under = Arc::new(Under::default());
        let start = SystemTime::now();
        let begin = |model: &str| {
            let what = Running {
                since: start,
                caller: "local".into(),
                from: "".into(),
                client: ClientKind::Openclaw,
                api: Api::Ollama,
                op: Op::Chat,
                model: model.into(),
            };
            Under::begins(&under, what)
        };
        let (one, two) = (begin("one"), begin("two"));
        let see = |field: &str| -> Vec<Value> {
            let rows = under.shown(start + Duration::from_secs(5));
            rows.iter().map(|row| row[field].clone()).collect()
        };
        assert_eq!(
            (see("model"), see("state")),
            (vec![json!("one"), json!("two")], vec![json!("waiting"); 2])
        );
        assert_eq!(see("leftMs"), [Value::Null, Value::Null]);
        one.sent("gpu", true, Duration::from_secs(3600));
        two.sent("gpu", false, Duration::from_secs(1));
        assert_eq!(
            (see("node"), see("state")),
            (vec![json!("gpu"); 2], vec![json!("loading"), json!("waiting")])
        );
        assert!(see("leftMs")[0].as_u64().unwrap() > 3_590_000 && see("leftMs")[1] == 0);
        one.streams(7);
        assert_eq!(
            (&see("state")[0], &see("pieces")[0], &see("runsMs")[0]),
            (&json!("streaming"), &json!(7), &json!(5000))
        );
        drop(one);
        assert_eq!(see("model"), ["two"]);
        drop(two);
        assert!(see("model").is_empty());
    }
}
