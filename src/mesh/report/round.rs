//! One round: every own offer as it stands, each row written once.
//!
//! A row that differs from the one told before by no more than the time that has passed is no
//! news: who holds it lets its wait run down by itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use crate::api::report::{Accepting, Bare, MOST_ROWS, Row};
use crate::directory::{Offer, Snapshot, ledger};
use crate::gate::{Gates, Share, Told};
use crate::types::{ModelKey, Moment, NodeId, Timing};

use super::holds;

/// A wait that is told again when it is wrong by more than this many milliseconds, or by an
/// eighth.
const WRONG: u64 = 250;

/// What is told to everybody, before it is cut to what each may see.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Counts up; rows say in which one they last changed. 0 = none was made yet.
    pub(super) number: u64,
    /// Counts signs of life.
    pub(super) beat: u64,
    /// Counts changes of which rows there are.
    pub(super) shape: u64,
    pub(super) rows: Vec<Entry>,
    pub(super) accepting: Accepting,
    pub(super) why: Arc<str>,
    /// The round in which that changed.
    pub(super) share_changed: u64,
    pub(super) bare: Arc<Vec<Bare>>,
    /// The round in which that changed.
    pub(super) bare_changed: u64,
    /// Within which time the next sign of life comes.
    pub(super) every: Duration,
    /// Whether anything waits here.
    pub(super) waits: bool,
    /// Whether anything changed.
    pub(super) is_news: bool,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: ModelKey,
    /// Its JSON.
    pub(super) json: Bytes,
    /// The round in which it last changed.
    pub(super) changed: u64,
    /// What the list of offers says of it that its row does not.
    pub(super) listed: u64,
    row: Row,
    /// When it was last told.
    at: Moment,
}

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Desk {
    last: Arc<Vec<Entry>>,
    number: u64,
    beat: u64,
    shape: u64,
    share: Share,
    share_changed: u64,
    bare: Arc<Vec<Bare>>,
    bare_changed: u64,
    every: Duration,
}

impl Desk {
    /// The next round. What this node's own choice has to know goes into the cells.
    pub(super) fn round(
        &mut self,
        snapshot: &Snapshot,
        gates: &Gates,
        share: &Share,
        due: bool,
        now: Moment,
        timing: &Timing,
    ) -> Round {
        self.number += 1;
        self.beat += u64::from(due);
        let own: Vec<&Arc<Offer>> = snapshot.own().filter(|o| !o.remote).take(MOST_ROWS).collect();
        let told = gates.rows(own.iter().copied());
        let mut rows = Vec::with_capacity(own.len());
        let (mut news, mut waits, mut works) = (false, false, ledger::is_busy(snapshot));
        for (offer, told) in own.iter().zip(told) {
            works |=
                told.row.running > 0 || told.row.queued > 0 || offer.cell.loading.load(Relaxed);
            waits |= told.row.queued > 0;
            offer.hear(&told.row, told.own, now);
            let entry = self.entry(offer, told, share, now);
            news |= entry.changed == self.number;
            rows.push(entry);
        }
        let same = self.last.len() == rows.len()
            && self
                .last
                .iter()
                .zip(&rows)
                .all(|(a, b)| a.key == b.key && a.row.engine == b.row.engine);
        if !same || self.number == 1 {
            self.shape += 1;
            news = true;
        }
        if self.share != *share {
            self.share = share.clone();
            self.share_changed = self.number;
            news = true;
        }
        let bare = ledger::told(snapshot, now);
        if !is_same_ledger(&self.bare, &bare) || (due && !bare.is_empty()) {
            self.bare = Arc::new(bare);
            self.bare_changed = self.number;
            news = true;
        }
        let every = match (works, share.sparing) {
            (true, _) => timing.report_busy,
            (false, true) => timing.report_sparing,
            (false, false) => timing.report_idle,
        };
        news |= std::mem::replace(&mut self.every, every) != every;
        if let Some(this) = snapshot.this() {
            this.cell.hear(now, holds(every, timing));
        }
        self.last = Arc::new(rows.clone());
        Round {
            number: self.number,
            beat: self.beat,
            shape: self.shape,
            rows,
            accepting: share.accepting,
            why: Arc::clone(&share.why),
            share_changed: self.share_changed,
            bare: Arc::clone(&self.bare),
            bare_changed: self.bare_changed,
            every,
            waits,
            is_news: news,
        }
    }

    /// The entry of an offer: the one told before, if it still says the same.
    fn entry(&self, offer: &Offer, told: Told, share: &Share, now: Moment) -> Entry {
        let row = share.over(told.row);
        let listed = listed(offer);
        let before = self.last.iter().find(|e| e.key == offer.key && e.row.engine == row.engine);
        match before {
            Some(before) if before.listed == listed && is_same(before, &row, now) => before.clone(),
            _ => Entry {
                key: offer.key.clone(),
                json: row.write().into(),
                changed: self.number,
                listed,
                row,
                at: now,
            },
        }
    }
}

/// Whether a row says what was told before, given the time since.
fn is_same(before: &Entry, row: &Row, now: Moment) -> bool {
    let passed = u64::try_from(now.since(before.at).as_millis()).unwrap_or(u64::MAX);
    let expected = before.row.wait_after(passed);
    let wrong = expected.abs_diff(row.wait_ms);
    wrong <= WRONG.max(row.wait_ms / 8)
        && *row == Row { wait_ms: row.wait_ms, ..before.row.clone() }
}

