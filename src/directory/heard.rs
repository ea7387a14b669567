//! What a node says of its own offers, as it is held here: the moment it came, how long it
//! holds, and what was sent there since.
//!
//! A row is a claim. What it may count for is said by [`claims`], which sees what became of
//! earlier ones. Readers take no lock: a row is replaced whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::cell::Cell;
use super::rests::Rests;
use super::snapshot::Offer;
use crate::api::report::{Accepting, Row, State, Yours};
use crate::balance::claims::{self, Kept, Punctuality};
use crate::types::Moment;

/// Prompt tokens a second where nobody says: a small machine.
const LEAST_PREFILL: f64 = 100.0;

/// One row, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Seconds a new request would wait, its load included, when the row was made.
    pub wait: f64,
    /// The part of it that does not pass by itself: a load which nobody has begun.
    pub load: f64,
    /// Whether that load would put nothing else out of memory there.
    pub fits: bool,
    /// Requests it runs at once.
    pub slots: u32,
    /// Requests that ran.
    pub running: u32,
    /// Requests that waited.
    pub queued: u32,
    /// Requests that ever began there; 0 = not said.
    pub begun: u32,
    /// Prompt tokens a second; 0 = not said, as in the next two.
    pub prefill: f64,
    /// Answer tokens a second.
    pub decode: f64,
    /// Bytes of weights loaded a second.
    pub load_rate: f64,
    /// For whom its node works.
    pub accepting: Accepting,
    /// When it came.
    at: Moment,
    /// How many requests of ours had been sent there by then.
    sent: u64,
}

/// What is held of one offer's reports.
#[derive(Debug, Default)]
pub struct Reported {
    row: ArcSwapOption<Heard>,
    /// Requests of ours that were ever sent there, and when the last one was.
    sent: AtomicU64,
    sent_at: AtomicU64,
    /// Requests of ours that were answered whole there.
    answered: AtomicU32,
    /// Requests of ours there whose answer has begun.
    begun: AtomicU32,
    /// Milliseconds since the start at which those should have ended, added up.
    due: AtomicU64,
    /// Milliseconds that the others will take once it is their turn, added up.
    work: AtomicU64,
    /// How well it kept what it said.
    kept: Mutex<Punctuality>,
    /// Requests of other sidecars there, as they say: of an engine without one.
    others: AtomicU32,
    /// Milliseconds that those will keep it busy, together.
    others_left: AtomicU64,
}

/// A report as it counts now.
#[derive(Debug, Clone)]
pub struct Believed {
    /// What was said.
    pub row: Arc<Heard>,
    /// Seconds a new request waits now.
    pub wait: f64,
}

impl Heard {
    /// How long ago it came.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.at)
    }
}

impl Reported {
    /// A row came: from the stream, or with an answer.
    pub(super) fn came(&self, row: &Row, wait: Duration, rtt: Duration, now: Moment) {
        let sent = self.sent.load(Relaxed);
        // What left less than a round trip before is not in it.
        let last = Moment::from_millis(self.sent_at.load(Relaxed));
        let crossing = sent > 0 && now.since(last) < rtt;
        self.row.store(Some(Arc::new(Heard {
            wait: wait.as_secs_f64(),
            load: Duration::from_millis(row.load_ms).min(wait).as_secs_f64(),
            fits: row.fits,
            slots: row.slots,
            running: row.running,
            queued: row.queued,
            begun: row.begun,
            prefill: row.prefill,
            decode: row.decode,
            load_rate: row.load_rate,
            accepting: row.accepting,
            at: now,
            sent: sent - u64::from(crossing),
        })));
    }

