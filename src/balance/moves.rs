//! When an attempt that waits is better made elsewhere.
//!
//! In: seconds that the caller of [`score`](super::score) and the reports know. Out: whether to
//! leave, how long a wait is worth, when to look again. It never remembers anything: what was
//! moved and refused already is handed in as [`Tries`].
//!
//! A move is a late refusal, so a request is never at two nodes: the origin asks the node where it
//! waits to let it go, and only when that attempt has ended does it try the next. What has sent
//! its first byte is never moved.
//!
//! Constants and their reasons: the simulation behind `ARCHITECTURE.md`'s section on choice.

use std::time::Duration;

use rand::Rng;

/// Moving is for a clear gain only: what is left here is this much more than there, …
const CLEARLY: f64 = 1.25;
/// … and these seconds.
const CLEARLY_SECONDS: f64 = 0.5;
/// How often a request is moved: a third time is rare, and a fourth would be a dance.
const MOST_MOVES: u32 = 3;
/// How often a request is refused for its wait before it takes whatever it gets.
const MOST_REFUSALS: u32 = 2;
/// A wait this much above what was predicted is worth asking elsewhere for, …
const BUDGET: f64 = 1.3;
/// … and these seconds: a prediction of nothing is no reason to refuse.
const BUDGET_SECONDS: f64 = 1.0;
/// A bare peer says nothing of its queue. Silence of this many times the predicted time to the
/// first token, …
const SILENT: f64 = 2.0;
/// … and these seconds, means that somebody else's requests are before ours.
const SILENT_SECONDS: f64 = 2.0;
/// While our own load may be going on there, as leaving would abort it. What takes longer than
/// this many times its prediction does not load: it stands in Ollama's line of loads behind a
/// model that others keep busy.
const LOADING: f64 = 4.0;
/// How often a request leaves bare peers for their silence: each time is a guess.
const MOST_LEAVES: u32 = 2;
/// A wait at a bare peer of which less than these seconds is left, as it was predicted, may be
/// over already: leaving would throw away what was read of the prompt.
const SURELY_WAITS: f64 = 0.5;
/// Between two looks, on average; below the usual time of service of five to ten seconds.
const LOOK: Duration = Duration::from_secs(1);
/// No wait is worth more than this, and a duration can hold it.
const MOST: f64 = 7.0 * 24.0 * 3600.0;

/// What has become of a request so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// Attempts that were moved.
    pub moves: u32,
    /// Attempts that were refused because they would have waited too long.
    pub refusals: u32,
}

/// A request that waits at a node which says how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Waiting {
    /// Seconds it will still wait there, a load included.
    pub left: f64,
    /// Seconds its prompt and answer will take there.
    pub work: f64,
}

/// A request at a peer that says nothing of its queue, before its first byte.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Silent {
    /// Seconds since it was sent.
    pub elapsed: f64,
    /// Seconds after which its first token was predicted when it was sent, a load included.
    pub first_token: f64,
    /// Of which so many were to be waited.
    pub wait: f64,
    /// Seconds its prompt and answer will take there.
    pub work: f64,
    /// Whether our own request is probably being loaded for there: leaving would abort that load.
    pub loads: bool,
}

/// The longest wait that a request is sent to a node with, whose score was `score` seconds.
/// `None`: it takes what it gets.
pub fn wait_budget(score: f64, tries: Tries) -> Option<Duration> {
    (tries.refusals < MOST_REFUSALS).then(|| {
        let most = if score.is_nan() { MOST } else { (score * BUDGET + BUDGET_SECONDS).min(MOST) };
        Duration::from_secs_f64(most.max(BUDGET_SECONDS))
    })
}

/// Whether to move a waiting request to the best other node, which has a score of `there` seconds.
pub fn is_worth_moving(here: Waiting, there: f64, tries: Tries) -> bool {
    tries.moves < MOST_MOVES && here.left + here.work > CLEARLY * there + CLEARLY_SECONDS
}

