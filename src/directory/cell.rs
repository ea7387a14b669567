//! Live numbers, shared by all snapshots.
//!
//! A snapshot is rebuilt when membership, paths or offers change. What changes with every
//! request lives here, in atomics, so that the data side reads and writes it without a lock
//! and without a new snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::heard::Reported;
use super::mates::Mates;
use super::rate::{Lengths, Rate};
use super::rests::Rests;
use crate::balance::prefix::{Print, Recent};
use crate::balance::prompt::{self, Count};
use crate::balance::rates::{self, Estimate, Reply, Sample};
use crate::types::{ClientKind, Digest, Moment};

/// How long what was seen to be slow counts as slow, if nothing else is seen.
const SLOW: Duration = Duration::from_secs(30);
/// So many times slower than known is far below.
const FAR_BELOW: f64 = 2.5;
/// Answers of less trust are not compared: they are short, or one of many.
const SURE: f64 = 0.3;

/// The live numbers of one model at one endpoint.
#[derive(Debug, Default)]
pub struct Cell {
    /// Requests of ours that are there now, from the choice to the end of the body.
    pub inflight: AtomicU32,
    /// Requests running there of all callers, ours included, as that node last said.
    pub running: AtomicU32,
    /// Requests waiting in that node's gate, as far as we know.
    pub queued: AtomicU32,
    /// Context window it is loaded with; 0 = not loaded; 1 = loaded, window unknown.
    pub loaded_ctx: AtomicU64,
    /// Whether it is being loaded.
    pub loading: AtomicBool,
    /// Prompt tokens a second, measured on prompts that were not cached.
    pub prefill: Rate,
    /// Answer tokens a second of a lone request.
    pub decode: Rate,
    /// Seconds to the first byte of a stream, as seen here.
    pub ttft: Rate,
    /// Tokens that it makes of a byte of text.
    pub per_byte: Rate,
    /// Bytes of weights loaded a second: its engine's, whatever the model.
    pub load_rate: Arc<Rate>,
    /// What its engine's speeds are for a model of one byte.
    pub scale: Arc<Scale>,
    /// How long the model's answers are, wherever they are given.
    pub lengths: Arc<Lengths>,
    /// Bytes of the model; 0 = not known.
    pub size: AtomicU64,
    /// What its speeds are about: the content that had this digest.
    digest: Mutex<Option<Digest>>,
    /// The last prompts that were read there for us.
    recent: Mutex<Recent>,
    /// Its failures, and how it is tried again.
    pub rests: Rests,
    /// What part of its usual speed is left, if it is far below, and until when that is believed.
    slow: Mutex<Option<(f64, Moment)>>,
    is_slow: AtomicBool,
    /// Answers in a row that came far below the speed known.
    slow_answers: AtomicU32,
    /// The other models of its engine.
    pub mates: Arc<Mates>,
    /// What its node says of it, and what is believed of that.
    pub report: Reported,
}

impl Cell {
    /// A cell that shares what its engine's and its model's other cells have seen.
    pub fn of(
        load_rate: Arc<Rate>,
        scale: Arc<Scale>,
        lengths: Arc<Lengths>,
        mates: Arc<Mates>,
    ) -> Cell {
        Cell { load_rate, scale, lengths, mates, ..Cell::default() }
    }

    /// Whether it is in memory.
    pub fn is_loaded(&self) -> bool {
        self.loaded_ctx.load(Relaxed) > 0
    }

    /// The model is of this size and content. Speeds of other content under its name are
    /// forgotten.
    pub fn about(&self, digest: Option<&Digest>, size: u64) {
        self.size.store(size, Relaxed);
        let mut about = self.digest.lock();
        if digest.is_none() || about.as_ref() == digest {
            return;
        }
        if std::mem::replace(&mut *about, digest.cloned()).is_some() {
            for rate in [&self.prefill, &self.decode, &self.ttft, &self.per_byte] {
                rate.reset();
            }
        }
    }

    /// What its speeds are about.
    pub fn digest(&self) -> Option<Digest> {
        self.digest.lock().clone()
    }

    /// It is in memory with this window, or no more ([`Cell::loaded_ctx`]). What its engine had
    /// read goes with it.
    pub fn set_loaded(&self, window: u64) {
        let was = self.loaded_ctx.swap(window, Relaxed);
        // 1 is a window that was not known yet.
        if was > 0 && was != window && (was != 1 || window == 0) {
            self.recent.lock().clear();
        }
    }

    /// The share of a prompt that its engine, of so many slots, probably still has.
    pub fn keeps(&self, prompt: &Print, slots: u32) -> f64 {
        if prompt.is_empty() || !self.is_loaded() {
            return 0.0;
        }
        self.recent.lock().kept(prompt, self.report.begun(), slots)
    }

