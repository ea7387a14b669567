//! One reader's stream: rounds in, lines out.
//!
//! Before each line it is asked anew who the reader is and what it may list; less than before,
//! or other rows, begin a full report. A reader who is slow misses rounds, never rows: the next
//! line holds whatever has changed since its last.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::api::report::{Accepting, Line, MOST_LINE, MOST_YOURS, VERSION, Yours};
use crate::gate::Gates;
use crate::net::Identity;
use crate::trust::Access;
use crate::types::{Caller, Verb};

use super::round::{Round, is_other, list};
use super::{Place, Sources};

/// Whoever reads.
pub(super) struct Reader {
    who: Arc<Identity>,
    place: Place,
    gates: Arc<Gates>,
    rounds: watch::Receiver<Arc<Round>>,
    access: watch::Receiver<Arc<Access>>,
    draining: watch::Receiver<bool>,
    judged: Option<Judged>,
    /// Rows that did not fit into the last line.
    backlog: VecDeque<Bytes>,
    told: Told,
    ended: bool,
}

/// What the reader may see, and of what that was made.
struct Judged {
    caller: Arc<Caller>,
    access: Arc<Access>,
    shape: u64,
    /// Places in the round's rows.
    rows: Vec<usize>,
}

/// What was told last.
#[derive(Default)]
struct Told {
    seq: u64,
    /// 0 = nothing yet.
    round: u64,
    beat: u64,
    rows: Vec<usize>,
    shape: u64,
    list: u64,
    every: u64,
    yours: bool,
}

impl Reader {
    pub(super) fn new(
        sources: &Sources,
        rounds: watch::Receiver<Arc<Round>>,
        who: Arc<Identity>,
        place: Place,
    ) -> Reader {
        Reader {
            who,
            place,
            gates: Arc::clone(&sources.gates),
            rounds,
            access: sources.access.clone(),
            draining: sources.draining.clone(),
            judged: None,
            backlog: VecDeque::new(),
            told: Told::default(),
            ended: false,
        }
    }

