//! When which node is asked again.
//!
//! Pure: the time is told to it. A node that is new, or at whose end or ours something
//! changed, is due at once; one that answered, after a while; one that did not, sooner and
//! then ever later.

use std::collections::HashMap;
use std::time::Duration;

use crate::types::{Moment, NodeId, Timing};

/// Who is due when.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<NodeId, Turn>);

#[derive(Debug, Default)]
struct Turn {
    /// When it is asked next; zero = at once.
    at: Moment,
    /// The wait that the last failure earned; zero after an answer.
    wait: Duration,
    /// What both ends were when it was last looked at.
    facts: Option<u64>,
    /// Whether its pin waited for an answer then.
    pending: bool,
    /// Whether it is being asked.
    busy: bool,
    /// What was last said about it.
    said: String,
}

impl Turns {
    /// Forgets all others.
    pub(super) fn keep(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.0.retain(|node, _| keep(node));
    }

    /// Everybody is due.
    pub(super) fn all(&mut self) {
        for turn in self.0.values_mut() {
            turn.at = Moment::ZERO;
            turn.wait = Duration::ZERO;
        }
    }

    /// This node is due.
    pub(super) fn now(&mut self, node: &NodeId) {
        if let Some(turn) = self.0.get_mut(node) {
            turn.at = Moment::ZERO;
        }
    }

    /// Whether a node is to be asked at `now`; true marks it as being asked. `facts` are what
    /// both ends are, `pending` whether its pin waits.
    pub(super) fn take(&mut self, node: &NodeId, facts: u64, pending: bool, now: Moment) -> bool {
        let turn = self.0.entry(node.clone()).or_default();
        let changed = turn.facts.replace(facts).is_some_and(|before| before != facts);
        let waits = pending && !std::mem::replace(&mut turn.pending, pending);
        if changed || waits {
            turn.at = Moment::ZERO;
            turn.wait = Duration::ZERO;
        }
        let due = !turn.busy && turn.at <= now;
        turn.busy |= due;
        due
    }

    /// It answered. `share` in 0..1 spreads the next turns.
    pub(super) fn answered(&mut self, node: &NodeId, now: Moment, share: f64, timing: &Timing) {
        if let Some(turn) = self.0.get_mut(node) {
            turn.busy = false;
            turn.wait = Duration::ZERO;
            turn.said.clear();
            turn.at = now + timing.hello.mul_f64(0.9 + 0.2 * share.clamp(0.0, 1.0));
        }
    }

    /// It did not. Says whether it failed for as long as a turn takes.
    pub(super) fn failed(&mut self, node: &NodeId, now: Moment, timing: &Timing) -> bool {
        let Some(turn) = self.0.get_mut(node) else { return true };
        turn.busy = false;
        turn.wait = (turn.wait * 2).clamp(timing.hello_retry, timing.hello);
        turn.at = now + turn.wait;
        turn.wait == timing.hello
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Moment> {
        self.0.values().filter(|turn| !turn.busy).map(|turn| turn.at).min()
    }

    /// Whether this was not yet said of that node since it last answered.
    pub(super) fn is_news(&mut self, node: &NodeId, text: &str) -> bool {
        let Some(turn) = self.0.get_mut(node) else { return false };
        let news = turn.said != text;
        if news {
            text.clone_into(&mut turn.said);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::new(Duration::from_secs(secs))
    }

    #[test]
    fn who_is_new_or_changed_is_asked_at_once_and_who_answered_after_a_while() {
        let (mut turns, timing) = (Turns::default(), Timing::default());
        let node = NodeId::Pin("a".into());
        assert!(turns.take(&node, 1, false, at(5)));
        assert!(!turns.take(&node, 1, false, at(6)), "it is being asked");
        turns.answered(&node, at(6), 0.5, &timing);
        assert_eq!(turns.next(), Some(at(606)));
        assert!(!turns.take(&node, 1, false, at(605)));
        assert!(turns.take(&node, 2, false, at(7)), "something changed");
        turns.answered(&node, at(7), 0.5, &timing);
        assert!(turns.take(&node, 2, true, at(8)), "its pin waits");
        turns.answered(&node, at(8), 0.5, &timing);
        assert!(!turns.take(&node, 2, true, at(9)), "it has waited before");
        assert!(turns.take(&node, 2, true, at(608)), "its turn has come");
    }

    #[test]
    fn who_does_not_answer_is_asked_ever_later_until_all_are_due() {
        let (mut turns, timing) = (Turns::default(), Timing::default());
        let node = NodeId::Pin("a".into());
        let mut now = at(0);
        for wait in [15, 30, 60, 120, 240, 480] {
            assert!(turns.take(&node, 1, false, now), "{wait}");
            assert!(!turns.failed(&node, now, &timing));
            now = now + Duration::from_secs(wait);
            assert_eq!(turns.next(), Some(now));
        }
        assert!(turns.take(&node, 1, false, now));
        assert!(turns.failed(&node, now, &timing), "long enough");
        turns.all();
        assert!(turns.take(&node, 1, false, now));
        assert!(!turns.failed(&node, now, &timing), "the waits begin anew");
    }

    #[test]
    fn the_same_is_said_once_until_it_answers() {
        let (mut turns, timing) = (Turns::default(), Timing::default());
        let node = NodeId::Pin("a".into());
        assert!(!turns.is_news(&node, "x"), "nobody asks for it any more");
        turns.take(&node, 1, false, at(0));
        assert!(turns.is_news(&node, "x") && !turns.is_news(&node, "x"));
        assert!(turns.is_news(&node, "y"));
        turns.answered(&node, at(0), 0.0, &timing);
        assert!(turns.is_news(&node, "y"));
    }
}