    /// What is believed of its node's last word, if that is still worth anything. Somebody may have
    /// had the model loaded past its gate, which is seen in the node's list before it is said in a
    /// row: then nobody waits for that load.
    fn believed(&self, node: &NodeCell, loaded: bool, now: Moment) -> Option<Believed> {
        let row = self.row.load_full()?;
        let age = now.since(row.at);
        if now.since(row.at.max(node.heard())) > node.holds() {
            return None;
        }
        let left = (row.wait - age.as_secs_f64()).max(row.load);
        let wait = left.max(self.kept.lock().floor(now));
        let wait = if loaded { (wait - row.load).max(0.0) } else { wait };
        Some(Believed { row, wait })
    }

    /// How well it kept what it said.
    pub(super) fn kept(&self, now: Moment) -> Option<Kept> {
        self.kept.lock().kept(now)
    }

    /// Takes over how well it kept what it said in an earlier run.
    pub(super) fn recall(&self, kept: &Kept, age: Duration) {
        self.kept.lock().recall(kept, age);
    }

    /// What was said of it holds no longer.
    pub fn forget(&self) {
        self.row.store(None);
    }

    /// How many requests of ours, of those that are there, are not in that row: they were sent
    /// after it, or it does not own up to them.
    pub fn since(&self, row: &Heard, inflight: u32) -> u32 {
        let sent = self.sent.load(Relaxed).saturating_sub(row.sent);
        let sent = u32::try_from(sent).unwrap_or(u32::MAX).min(inflight);
        sent.max(inflight.saturating_sub(row.running.saturating_add(row.queued)))
    }

    /// How many requests ever began there, by its last word; 0 = it did not say.
    pub fn begun(&self) -> u32 {
        self.row.load().as_ref().map_or(0, |row| row.begun)
    }

    /// Requests of ours that were answered whole there.
    pub fn answered(&self) -> u32 {
        self.answered.load(Relaxed)
    }

    /// Requests of other sidecars there.
    pub fn others(&self) -> u32 {
        self.others.load(Relaxed)
    }

    /// A sidecar says that so many more of its requests are there, which keep it busy for so
    /// long; taken back by [`Reported::fewer`].
    pub fn more(&self, requests: u32, left: u64) {
        self.others.fetch_add(requests, Relaxed);
        self.others_left.fetch_add(left, Relaxed);
    }

    /// So many of those are gone.
    pub fn fewer(&self, requests: u32, left: u64) {
        self.others.fetch_sub(requests, Relaxed);
        self.others_left.fetch_sub(left, Relaxed);
    }

    /// How long the requests of ours that are there will keep it busy, together: who waits loses
    /// nothing of its work by waiting.
    pub fn left(&self, now: Moment) -> Duration {
        let begun = u64::from(self.begun.load(Relaxed));
        let due = self.due.load(Relaxed).saturating_sub(now.millis().saturating_mul(begun));
        // What is overdue is never "done any moment".
        Duration::from_millis(due.max(begun * 250).saturating_add(self.work.load(Relaxed)))
    }

    /// The same of everybody's requests, as far as they say.
    pub fn left_of_all(&self, now: Moment) -> Duration {
        self.left(now) + Duration::from_millis(self.others_left.load(Relaxed))
    }
}

/// The live numbers of one node.
#[derive(Debug, Default)]
pub struct NodeCell {
    /// Requests of ours that are there now.
    inflight: AtomicU32,
    /// Requests of ours that were answered whole there.
    answered: AtomicU32,
    /// Its coming back after it was away.
    pub(super) back: Rests,
    /// Whether it was there, and then could not be reached.
    away: AtomicBool,
    known: AtomicBool,
    /// When it last said something (milliseconds since the start).
    heard: AtomicU64,
    /// For how long that holds.
    holds: AtomicU64,
    said: ArcSwapOption<(Accepting, Arc<str>)>,
    waiting: ArcSwap<Vec<Yours>>,
    waiting_at: AtomicU64,
    /// Whether its reports are coming in.
    live: AtomicBool,
}

impl NodeCell {
    /// It said something that holds for so long, if nothing else is heard.
    pub fn hear(&self, now: Moment, holds: Duration) {
        self.heard.store(now.millis(), Relaxed);
        self.hold(holds);
    }

