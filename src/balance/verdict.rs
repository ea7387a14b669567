//! What a choice thought of each candidate.
//!
//! In: what [`choose`](super::choose()) gets. Out: for each candidate its terms, and with which
//! chance it would have been taken. It decides nothing; it says of the choice what people ask.

use super::choose::{Ask, Candidate, Terms, near, order, score, standing, weight};
use crate::types::Moment;

/// One candidate, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Its [`Candidate::index`].
    pub index: usize,
    /// Its predicted time, taken apart.
    pub terms: Terms,
    /// Seconds less than there would be without the session that ran there before.
    pub saved: f64,
    /// Of 1: the chance that it is taken.
    pub chance: f64,
    /// Its place in the order in which candidates are thought of at all: only those of the
    /// least one have a chance.
    pub rank: u8,
}

/// Judges all candidates; the best one first.
pub fn verdicts(candidates: &[Candidate], ask: &Ask, now: Moment) -> Vec<Verdict> {
    let mut all: Vec<Judged> = candidates.iter().map(|c| judge(c, ask, now)).collect();
    let key = |j: &Judged| (j.verdict.rank, j.order);
    all.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal));
    let Some((rank, least)) = all.first().map(key) else { return Vec::new() };
    let is_near = |j: &Judged| !j.closed && j.verdict.rank == rank && j.order <= near(least);
    // One on this node wins outright among near-equals, the first of those in the list.
    let here = all.iter().filter(|j| j.is_local && is_near(j)).map(|j| j.verdict.index).min();
    let here = here.filter(|_| ask.prefer_local >= 1.0);
    let weight_of = |j: &Judged| weight(j.verdict.terms.total);
    let sum: f64 = all.iter().filter(|j| is_near(j)).map(weight_of).sum();
    for judged in &mut all {
        judged.verdict.chance = match here {
            Some(index) => f64::from(u8::from(index == judged.verdict.index)),
            None if is_near(judged) => weight_of(judged) / sum,
            None => 0.0,
        };
    }
    all.into_iter().map(|judged| judged.verdict).collect()
}

/// A verdict, and what else decides.
struct Judged {
    verdict: Verdict,
    /// What it is compared by with others of its rank.
    order: f64,
    is_local: bool,
    closed: bool,
}

fn judge(c: &Candidate, ask: &Ask, now: Moment) -> Judged {
    let terms = score(c, ask, now);
    let saved = match c.session || c.prefix > 0.0 {
        true => {
            let anew = Candidate { session: false, prefix: 0.0, ..*c };
            score(&anew, ask, now).total - terms.total
        }
        false => 0.0,
    };
    let rank = standing(c, ask, now).0;
    Judged {
        verdict: Verdict { index: c.index, terms, saved: saved.max(0.0), chance: 0.0, rank },
        order: order(c, terms.total, now),
        is_local: c.is_local,
        closed: c.closed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::choose;
    use super::super::choose::tests::good;
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn the_best_is_first_and_what_a_session_saves_is_said() {
        let ask = Ask { prompt_tokens: 5000, ..Ask::default() };
        let all = [
            Candidate { alive: false, decode: 1e4, ..good(0) },
            Candidate { rtt: 3.0, ..good(1) },
            Candidate { session: true, ..good(2) },
        ];
        let verdicts = verdicts(&all, &ask, Moment::ZERO);
        let order: Vec<usize> = verdicts.iter().map(|v| v.index).collect();
        assert_eq!(order, [2, 1, 0]);
        let chances: Vec<f64> = verdicts.iter().map(|v| v.chance).collect();
        assert_eq!(chances, [1.0, 0.0, 0.0]);
        assert!((verdicts[0].saved - 4.5).abs() < 1e-9 && verdicts[1].saved == 0.0, "{verdicts:?}");
        assert_eq!(verdicts[2].terms.behind, "dead");
    }

    #[test]
    fn nobody_is_judged_of_nobody() {
        assert_eq!(verdicts(&[], &Ask::default(), Moment::ZERO), []);
    }

    prop_compose! {
        fn any_candidate()(flags in any::<[bool; 4]>(), load in 0_u32..3, rtt in 0.0..0.4, decode in 40.0..60.0) -> Candidate {
            Candidate { is_local: flags[0], alive: flags[1], able: flags[2], session: flags[3], inflight: load, rtt, decode, ..good(0) }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// What is said of the draw is what the draw does.
        #[test]
        fn chances_are_those_of_the_choice(mut all in proptest::collection::vec(any_candidate(), 1..5), seed in any::<u64>()) {
            for (i, c) in all.iter_mut().enumerate() {
                c.index = i;
            }
            let ask = Ask { prompt_tokens: 500, ..Ask::default() };
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut got = vec![0_u32; all.len()];
            for _ in 0..2000 {
                let index = choose(&all, &ask, Moment::ZERO, &mut rng).index();
                got[index.unwrap()] += 1;
            }
            for verdict in verdicts(&all, &ask, Moment::ZERO) {
                let share = f64::from(got[verdict.index]) / 2000.0;
                prop_assert!((share - verdict.chance).abs() < 0.06, "{verdict:?} {share}");
            }
        }
    }
}
