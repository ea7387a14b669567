//! What requests that run side by side at one engine do to each other.
//!
//! All models of an engine share one processor. Answers are written side by side at little loss,
//! but prompts are not: two that are read at once take as long as one after the other, and the
//! first is done later for it. So a prompt waits while shorter ones are read. It is not read any
//! later for that, and they are read sooner.
//!
//! Of a prompt that was read the engine keeps what no later one is read over.

use std::sync::Arc;
use std::time::Duration;

use super::lane::{Running, Waiting};
use super::{Action, Queue, WaiterId};
use crate::types::{Class, Moment};

/// A prompt that is read in less waits for none.
const QUICK: Duration = Duration::from_millis(300);
/// A prompt has been read after this many times its prediction, if nothing else says so: an
/// answer that does not stream shows its first byte at its end.
const SURELY_READ: u32 = 2;
/// So many weights are counted; an engine has fewer.
const MOST_COUNTED: usize = 4096;

impl Queue {
    /// The first byte of a running request's answer is here: its prompt has been read.
    pub fn began(&mut self, id: WaiterId, now: Moment) -> Vec<Action> {
        let mut running = self.lanes.iter_mut().flat_map(|lane| &mut lane.running);
        match running.find(|run| run.id == id) {
            Some(run) => run.read = true,
            None => return Vec::new(),
        }
        self.settle(now)
    }

    /// Whether a request waits for shorter prompts to be read. Never for long: one that is
    /// overdue waits for none.
    pub(super) fn is_behind(&self, waiter: &Waiting, now: Moment) -> bool {
        waiter.reads > QUICK
            && !waiter.is_overdue(now)
            && self
                .lanes
                .iter()
                .flat_map(|lane| &lane.running)
                .any(|run| run.reads_left(now).is_some_and(|left| left < waiter.reads))
    }

    /// The best class of those that have a slot but wait for shorter prompts to be read: nobody
    /// of a worse one may begin meanwhile, or there would be shorter ones for ever.
    pub(super) fn class_behind(&self, now: Moment) -> Option<Class> {
        let ready = self.lanes.iter().filter(|lane| {
            lane.running.len() < lane.slots(self.slots) && (!self.loads || lane.in_memory(now))
        });
        let waiting = ready.flat_map(|lane| &lane.waiting);
        waiting.filter(|w| !self.is_capped(w) && self.is_behind(w, now)).map(|w| w.class).min()
    }

    /// How long the prompts that are being read still take.
    pub(super) fn reads_left(&self, now: Moment) -> Duration {
        let running = self.lanes.iter().flat_map(|lane| &lane.running);
        running.filter_map(|run| run.reads_left(now)).sum()
    }

    /// How many requests ever began on these weights here, a load counted as one for each slot:
    /// it leaves nothing of what was read.
    pub fn begun(&self, weights: &str) -> u32 {
        self.begun.get(weights).copied().unwrap_or_default()
    }

    /// So many more.
    pub(super) fn count_begun(&mut self, weights: &Arc<str>, requests: u32) {
        if self.begun.len() >= MOST_COUNTED && !self.begun.contains_key(weights) {
            self.begun.clear();
        }
        let begun = self.begun.entry(weights.clone()).or_default();
        *begun = begun.wrapping_add(requests);
    }

    /// Tells each lane how many run on the others.
    pub(super) fn count_others(&mut self) {
        let all = self.running();
        for lane in &mut self.lanes {
            lane.others = all - lane.running.len();
        }
    }
}

impl Running {
    /// How long its prompt will still be read; `None` = it has been.
    fn reads_left(&self, now: Moment) -> Option<Duration> {
        let gone = now.since(self.since);
        let reads = !self.read && gone < self.reads * SURELY_READ;
        reads.then(|| self.reads.saturating_sub(gone))
    }
}