    /// The share of a prompt that it has read just before; notes the prompt.
    pub fn read_before(&self, prompt: Print) -> f64 {
        let mut recent = self.recent.lock();
        let share = recent.share(&prompt);
        recent.note(prompt, self.report.begun());
        share
    }

    /// Learns from a successful answer that has ended.
    pub fn learn(&self, reply: &Reply, client: ClientKind, now: Moment) {
        let size = self.size.load(Relaxed) as f64;
        let sized = |sample: Sample| Sample { value: sample.value * size, ..sample };
        if let Some(sample) = rates::decode(reply) {
            self.compare(sample, now);
            self.decode.learn(sample, rates::SPEED, now);
            self.scale.decode.learn(sized(sample), rates::SPEED, now);
        }
        if let Some(sample) = rates::prefill(reply, self.prefill.estimate()) {
            self.prefill.learn(sample, rates::SPEED, now);
            self.scale.prefill.learn(sized(sample), rates::SPEED, now);
        }
        if let Some(sample) = rates::length(reply, self.lengths.of(client)) {
            self.lengths.learn(client, sample, now);
        }
    }

    /// Learns how long prompts are there.
    pub fn counted(&self, count: &Count, now: Moment) {
        if let Some(sample) = prompt::per_byte(count) {
            self.per_byte.learn(sample, rates::SPEED, now);
        }
    }

    /// Two answers in a row far below what is known say at once what the estimate learns slowly.
    fn compare(&self, sample: Sample, now: Moment) {
        let Some(known) = self.decode.estimate().known() else { return };
        if sample.trust < SURE {
            return;
        }
        if sample.value * FAR_BELOW > known {
            self.slow_answers.store(0, Relaxed);
            self.as_usual();
        } else if self.slow_answers.fetch_add(1, Relaxed) > 0 {
            self.slowed(sample.value / known, now);
        }
    }

    /// Only this part of its usual speed is left.
    pub fn slowed(&self, part: f64, now: Moment) {
        *self.slow.lock() = Some((part, now + SLOW));
        self.is_slow.store(true, Relaxed);
    }

    /// It is as fast as it was.
    pub fn as_usual(&self) {
        self.is_slow.store(false, Relaxed);
    }

    /// What part of its usual speed is left now.
    pub fn part(&self, now: Moment) -> f64 {
        if !self.is_slow.load(Relaxed) {
            return 1.0;
        }
        self.slow.lock().filter(|(_, until)| now < *until).map_or(1.0, |(part, _)| part)
    }

    /// A load of it took so long.
    pub fn loaded_in(&self, took: Duration, bytes: u64, now: Moment) {
        if let Some(sample) = rates::load(bytes, took) {
            self.load_rate.learn(sample, rates::LOAD, now);
        }
    }

    /// Prompt and answer tokens a second: as measured, or as other models of its engine let
    /// expect for one of its size. 0 = neither.
    pub fn speeds(&self) -> (f64, f64) {
        let size = self.size.load(Relaxed) as f64;
        let guess = |rate: &Rate, scale: &Rate| match rate.get() {
            known if known > 0.0 => known,
            _ if size > 0.0 => scale.get() / size,
            _ => 0.0,
        };
        (guess(&self.prefill, &self.scale.prefill), guess(&self.decode, &self.scale.decode))
    }

    /// How long ago a speed of it was last measured; `None` = never.
    pub fn measured(&self, now: Moment) -> Option<Duration> {
        [&self.prefill, &self.decode].into_iter().filter_map(|rate| rate.age(now)).min()
    }
}

/// What an engine's speeds are for a model of one byte: a model of twice the size runs at about
/// half the speed, so one model that was measured lets expect what another will do.
#[derive(Debug, Default)]
pub struct Scale {
    /// Prompt tokens a second, times bytes.
    pub prefill: Rate,
    /// Answer tokens a second, times bytes.
    pub decode: Rate,
}

impl Scale {
    /// Takes over what an earlier run measured of one model.
    pub(super) fn recall(&self, size: u64, prefill: f64, decode: f64, age: Duration) {
        for (rate, value) in [(&self.prefill, prefill), (&self.decode, decode)] {
            rate.recall(Estimate { value: value * size as f64, trust: 1.0 }, age);
        }
    }
}

/// The live numbers of one path to one node.
#[derive(Debug, Default)]
pub struct PathCell {
    /// Whether the last probes or requests came through.
    pub alive: AtomicBool,
    /// Smoothed round trip of the probes, microseconds; 0 = never measured.
    pub rtt_us: AtomicU64,
    /// When something last came back on it (milliseconds since the start; 0 = never).
    pub last_ok: AtomicU64,
    /// Probes missed in a row.
    pub misses: AtomicU32,
    /// Bytes of request bodies a second, as far as large ones went this kind of way to that
    /// node.
    pub uplink: Arc<Rate>,
    /// Whether the peer answers on it and would serve us on another path only. Never with
    /// `alive`.
    standby: AtomicBool,
    /// Why it is not used, for showing; empty while it is.
    why: Mutex<Arc<str>>,
}

