//! Whether an answer comes much more slowly than its node is known to write: it got hot, or
//! somebody plays on it.
//!
//! In: how many pieces of a stream have come by when. Out, every [`WINDOW`]: as usual, or what
//! part of the usual speed is left. The speeds that are learned say it only when answers end.
//!
//! Nothing is said of a time in which somebody else ran beside it: while an engine reads a long
//! prompt, the answers it writes all but stand still, and it is none the slower for it.

use std::time::Duration;

use crate::types::Moment;

/// How long is looked at before anything is said.
const WINDOW: Duration = Duration::from_secs(5);
/// Less than the usual speed by so much is slow.
const SLOW: f64 = 4.0;
/// What is slow is never taken to be slower than that part: it would be no candidate.
const LEAST: f64 = 0.01;

/// One stream.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Pieces a second.
    usual: f64,
    /// The beginning of the window, the pieces by then, and how long the client had taken none.
    since: Option<(Moment, u64, Duration)>,
}

/// What a window shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen {
    /// Nothing is wrong.
    Usual,
    /// So much of the usual speed is left.
    Slow(f64),
}

impl Pace {
    /// A stream of a model that writes `usual` tokens a second by itself. `None`: nobody knows.
    pub fn new(usual: f64) -> Option<Pace> {
        (usual.is_finite() && usual > 0.0).then_some(Pace { usual, since: None })
    }

    /// So many pieces have come by now; for `held` of the time the client took none. `alone`: no
    /// other request runs there.
    pub fn look(&mut self, pieces: u64, held: Duration, alone: bool, now: Moment) -> Option<Seen> {
        if !alone {
            self.since = None;
            return None;
        }
        let (began, before, had) = *self.since.get_or_insert((now, pieces, held));
        let time = now.since(began);
        if time < WINDOW {
            return None;
        }
        self.since = Some((now, pieces, held));
        if held.saturating_sub(had) * 4 > time {
            // The client is the slow one.
            return None;
        }
        let part = pieces.saturating_sub(before) as f64 / time.as_secs_f64() / self.usual;
        Some(if part * SLOW < 1.0 { Seen::Slow(part.max(LEAST)) } else { Seen::Usual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_a_quarter_of_the_usual_speed_is_slow_after_five_seconds() {
        let at = Moment::from_millis;
        let look = |usual, looks: &[(u64, u64)], held| {
            let mut pace = Pace::new(usual).unwrap();
            assert_eq!(pace.look(1, Duration::ZERO, true, at(0)), None);
            let seen = looks.iter().map(|(pieces, millis)| {
                pace.look(*pieces, Duration::from_millis(held), true, at(*millis))
            });
            seen.collect::<Vec<_>>()
        };
        let slow = |part| Some(Seen::Slow(part));
        assert_eq!(look(40.0, &[(9, 4999), (51, 5000)], 0), [None, Some(Seen::Usual)]);
        assert_eq!(look(40.0, &[(21, 5000), (221, 10_000)], 0), [slow(0.1), Some(Seen::Usual)]);
        assert_eq!(look(40.0, &[(1, 7000)], 0), [slow(LEAST)], "silence is slow, too");
        assert_eq!(look(40.0, &[(21, 5000)], 2000), [None], "the client took its time");
        assert!(Pace::new(0.0).is_none() && Pace::new(f64::NAN).is_none());
    }

    #[test]
    fn beside_others_nothing_is_slow() {
        let mut pace = Pace::new(40.0).unwrap();
        let mut look = |pieces, alone, second: u64| {
            pace.look(pieces, Duration::ZERO, alone, Moment::from_millis(second * 1000))
        };
        assert_eq!((look(1, true, 0), look(2, false, 4), look(3, true, 6)), (None, None, None));
        assert_eq!(look(4, true, 10), None, "it is alone for four seconds");
        assert!(matches!(look(5, true, 11), Some(Seen::Slow(_))));
    }
}