/// Whether to leave a silent bare peer for the best other node, which has a score of `there`
/// seconds: as one leaves a queue while it surely waits in one, and when it is silent for too long.
pub fn is_worth_leaving(here: Silent, there: f64, tries: Tries) -> bool {
    let waiting = Waiting { left: here.wait - here.elapsed, work: here.work };
    if !here.loads && waiting.left > SURELY_WAITS && is_worth_moving(waiting, there, tries) {
        return true;
    }
    let patience = if here.loads { LOADING } else { SILENT };
    tries.moves < MOST_LEAVES
        && here.elapsed > patience * here.first_token + SILENT_SECONDS
        && there < here.elapsed
}

/// How long until a waiting request is looked at again: never all at the same moment.
pub fn next_look(rng: &mut (impl Rng + ?Sized)) -> Duration {
    LOOK.mul_f64(rng.random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn tries(moves: u32, refusals: u32) -> Tries {
        Tries { moves, refusals }
    }

    #[test]
    fn a_request_moves_for_a_clear_gain_and_at_most_three_times() {
        let here = Waiting { left: 6.0, work: 5.0 };
        for (there, moves, expect) in [
            (8.3, 0, true),
            (8.5, 0, false),
            (8.3, 2, true),
            (8.3, 3, false),
            (0.0, 3, false),
            (f64::NAN, 0, false),
            (f64::INFINITY, 0, false),
        ] {
            assert_eq!(is_worth_moving(here, there, tries(moves, 9)), expect, "{there} {moves}");
        }
        // Short requests need a gain that pays for the way.
        assert!(!is_worth_moving(Waiting { left: 0.4, work: 0.1 }, 0.0, tries(0, 0)));
    }

    #[test]
    fn a_silent_bare_peer_is_left_late_rarely_and_not_while_it_may_load_for_us() {
        let here = Silent { elapsed: 9.0, first_token: 3.0, wait: 2.0, work: 8.0, loads: false };
        let leaves = |here, there, moves| is_worth_leaving(here, there, tries(moves, 0));
        assert!(leaves(here, 8.0, 1));
        assert!(!leaves(here, 9.5, 0));
        assert!(!leaves(here, 8.0, 2));
        assert!(!leaves(Silent { loads: true, ..here }, 8.0, 0));
        assert!(leaves(Silent { loads: true, elapsed: 14.1, ..here }, 8.0, 0));
        assert!(!leaves(Silent { elapsed: 7.9, ..here }, 1.0, 0));
        assert!(!leaves(here, f64::NAN, 0));
    }

    #[test]
    fn who_surely_waits_at_a_silent_peer_leaves_it_as_he_leaves_a_queue() {
        let here = Silent { elapsed: 3.0, first_token: 13.0, wait: 12.0, work: 5.0, loads: false };
        let leaves = |here, there, moves| is_worth_leaving(here, there, tries(moves, 0));
        // Nine seconds of waiting and five of work are left.
        assert!(leaves(here, 10.7, 2) && !leaves(here, 10.9, 0));
        assert!(!leaves(here, 1.0, 3), "at most three times");
        assert!(!leaves(Silent { loads: true, ..here }, 1.0, 0), "it would abort the load");
        assert!(leaves(Silent { elapsed: 11.4, ..here }, 1.0, 0));
        assert!(!leaves(Silent { elapsed: 11.6, ..here }, 1.0, 0), "it may have begun");
        assert!(!leaves(Silent { wait: f64::NAN, ..here }, 1.0, 0));
    }

    #[test]
    fn a_wait_has_a_budget_until_it_was_refused_twice() {
        let seconds = |score, refusals| {
            wait_budget(score, tries(9, refusals)).map(|budget| budget.as_secs_f64())
        };
        assert_eq!(seconds(10.0, 0), Some(14.0));
        assert_eq!(seconds(0.0, 1), Some(1.0));
        assert_eq!(seconds(10.0, 2), None);
        assert_eq!(seconds(-3.0, 0), Some(1.0));
        assert_eq!(seconds(f64::INFINITY, 0), Some(MOST));
        assert_eq!(seconds(f64::NAN, 0), Some(MOST));
    }

    #[test]
    fn looks_are_about_a_second_apart_and_never_in_step() {
        let mut rng = SmallRng::seed_from_u64(1);
        let looks: Vec<Duration> = (0..100).map(|_| next_look(&mut rng)).collect();
        assert!(looks.iter().all(|l| l.as_millis() >= 500 && l.as_millis() < 1500));
        assert!(looks.windows(2).all(|w| w[0] != w[1]));
    }
}
