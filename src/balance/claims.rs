//! What another node's word is worth.
//!
//! In: what a node claims of itself, and what was measured of it here. Out: the number that
//! counts. A claim is where one begins; after [`MEASURED`] answers what was measured rules.
//! Whoever comes much later than he said, again and again, is believed no wait shorter than
//! the one that is usual with him. And nobody gets more than [`UNMEASURED`] requests at a time
//! before he has shown what he can do. Pure: plain numbers, the time passed in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::Moment;

/// After so many answers what was measured rules.
pub const MEASURED: u32 = 2;
/// Most requests at a time at a node of which less is known.
pub const UNMEASURED: u32 = 2;
/// A claimed speed counts at most this many times the measured one.
const TRUST: f64 = 1.5;
/// That much later than was said is late.
const LATE: f64 = 3.0;
/// What is later by less than this many seconds is not: waits as short are noise.
const GRACE: f64 = 0.5;
/// How many of the last [`KEPT`] may not be late.
const TOO_MANY: usize = 3;
/// Answers that are remembered.
const KEPT: usize = 10;
/// Longest wait that is taken over from an earlier run, in seconds.
const MOST: f64 = 24.0 * 3600.0;
/// How long the usual wait is the least that is believed.
const FLOOR: Duration = Duration::from_secs(600);

/// The speed that counts: `measured` in so many answers, and what its node claims. 0 = neither
/// is known.
pub fn speed(measured: f64, answers: u32, claim: f64) -> f64 {
    let sane = |speed: f64| if speed.is_finite() && speed > 0.0 { speed } else { 0.0 };
    let (measured, claim) = (sane(measured), sane(claim));
    match (measured > 0.0, claim > 0.0) {
        (true, _) if answers >= MEASURED => measured,
        (true, true) => claim.min(TRUST * measured),
        (true, false) => measured,
        (false, _) => claim,
    }
}

/// Whether a node has as many requests as it may while so little is known of it.
pub fn is_held(answered: u32, inflight: u32) -> bool {
    answered < MEASURED && inflight >= UNMEASURED
}

/// Answers of an earlier run that are older than this say nothing of today.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// What is kept of [`Punctuality`] from one run to the next.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The last answers, oldest first: seconds to the first byte, and whether that was late.
    pub last: Vec<(f64, bool)>,
    /// The least wait that is believed.
    pub floor: f64,
    /// For how long, in seconds.
    pub left: f64,
}

/// How well one offer's node keeps what it says.
#[derive(Debug, Clone, Default)]
pub struct Punctuality {
    /// The last answers, oldest first: seconds to the first byte, and whether that was late.
    last: Vec<(f64, bool)>,
    /// The least wait that is believed, until when.
    floor: Option<(f64, Moment)>,
}

impl Punctuality {
    /// An answer began after `took` seconds, of which `said` had been announced.
    pub fn came(&mut self, said: f64, took: f64, now: Moment) {
        if !said.is_finite() || !took.is_finite() {
            return;
        }
        if self.last.len() >= KEPT {
            self.last.remove(0);
        }
        let late = took > LATE * said.max(0.0) && took > said + GRACE;
        self.last.push((took, late));
        if late && self.last.iter().filter(|(_, late)| *late).count() >= TOO_MANY {
            self.floor = Some((self.median(), now + FLOOR));
        }
    }

    /// The least wait that is believed now, in seconds; 0 while it keeps what it says.
    pub fn floor(&self, now: Moment) -> f64 {
        self.floor.filter(|(_, until)| now < *until).map_or(0.0, |(floor, _)| floor)
    }

    /// What is worth keeping of it; `None` = nothing is known.
    pub fn kept(&self, now: Moment) -> Option<Kept> {
        let (floor, left) = match self.floor.filter(|(_, until)| now < *until) {
            Some((floor, until)) => (floor, until.since(now).as_secs_f64()),
            None => (0.0, 0.0),
        };
        (!self.last.is_empty()).then(|| Kept { last: self.last.clone(), floor, left })
    }