fn is_same_ledger(before: &[Bare], now: &[Bare]) -> bool {
    let plain = |b: &Bare| (b.at.clone(), b.inflight);
    before.len() == now.len() && before.iter().zip(now).all(|(a, b)| plain(a) == plain(b))
}

/// What the list of offers says of it and its row does not, and whether it is in memory.
fn listed(offer: &Offer) -> u64 {
    let mut hash = DefaultHasher::new();
    let engine = &offer.endpoint;
    (&engine.name, &engine.version, engine.apis.bits(), engine.slots, engine.default_ctx)
        .hash(&mut hash);
    (&offer.name, &offer.digest, offer.content, offer.capabilities, offer.num_ctx, offer.size)
        .hash(&mut hash);
    offer.cell.loaded_ctx.load(Relaxed).hash(&mut hash);
    hash.finish()
}

/// What a reader's list of offers is, as far as it may see it.
pub(super) fn list<'a>(rows: impl Iterator<Item = &'a Entry>) -> u64 {
    let mut hash = DefaultHasher::new();
    rows.for_each(|entry| (&entry.key, entry.listed).hash(&mut hash));
    hash.finish()
}

/// Whether a node is one that may be told anything: `This` is nobody's name for another.
pub(super) fn is_other(node: &NodeId) -> bool {
    *node != NodeId::This
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::report::State;
    use crate::directory::testing::{engine, model, picture};
    use crate::directory::{Event, Identity};
    use crate::gate::{GatesConfig, LoadRequest, Loader, Loading};
    use crate::telemetry::{Clock, Metrics};
    use crate::types::NodeName;

    struct Never;

    impl Loader for Never {
        fn load(&self, _: LoadRequest) -> Loading {
            Box::pin(std::future::pending())
        }
    }

    fn world(names: &[&str]) -> Snapshot {
        let this = Identity::lone(NodeName::parse("gpu").unwrap());
        let models = names.iter().map(|name| model(name)).collect();
        picture(this, vec![Event::Local(vec![engine("ollama", models)])])
    }

    fn gates() -> Arc<Gates> {
        let metrics = Metrics::new().unwrap();
        Gates::new(GatesConfig { queue: 9, num_parallel: None }, Clock::start(), metrics, |_| {
            Arc::new(Never)
        })
    }

    #[test]
    fn a_round_says_what_changed_and_how_soon_the_next_one_comes() {
        let (gates, timing, mut desk) = (gates(), Timing::default(), Desk::default());
        let plain = Share::default();
        let at = Moment::from_millis;
        let one = world(&["tiny"]);
        let first = desk.round(&one, &gates, &plain, true, at(0), &timing);
        assert_eq!((first.number, first.shape, first.beat, first.is_news), (1, 1, 1, true));
        assert_eq!((first.every, first.rows.len()), (timing.report_idle, 1));
        let same = desk.round(&one, &gates, &plain, false, at(60_000), &timing);
        assert!(!same.is_news && same.rows[0].changed == 1, "nothing happened");

        let tired = Share {
            accepting: Accepting::Mine,
            why: "battery".into(),
            sparing: true,
            ..Share::default()
        };
        let told = desk.round(&one, &gates, &tired, false, at(61_000), &timing);
        assert_eq!((told.share_changed, told.accepting), (3, Accepting::Mine));
        assert_eq!(told.every, timing.report_sparing, "every word costs");
        assert!(told.is_news && told.rows[0].changed == 3);
        assert!(String::from_utf8_lossy(&told.rows[0].json).contains(r#""why":"battery""#));

        let two = world(&["tiny", "big"]);
        let grown = desk.round(&two, &gates, &plain, false, at(62_000), &timing);
        assert_eq!((grown.shape, grown.rows.len(), grown.is_news), (2, 2, true));
        two.own().next().unwrap().cell.loading.store(true, Relaxed);
        let works = desk.round(&two, &gates, &plain, false, at(63_000), &timing);
        assert_eq!(works.every, timing.report_busy);
    }

    #[test]
    fn a_wait_that_runs_down_is_no_news_and_one_that_does_not_is() {
        let row = Row { wait_ms: 8000, state: State::Loaded, running: 1, ..Row::default() };
        let before = Entry {
            key: ModelKey::parse("tiny").unwrap(),
            json: Bytes::new(),
            changed: 1,
            listed: 0,
            row: row.clone(),
            at: Moment::ZERO,
        };
        let now = Moment::from_millis(2000);
        for (wait_ms, same) in
            [(6000, true), (6700, true), (5400, true), (8000, false), (4000, false)]
        {
            assert_eq!(is_same(&before, &Row { wait_ms, ..row.clone() }, now), same, "{wait_ms}");
        }
        let other = Row { wait_ms: 6000, running: 2, ..row };
        assert!(!is_same(&before, &other, now));
    }

    #[test]
    fn a_list_is_another_when_what_it_names_is() {
        let (gates, timing) = (gates(), Timing::default());
        let rows = |snapshot: &Snapshot| {
            let mut desk = Desk::default();
            desk.round(snapshot, &gates, &Share::default(), true, Moment::ZERO, &timing).rows
        };
        let (one, two) = (world(&["tiny"]), world(&["tiny", "big"]));
        let plain = list(rows(&one).iter());
        assert_eq!(plain, list(rows(&world(&["tiny"])).iter()));
        assert_ne!(plain, list(rows(&two).iter()));
        one.own().next().unwrap().cell.loaded_ctx.store(4096, Relaxed);
        assert_ne!(plain, list(rows(&one).iter()), "what is in memory is in the list, too");
    }
}