    /// What it said holds for so long.
    pub fn hold(&self, holds: Duration) {
        self.holds.store(millis(holds), Relaxed);
    }

    /// Something came beside its reports, if there are any.
    pub fn hold_at_least(&self, holds: Duration) {
        self.holds.fetch_max(millis(holds), Relaxed);
    }

    /// Whether its reports are coming in: what changes there is told at once.
    pub fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Its reports have begun or ended.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, Relaxed);
    }

    /// It says for whom it works, and why not for all.
    pub fn accepts(&self, whom: Accepting, why: &str) {
        let same = self.said.load().as_ref().is_some_and(|s| s.0 == whom && *s.1 == *why);
        if !same {
            self.said.store(Some(Arc::new((whom, why.into()))));
        }
    }

    /// For whom it works, and why not for all; `None` = it never said.
    pub fn accepting(&self) -> Option<(Accepting, Arc<str>)> {
        self.said.load().as_ref().map(|said| (said.0, Arc::clone(&said.1)))
    }

    /// Whether it said that it was about to sleep.
    pub fn is_asleep(&self) -> bool {
        let said = self.said.load();
        said.as_ref().is_some_and(|said| {
            let sleeps = said.1.starts_with("asleep") || said.1.starts_with("going to sleep");
            said.0 == Accepting::None && sleeps
        })
    }

    /// All requests of ours that wait there, as it says.
    pub fn waits(&self, yours: Vec<Yours>, now: Moment) {
        if !yours.is_empty() || !self.waiting.load().is_empty() {
            self.waiting.store(Arc::new(yours));
        }
        self.waiting_at.store(now.millis(), Relaxed);
    }

    /// How long a request of ours still waits there, as it said at that moment; `None` in the
    /// first place = it has started, if the moment is later than that of its sending.
    pub fn waiting(&self, attempt: &str) -> (Option<Duration>, Moment) {
        let waiting = self.waiting.load();
        let found = waiting.iter().find(|yours| yours.attempt == attempt);
        let wait = found.map(|yours| Duration::from_millis(yours.wait_ms));
        (wait, Moment::from_millis(self.waiting_at.load(Relaxed)))
    }

    /// Requests of ours that are there now.
    pub(super) fn inflight(&self) -> u32 {
        self.inflight.load(Relaxed)
    }

    /// Whether it can be reached now. Who was there, went and is back is tried before it gets
    /// all that waits elsewhere.
    pub(super) fn seen(&self, reached: bool, now: Moment) {
        if !reached {
            self.away.store(self.known.load(Relaxed), Relaxed);
        } else if self.away.swap(false, Relaxed) {
            self.back.back(now);
        }
        self.known.fetch_or(reached, Relaxed);
    }

    /// A request of ours that was sent at `began` was answered there.
    pub fn is_back(&self, began: Moment, now: Moment) {
        self.back.answered(began, now);
    }

    /// Whether one more request of ours would be too many: nobody knows yet what it can do.
    pub fn is_held(&self) -> bool {
        claims::is_held(self.answered.load(Relaxed), self.inflight())
    }

    fn heard(&self) -> Moment {
        Moment::from_millis(self.heard.load(Relaxed))
    }

    fn holds(&self) -> Duration {
        Duration::from_millis(self.holds.load(Relaxed))
    }
}

/// A request of ours at an offer: counted while it is there, and a measure of what its node
/// said once its answer begins.
#[derive(Debug)]
pub struct Sent {
    offer: Arc<Offer>,
    at: Moment,
    /// Milliseconds the engine works for it, and those of them in which it reads the prompt.
    work: u64,
    reads: u64,
    /// When it should have ended, once its answer has begun.
    due: Option<u64>,
    /// Seconds to the first byte, by what its node said.
    said: Option<f64>,
}

