//! What an engine saw: for tests that count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use tokio::sync::watch;

/// One request that reached the engine.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: Method,
    /// Path, as it came, without the query.
    pub path: String,
    /// Query, if any.
    pub query: Option<String>,
    /// The model Ollama would use: the last `model` (else `name`) in any case.
    pub model: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body as it came (blob uploads are not kept).
    pub body: Bytes,
    /// The number of the connection it came on.
    pub connection: u64,
}

/// What goes on in an engine, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Requests being answered, from the slot to the end of the body.
    pub running: u64,
    /// Requests that wait for a load or a slot.
    pub waiting: u64,
    /// Answers that ran to their end.
    pub finished: u64,
    /// Answers that a fault ended.
    pub failed: u64,
    /// Requests whose client went away while they waited or ran.
    pub cancelled: u64,
    /// Loads begun.
    pub loads_started: u64,
    /// Loads that came to their end.
    pub loads_finished: u64,
    /// Loads ended by a client that went away.
    pub loads_aborted: u64,
    /// Models thrown out for another or for other options.
    pub evicted: u64,
    /// Tokens made.
    pub tokens: u64,
}

/// The engine's notebook.
#[derive(Debug)]
pub(super) struct Notes {
    seen: Mutex<Vec<Seen>>,
    sent: Mutex<Vec<Vec<u8>>>,
    counts: watch::Sender<Counts>,
    serial: AtomicU64,
}

impl Notes {
    pub(super) fn new() -> Self {
        Notes {
            seen: Mutex::default(),
            sent: Mutex::default(),
            counts: watch::Sender::new(Counts::default()),
            serial: AtomicU64::new(0),
        }
    }

    pub(super) fn saw(&self, seen: Seen) {
        self.seen.lock().push(seen);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(super) fn forget(&self) {
        self.seen.lock().clear();
        self.sent.lock().clear();
    }

    /// Opens the page on which a stream's bytes are kept.
    pub(super) fn page(&self) -> usize {
        let mut sent = self.sent.lock();
        sent.push(Vec::new());
        sent.len() - 1
    }

    pub(super) fn sends(&self, page: usize, bytes: &[u8]) {
        if let Some(page) = self.sent.lock().get_mut(page) {
            page.extend_from_slice(bytes);
        }
    }

    pub(super) fn sent(&self) -> Vec<Vec<u8>> {
        self.sent.lock().clone()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// A number never given before: for ids in answers.
    pub(super) fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Relaxed)
    }
}

/// A request from its acceptance to its end. Dropped without [`Visit::finish`], it counts as
/// cancelled: whoever waited for it has gone.
#[derive(Debug)]
pub(super) struct Visit {
    notes: std::sync::Arc<Notes>,
    at: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    Finished,
}

impl Visit {
    pub(super) fn new(notes: &std::sync::Arc<Notes>) -> Self {
        notes.count(|c| c.waiting += 1);
        Visit { notes: notes.clone(), at: Stage::Waiting }
    }

    pub(super) fn run(&mut self) {
        if self.at == Stage::Waiting {
            self.at = Stage::Running;
            self.notes.count(|c| {
                c.waiting -= 1;
                c.running += 1;
            });
        }
    }

    pub(super) fn token(&self) {
        self.notes.count(|c| c.tokens += 1);
    }

    pub(super) fn finish(&mut self) {
        self.end(|c| c.finished += 1);
    }

    pub(super) fn fail(&mut self) {
        self.end(|c| c.failed += 1);
    }

    fn end(&mut self, how: impl FnOnce(&mut Counts)) {
        let was = std::mem::replace(&mut self.at, Stage::Finished);
        if was != Stage::Finished {
            self.notes.count(|c| {
                leave(c, was);
                how(c);
            });
        }
    }
}

fn leave(c: &mut Counts, was: Stage) {
    match was {
        Stage::Waiting => c.waiting -= 1,
        Stage::Running => c.running -= 1,
        Stage::Finished => {}
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.at != Stage::Finished {
            let was = self.at;
            self.notes.count(|c| {
                leave(c, was);
                c.cancelled += 1;
            });
        }
    }
}