    /// Takes over what an earlier run kept that long before the start of this one, where this
    /// one has seen nothing.
    pub fn recall(&mut self, kept: &Kept, age: Duration) {
        if !self.last.is_empty() || age > OLD {
            return;
        }
        let sane = |seconds: f64| seconds.is_finite() && (0.0..=MOST).contains(&seconds);
        let last = kept.last.iter().filter(|(took, _)| sane(*took)).take(KEPT);
        self.last = last.copied().collect();
        let left = kept.left.min(FLOOR.as_secs_f64()) - age.as_secs_f64();
        if left > 0.0 && sane(kept.floor) && kept.floor > 0.0 {
            self.floor = Some((kept.floor, Moment::new(Duration::from_secs_f64(left))));
        }
    }

    fn median(&self) -> f64 {
        let mut took: Vec<f64> = self.last.iter().map(|(took, _)| *took).collect();
        took.sort_by(f64::total_cmp);
        took.get(took.len() / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Ask, Candidate, choose};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn at(secs: u64) -> Moment {
        Moment::new(Duration::from_secs(secs))
    }

    #[test]
    fn a_claim_is_where_one_begins_and_what_was_measured_rules() {
        #[track_caller]
        fn check(measured: f64, answers: u32, claim: f64, want: f64) {
            assert_eq!(speed(measured, answers, claim), want);
        }
        check(0.0, 0, 0.0, 0.0);
        check(0.0, 0, 1e4, 1e4);
        check(20.0, 1, 1e4, 30.0);
        check(20.0, 1, 25.0, 25.0);
        check(20.0, 1, 0.0, 20.0);
        check(20.0, 2, 1e4, 20.0);
        check(20.0, 9, 5.0, 20.0);
        check(0.0, 9, 50.0, 50.0);
        check(f64::NAN, 9, f64::INFINITY, 0.0);
    }

    #[test]
    fn who_is_late_three_times_of_ten_is_believed_no_less_than_usual_for_ten_minutes() {
        let mut kept = Punctuality::default();
        for n in 0..7 {
            kept.came(1.0, 2.9, at(n));
        }
        kept.came(0.0, 9.0, at(7));
        kept.came(0.0, 9.0, at(8));
        assert_eq!(kept.floor(at(8)), 0.0, "twice is chance");
        kept.came(0.0, 9.0, at(9));
        assert_eq!(kept.floor(at(9)), 2.9, "the median of all ten");
        assert_eq!(kept.floor(at(608)), 2.9);
        assert_eq!(kept.floor(at(609)), 0.0);
        for n in 0..10 {
            kept.came(3.0, 3.0, at(700 + n));
        }
        kept.came(0.0, 9.0, at(720));
        assert_eq!(kept.floor(at(720)), 0.0, "what is long past counts no more");
    }

    #[test]
    fn a_restart_makes_nobody_punctual() {
        let mut late = Punctuality::default();
        assert_eq!(late.kept(at(0)), None);
        for n in 0..3 {
            late.came(0.0, 9.0, at(n));
        }
        let kept = late.kept(at(102)).unwrap();
        assert_eq!((kept.last.len(), kept.floor, kept.left), (3, 9.0, 500.0));
        let again = |kept: &Kept, age| {
            let mut again = Punctuality::default();
            again.recall(kept, Duration::from_secs(age));
            again
        };
        let young = again(&kept, 100);
        assert_eq!((young.floor(at(399)), young.floor(at(400))), (9.0, 0.0), "it runs on");
        // The floor is over, and it takes only one more to bring it back.
        let mut older = again(&kept, 3600);
        assert_eq!(older.floor(at(0)), 0.0);
        older.came(0.0, 9.0, at(1));
        assert_eq!(older.floor(at(1)), 9.0);
        assert_eq!(again(&kept, 2 * 24 * 3600).kept(at(0)), None, "that was another day");
        let mut seen = Punctuality::default();
        seen.came(1.0, 1.0, at(0));
        seen.recall(&kept, Duration::ZERO);
        assert_eq!(seen.kept(at(0)).unwrap().last, [(1.0, false)], "what was seen now counts");
        // No file makes a wait of it that is none, or one that lasts for ever.
        for floor in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let odd = Kept { last: vec![(floor, true); 90], floor, left: f64::INFINITY };
            assert_eq!(again(&odd, 0).kept(at(0)), None, "{floor}");
        }
        let long = again(&Kept { left: 1e300, ..kept }, 0);
        assert_eq!((long.floor(at(599)), long.floor(at(600))), (9.0, 0.0));
    }