impl Sent {
    /// A request leaves for an offer, where it should keep the engine busy for `work`, of which
    /// its prompt is read for `reads`. `prompt`: its tokens, if the way there is no part of the
    /// time to its first byte that counts.
    pub fn new(
        offer: &Arc<Offer>,
        work: Duration,
        reads: Duration,
        prompt: Option<f64>,
        now: Moment,
    ) -> Sent {
        let (cell, node) = (&offer.cell, &offer.node.cell);
        let said = match prompt.filter(|_| !offer.node.is_this()) {
            Some(prompt) => said(offer, prompt, now),
            None => None,
        };
        let (work, reads) = (millis(work), millis(reads));
        cell.inflight.fetch_add(1, Relaxed);
        node.inflight.fetch_add(1, Relaxed);
        cell.report.sent.fetch_add(1, Relaxed);
        cell.report.sent_at.store(now.millis(), Relaxed);
        cell.report.work.fetch_add(work, Relaxed);
        Sent { offer: Arc::clone(offer), at: now, work, reads, due: None, said }
    }

    /// The first byte of its answer is here.
    pub fn began(&mut self, now: Moment) {
        if let Some(said) = self.said.take() {
            let took = now.since(self.at).as_secs_f64();
            self.offer.cell.report.kept.lock().came(said, took, now);
        }
        if self.due.is_none() {
            let due = now.millis().saturating_add(self.work.saturating_sub(self.reads));
            self.due = Some(due);
            let report = &self.offer.cell.report;
            report.work.fetch_sub(self.work, Relaxed);
            report.begun.fetch_add(1, Relaxed);
            report.due.fetch_add(due, Relaxed);
        }
    }

    /// Its answer is here, whole.
    pub fn answered(&self) {
        self.offer.cell.report.answered.fetch_add(1, Relaxed);
        self.offer.node.cell.answered.fetch_add(1, Relaxed);
    }

    /// The live numbers of what it was sent to.
    pub fn cell(&self) -> &Arc<Cell> {
        &self.offer.cell
    }
}

/// Seconds to the first byte, by what the node says of itself; `None` where more was sent there
/// since, which it could not know of.
fn said(offer: &Offer, prompt: f64, now: Moment) -> Option<f64> {
    let (cell, believed) = (&offer.cell, offer.believed(now)?);
    if cell.report.since(&believed.row, cell.inflight.load(Relaxed)) > 0 {
        return None;
    }
    let speed = [believed.row.prefill, cell.prefill.get()].into_iter().find(|s| *s > 0.0);
    Some(believed.wait + prompt / speed.unwrap_or(LEAST_PREFILL))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for Sent {
    fn drop(&mut self) {
        let (cell, node) = (&self.offer.cell, &self.offer.node.cell);
        cell.inflight.fetch_sub(1, Relaxed);
        node.inflight.fetch_sub(1, Relaxed);
        match self.due {
            Some(due) => {
                cell.report.begun.fetch_sub(1, Relaxed);
                cell.report.due.fetch_sub(due, Relaxed);
            }
            None => drop(cell.report.work.fetch_sub(self.work, Relaxed)),
        }
    }
}

impl Offer {
    /// What is believed of its node's last word of it, if that is still worth anything.
    pub fn believed(&self, now: Moment) -> Option<Believed> {
        self.cell.report.believed(&self.node.cell, self.cell.is_loaded(), now)
    }

    /// Takes in what its node says of it: `wait` for requests like ours.
    pub fn hear(&self, row: &Row, wait: Duration, now: Moment) {
        let cell = &self.cell;
        cell.running.store(row.running, Relaxed);
        // Of this node's own the gate writes the rest itself, or the engine says it.
        if !self.node.is_this() {
            let loaded = row.state == State::Loaded;
            cell.set_loaded(if loaded { row.num_ctx } else { 0 });
            cell.loading.store(row.state == State::Loading, Relaxed);
            cell.queued.store(row.queued, Relaxed);
        }
        let rtt = self.node.best_path().and_then(|path| path.cell.rtt()).unwrap_or_default();
        cell.report.came(row, wait, rtt, now);
    }
}

#[cfg(test)]
mod tests;
