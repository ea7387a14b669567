//! Whether an answer comes much more slowly than its node is known to write: it got hot, or
//! somebody plays on it.
//!
//! In: how many pieces of a stream have come by when. Out, every [`WINDOW`]: as usual, or what
//! part of the usual speed is left. The speeds that are learned say it only when answers end.

use std::time::Duration;

use super::choose::SHARING;
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
    /// A stream of a model that writes `decode` tokens a second by itself, among up to `slots` at
    /// once. `None`: nobody knows.
    pub fn new(decode: f64, slots: u32) -> Option<Pace> {
        let usual = decode * f64::from(slots.max(1)).powf(-SHARING);
        (usual.is_finite() && usual > 0.0).then_some(Pace { usual, since: None })
    }

    /// So many pieces have come by now; for `held` of the time the client took none.
    pub fn look(&mut self, pieces: u64, held: Duration, now: Moment) -> Option<Seen> {
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
        let look = |decode, slots, looks: &[(u64, u64)], held| {
            let mut pace = Pace::new(decode, slots).unwrap();
            assert_eq!(pace.look(1, Duration::ZERO, at(0)), None);
            let seen = looks.iter().map(|(pieces, millis)| {
                pace.look(*pieces, Duration::from_millis(held), at(*millis))
            });
            seen.collect::<Vec<_>>()
        };
        let slow = |part| Some(Seen::Slow(part));
        assert_eq!(look(40.0, 1, &[(9, 4999), (51, 5000)], 0), [None, Some(Seen::Usual)]);
        assert_eq!(look(40.0, 1, &[(21, 5000), (221, 10_000)], 0), [slow(0.1), Some(Seen::Usual)]);
        assert_eq!(look(40.0, 1, &[(1, 7000)], 0), [slow(LEAST)], "silence is slow, too");
        assert_eq!(look(40.0, 1, &[(21, 5000)], 2000), [None], "the client took its time");
        assert_eq!(look(40.0, 16, &[(31, 5000)], 0), [Some(Seen::Usual)], "many share it");
        assert!(Pace::new(0.0, 1).is_none() && Pace::new(f64::NAN, 1).is_none());
    }
}