impl PathCell {
    /// A path of a kind on which bodies went that fast to that node.
    pub fn with_uplink(uplink: Arc<Rate>) -> PathCell {
        PathCell { uplink, ..PathCell::default() }
    }

    /// Something came back. True if the path was dead until now.
    pub fn ok(&self, now: Moment, rtt: Option<Duration>) -> bool {
        let was_alive = self.alive.swap(true, Relaxed);
        let stood_by = self.standby.swap(false, Relaxed);
        let missed = self.misses.swap(0, Relaxed) > 0;
        // Every answer comes by here: the lock is for those that change something.
        if !was_alive || stood_by || missed {
            *self.why.lock() = Arc::from("");
        }
        self.last_ok.store(now.millis().max(1), Relaxed);
        if let Some(rtt) = rtt {
            let new = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
            let old = self.rtt_us.load(Relaxed);
            // A quick answer shows what the way can do. A slow one may have waited for a tunnel
            // that was cold, or for a process that slept, and says little.
            let between = match new < old {
                true => old.saturating_add(new.saturating_mul(3)) / 4,
                false => old.saturating_mul(7).saturating_add(new) / 8,
            };
            self.rtt_us.store(if old == 0 { new } else { between }, Relaxed);
        }
        !was_alive
    }

    /// A probe got no answer. The `limit`th in a row is the path's death: true exactly then.
    pub fn miss(&self, limit: u32) -> bool {
        let misses = self.misses.fetch_add(1, Relaxed).saturating_add(1);
        misses >= limit && self.end()
    }

    /// Something that cannot be doubted (a refused connection, three unanswered pings) says
    /// the path is dead. True if it was alive or stood by until now.
    pub fn lost(&self) -> bool {
        self.misses.fetch_add(1, Relaxed);
        self.end()
    }

    fn end(&self) -> bool {
        let was_alive = self.alive.swap(false, Relaxed);
        self.standby.swap(false, Relaxed) || was_alive
    }

    /// The peer answers on it and says that it serves us on another path only: it is tried
    /// when no other is left. True if it did not stand by until now.
    pub fn stand_by(&self) -> bool {
        self.alive.store(false, Relaxed);
        self.misses.store(0, Relaxed);
        !self.standby.swap(true, Relaxed)
    }

    /// Says why it is not used, until it is.
    pub fn because(&self, why: &str) {
        let mut old = self.why.lock();
        if **old != *why {
            *old = Arc::from(why);
        }
    }

    /// Why it is not used; empty while it is, or where nobody said.
    pub fn why(&self) -> Arc<str> {
        self.why.lock().clone()
    }

    /// Whether the peer answers on it and serves us on another path only.
    pub fn is_standby(&self) -> bool {
        self.standby.load(Relaxed)
    }