    #[test]
    fn a_short_delay_is_no_lie() {
        let mut kept = Punctuality::default();
        for n in 0..10 {
            kept.came(0.0, 0.4, at(n));
        }
        assert_eq!(kept.floor(at(10)), 0.0);
    }

    #[test]
    fn who_is_not_known_gets_two_at_a_time() {
        for (answered, inflight, held) in
            [(0, 1, false), (0, 2, true), (1, 5, true), (1, 1, false), (2, 50, false)]
        {
            assert_eq!(is_held(answered, inflight), held, "{answered} {inflight}");
        }
    }

    /// A node with one slot, and what is known of it.
    #[derive(Default)]
    struct Node {
        lies: bool,
        /// Seconds a request takes.
        work: f64,
        free_at: f64,
        kept: Punctuality,
        answers: u32,
        measured: f64,
        /// When its requests end.
        there: Vec<f64>,
        got: usize,
    }

    impl Node {
        fn candidate(&self, index: usize, now: f64) -> Candidate {
            let busy = (self.free_at - now).max(0.0);
            let said = if self.lies { 0.0 } else { busy };
            let claim = if self.lies { 10_000.0 } else { 200.0 / self.work };
            let ours = self.there.iter().filter(|end| **end > now).count() as u32;
            let seen = if self.lies { 0 } else { ours };
            Candidate {
                index,
                alive: true,
                able: true,
                loaded_ctx: 4096,
                slots: 1,
                prefill: 1000.0,
                decode: speed(self.measured, self.answers, claim),
                wait: Some(said.max(self.kept.floor(moment(now)))),
                inflight: seen.min(1),
                queued: seen.saturating_sub(1),
                since: ours - seen,
                ..Candidate::default()
            }
        }
    }

    fn moment(seconds: f64) -> Moment {
        Moment::new(Duration::from_secs_f64(seconds))
    }

    /// The share of an hour's requests that each of four equal nodes gets, if the first lies.
    fn shares(lies: bool) -> [f64; 4] {
        let mut rng = SmallRng::seed_from_u64(21);
        let mut nodes: [Node; 4] =
            std::array::from_fn(|n| Node { lies: lies && n == 0, work: 8.0, ..Node::default() });
        let (mut now, mut all) = (0.0, 0);
        while now < 3600.0 {
            now += -2.8 * (1.0 - rand::Rng::random::<f64>(&mut rng)).ln();
            let held = |n: &Node| {
                let ours = n.there.iter().filter(|end| **end > now).count() as u32;
                is_held(n.answers, ours)
            };
            let candidates: Vec<Candidate> = nodes
                .iter()
                .enumerate()
                .filter(|(_, n)| !held(n))
                .map(|(at, n)| n.candidate(at, now))
                .collect();
            let Some(at) = choose(&candidates, &Ask::default(), moment(now), &mut rng).index()
            else {
                continue;
            };
            let said = candidates.iter().find(|c| c.index == at).and_then(|c| c.wait);
            let node = &mut nodes[at];
            let wait = (node.free_at - now).max(0.0);
            node.kept.came(said.unwrap_or_default() + 0.1, wait + 0.1, moment(now + wait));
            node.free_at = now + wait + node.work;
            node.there.push(node.free_at);
            (node.answers, node.measured) = (node.answers + 1, 200.0 / node.work);
            (node.got, all) = (node.got + 1, all + 1);
        }
        nodes.map(|n| n.got as f64 / f64::from(all))
    }

    #[test]
    fn a_liar_gets_no_more_than_its_share() {
        let (honest, liar) = (shares(false)[0], shares(true)[0]);
        assert!((0.2..0.3).contains(&honest), "{honest}");
        assert!(liar <= honest + 0.05, "{liar} with lies, {honest} without");
    }

    proptest! {
        #[test]
        fn no_numbers_make_a_floor_that_is_none(
            all in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..40),
        ) {
            let mut kept = Punctuality::default();
            for (said, took) in all {
                kept.came(said, took, at(1));
                let floor = kept.floor(at(1));
                prop_assert!(floor.is_finite());
            }
        }

        #[test]
        fn no_claim_counts_for_more_than_half_again_what_was_measured(
            measured in 0.001..1e6f64, answers in 1..9u32, claim in any::<f64>(),
        ) {
            prop_assert!(speed(measured, answers, claim) <= TRUST * measured);
        }
    }
}