    /// The next line; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        loop {
            if self.told.round > 0 && self.backlog.is_empty() {
                tokio::select! {
                    changed = self.rounds.changed() => if changed.is_err() { return None },
                    changed = self.access.changed() => if changed.is_err() { return None },
                    _ = self.draining.wait_for(|draining| *draining) => {}
                }
            }
            if *self.draining.borrow() {
                self.ended = true;
                return Some(self.last_words());
            }
            let round = Arc::clone(&self.rounds.borrow_and_update());
            if round.number == 0 {
                // Started a moment ago.
                self.rounds.changed().await.ok()?;
                continue;
            }
            if !self.place.holds() || !self.judge(&round).await {
                return None;
            }
            if let Some(line) = self.line(&round) {
                return Some(line);
            }
        }
    }

    /// Finds out what the reader may see now; false if nothing any more.
    async fn judge(&mut self, round: &Round) -> bool {
        let Ok(caller) = self.who.caller().await else { return false };
        let access = Arc::clone(&self.access.borrow_and_update());
        if let Some(judged) = &self.judged
            && Arc::ptr_eq(&judged.caller, &caller)
            && Arc::ptr_eq(&judged.access, &access)
            && judged.shape == round.shape
        {
            return true;
        }
        let granted = access.of(&caller);
        if !caller.node_id().is_some_and(|id| is_other(&id) && id == self.place.node)
            || !granted.has(Verb::List)
        {
            return false;
        }
        let seen = |entry: &super::round::Entry| granted.may(Verb::List, &entry.key).is_some();
        let rows = round.rows.iter().enumerate().filter(|(_, e)| seen(e)).map(|(at, _)| at);
        let rows = rows.collect();
        self.judged = Some(Judged { caller, access, shape: round.shape, rows });
        true
    }

    /// What there is to say; `None` = nothing.
    fn line(&mut self, round: &Round) -> Option<Bytes> {
        let judged = self.judged.as_ref()?;
        let told = &mut self.told;
        let first = told.round == 0;
        let full = first || told.shape != round.shape || told.rows != judged.rows;
        let since = if full { 0 } else { told.round };
        let entries = || judged.rows.iter().filter_map(|at| round.rows.get(*at));
        if full {
            self.backlog.clear();
        }
        let seen = (told.round != round.number) || full;
        if seen {
            self.backlog.extend(entries().filter(|e| e.changed > since).map(|e| e.json.clone()));
        }
        let list = list(entries());
        let every = u64::try_from(round.every.as_millis()).unwrap_or(u64::MAX);
        let waiting = if round.waits { self.gates.waiting(&self.place.node) } else { Vec::new() };
        let yours = told.yours || !waiting.is_empty();
        let share = first || round.share_changed > since;
        let bare = round.bare_changed > since && !(first && round.bare.is_empty());
        let news = full
            || !self.backlog.is_empty()
            || told.list != list
            || told.every != every
            || yours
            || (seen && (share || bare))
            || told.beat != round.beat;
        if !news {
            told.round = round.number;
            return None;
        }
        told.seq += 1;
        let millis =
            |wait: std::time::Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let line = Line {
            v: if full { VERSION } else { 0 },
            seq: told.seq,
            full,
            next_ms: if full || told.every != every { every } else { 0 },
            accepting: (full || share).then_some(round.accepting),
            why: if full || share { Cow::Borrowed(&*round.why) } else { Cow::Borrowed("") },
            list: match full || told.list != list {
                true => Cow::Owned(format!("{list:016x}")),
                false => Cow::Borrowed(""),
            },
            yours: yours.then(|| {
                let waiting = waiting.iter().take(MOST_YOURS);
                waiting
                    .map(|(id, left)| Yours { attempt: id.to_string(), wait_ms: millis(*left) })
                    .collect()
            }),
            bare: (seen && bare).then(|| round.bare.to_vec()),
            rows: Vec::new(),
        };
        *told = Told {
            seq: told.seq,
            round: round.number,
            beat: round.beat,
            rows: judged.rows.clone(),
            shape: round.shape,
            list,
            every,
            yours: !waiting.is_empty(),
        };
        Some(with_rows(&line, &mut self.backlog))
    }

    /// This node is about to stop: nobody should come any more.
    fn last_words(&mut self) -> Bytes {
        self.told.seq += 1;
        let line = Line {
            v: VERSION,
            seq: self.told.seq,
            full: self.told.round == 0,
            accepting: Some(Accepting::None),
            why: Cow::Borrowed("stopping"),
            ..Line::default()
        };
        with_rows(&line, &mut VecDeque::new())
    }
}

/// The line as bytes, with as many of the rows as fit.
fn with_rows(line: &Line<'_>, rows: &mut VecDeque<Bytes>) -> Bytes {
    // Plain data always has a JSON form.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    let mut first = true;
    // The brackets and the end of the line.
    let room = MOST_LINE - 16;
    while let Some(row) = rows.front() {
        if text.len() + row.len() + 1 > room && !first {
            break;
        }
        if first {
            text.pop();
            text.extend_from_slice(b",\"rows\":[");
        } else {
            text.push(b',');
        }
        text.extend_from_slice(row);
        rows.pop_front();
        first = false;
    }
    if !first {
        text.extend_from_slice(b"]}");
    }
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::report::Row;

    #[test]
    fn what_does_not_fit_into_one_line_comes_with_the_next() {
        let row = |n: usize| Row {
            engine: "ollama".into(),
            name: format!("{}{n}", "m".repeat(200)),
            ..Row::default()
        };
        let mut rows: VecDeque<Bytes> = (0..512).map(|n| row(n).write().into()).collect();
        let mut seen = 0;
        while !rows.is_empty() {
            let line = Line { seq: 7, ..Line::default() };
            let text = with_rows(&line, &mut rows);
            assert!(text.len() <= MOST_LINE, "{}", text.len());
            let (end, json) = text.split_last().unwrap();
            assert_eq!(*end, b'\n');
            let read = Line::read(json).unwrap();
            assert_eq!(read.rows.first().map(|r| r.name.clone()), Some(row(seen).name));
            seen += read.rows.len();
        }
        assert_eq!(seen, 512);
        let beat = with_rows(&Line { seq: 8, ..Line::default() }, &mut rows);
        assert_eq!(&*beat, b"{\"seq\":8}\n");
    }
}