    /// Whether the last probes or requests came through.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Relaxed)
    }

    /// Whether something came back within `window` before `now`.
    pub fn ok_within(&self, window: Duration, now: Moment) -> bool {
        let last = self.last_ok.load(Relaxed);
        last > 0 && now.since(Moment::from_millis(last)) <= window
    }

    /// The smoothed round trip, if known.
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_what_the_way_can_do_and_not_what_a_cold_tunnel_took_once() {
        let path = PathCell::default();
        let after = |ms| {
            path.ok(Moment::from_millis(5), Some(Duration::from_millis(ms)));
            path.rtt().unwrap().as_millis()
        };
        assert_eq!((after(800), after(8), after(8)), (800, 206, 57));
        assert_eq!(after(8), 20, "three quick answers, and it is quick");
        assert_eq!((after(1620), after(20)), (220, 70), "one slow answer says little");
    }

    #[test]
    fn a_path_dies_of_the_second_miss_and_one_answer_revives_it() {
        let path = PathCell::default();
        let now = Moment::from_millis(5);
        assert!(path.ok(now, Some(Duration::from_millis(8))));
        assert!(!path.ok(now, Some(Duration::from_millis(16))));
        assert_eq!(path.rtt(), Some(Duration::from_millis(9)));
        assert!(!path.miss(2) && path.is_alive());
        assert!(path.miss(2) && !path.is_alive());
        assert!(!path.miss(2), "it dies once");
        assert!(path.ok(now, None) && path.is_alive());
        assert!(!path.miss(2), "the count began anew");
        assert!(path.lost() && !path.lost());
    }

    #[test]
    fn a_path_stands_by_until_it_answers_or_dies_and_says_why() {
        let path = PathCell::default();
        let now = Moment::from_millis(5);
        path.ok(now, None);
        assert!(path.stand_by() && !path.stand_by());
        path.because("it answers over the tailnet");
        assert!(path.is_standby() && !path.is_alive());
        assert_eq!(&*path.why(), "it answers over the tailnet");
        assert!(path.ok(now, None), "it was not alive");
        assert!(!path.is_standby() && path.is_alive() && path.why().is_empty());
        path.stand_by();
        assert!(path.lost() && !path.is_standby() && !path.lost());
        path.stand_by();
        assert!(!path.miss(2) && path.is_standby());
        assert!(path.miss(2) && !path.is_standby());
    }

    /// An answer of 64 tokens at 40 a second to a prompt of 256 at 1000.
    fn reply() -> Reply {
        Reply {
            prompt_tokens: Some(256),
            output_tokens: Some(64),
            prompt: Some(Duration::from_millis(256)),
            decode: Some(Duration::from_millis(1600)),
            ..Reply::default()
        }
    }

    #[test]
    fn an_answer_teaches_its_model_and_lets_expect_others_of_the_engine() {
        let (now, scale) = (Moment::from_millis(1000), Arc::new(Scale::default()));
        let tiny = Cell { scale: scale.clone(), ..Cell::default() };
        let large = Cell { scale, ..Cell::default() };
        tiny.about(None, 1_000_000_000);
        large.about(None, 4_000_000_000);
        assert_eq!((tiny.speeds(), tiny.measured(now)), ((0.0, 0.0), None));
        tiny.learn(&reply(), ClientKind::Sdk, now);
        assert_eq!(tiny.speeds(), (1000.0, 40.0));
        assert_eq!(large.speeds(), (250.0, 10.0));
        assert_eq!((large.decode.get(), large.measured(now)), (0.0, None));
        let later = Moment::from_millis(4000);
        assert_eq!(tiny.measured(later), Some(Duration::from_secs(3)));
        assert!(tiny.lengths.of(ClientKind::Sdk) < 200.0);
    }

    #[test]
    fn two_slow_answers_show_at_once_and_a_quick_one_ends_it() {
        let (cell, now) = (Cell::default(), Moment::from_millis(1000));
        let slow = Reply { decode: Some(Duration::from_secs(8)), ..reply() };
        for _ in 0..4 {
            cell.learn(&reply(), ClientKind::Sdk, now);
        }
        cell.learn(&slow, ClientKind::Sdk, now);
        assert_eq!(cell.part(now), 1.0, "one may be chance");
        cell.learn(&slow, ClientKind::Sdk, now);
        let part = cell.part(now);
        assert!((0.2..0.3).contains(&part), "{part}");
        assert_eq!(cell.part(now + SLOW), 1.0, "it is not for ever");
        cell.learn(&reply(), ClientKind::Sdk, now);
        assert_eq!(cell.part(now), 1.0);
    }

    #[test]
    fn other_content_under_the_name_has_speeds_of_its_own() {
        let cell = Cell::default();
        let (one, two) = (Digest("1".into()), Digest("2".into()));
        cell.decode.set(9.0);
        cell.per_byte.set(0.5);
        cell.about(Some(&one), 1);
        assert_eq!(cell.decode.get(), 9.0, "nobody knew of what it was");
        cell.about(None, 1);
        cell.about(Some(&one), 1);
        assert_eq!(cell.decode.get(), 9.0);
        cell.about(Some(&two), 1);
        assert_eq!((cell.decode.get(), cell.digest()), (0.0, Some(two)));
        assert_eq!(cell.per_byte.get(), 0.0);
    }

    #[test]
    fn a_prompt_is_known_again_where_it_was_read() {
        let (cell, other, key) = (Cell::default(), Cell::default(), std::hash::RandomState::new());
        let prompt = Print::of([&[7_u8; 900][..]], 900, &key);
        assert_eq!((cell.read_before(prompt), cell.read_before(prompt)), (0.0, 1.0));
        assert_eq!(other.read_before(prompt), 0.0);
        assert_eq!(cell.keeps(&prompt, 1), 0.0, "it is not in memory");
        cell.set_loaded(1);
        cell.set_loaded(4096);
        assert_eq!((cell.keeps(&prompt, 1), cell.keeps(&Print::default(), 1)), (1.0, 0.0));
        for gone in [0, 8192] {
            cell.set_loaded(gone);
            cell.set_loaded(4096);
            assert_eq!(cell.keeps(&prompt, 1), 0.0, "it was let go meanwhile");
            cell.read_before(prompt);
        }
    }
}
