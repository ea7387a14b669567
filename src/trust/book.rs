//! Everything that is remembered of one tailnet: its pins, its last packet filter, this node's
//! own place in it, and how late it was when last looked.
//!
//! Plain values and the clock's standing; `hello` and `netmap` change them, `handle` keeps them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::netmap::is_same_machine;
use super::pins::{Bounds, Own, Pin, PinState};
use crate::api::hello::Departed;
use crate::types::{ControlId, NodeId, PublicKey, Wall};

/// How far a clock may run backwards before ages mean nothing any more.
const SET_BACK: Duration = Duration::from_secs(600);

/// After how much time it is news how late it is.
const NEWS: Duration = Duration::from_secs(300);
/// After how much time it is news on the disk that a pin is younger.
const YOUNGER: Duration = Duration::from_secs(3600);
/// How old a node's contact may be before it is noted again.
const REACHED_AGAIN: Duration = Duration::from_secs(60);

/// A packet filter, and how old it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldFilter {
    /// The filter.
    pub filter: Filter,
    /// When the daemon last showed it.
    pub heard: Wall,
    /// When it last became another.
    pub changed: Wall,
}

/// What is remembered of one tailnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Book {
    pub(super) control: ControlId,
    pub(super) control_url: String,
    pub(super) own: Own,
    pub(super) people: Option<usize>,
    pub(super) pins: Vec<Pin>,
    pub(super) removed: Vec<Departed>,
    pub(super) filter: Option<HeldFilter>,
    /// The latest time of day that was seen.
    pub(super) wall: Wall,
    /// Whether ages may be believed: false after the clock was set back.
    pub(super) clock_ok: bool,
    /// What the clock said last while it was set back.
    #[serde(default)]
    pub(super) back: Option<Wall>,
    #[serde(skip)]
    pub(super) bounds: Bounds,
    /// Whether the coordinator was there when the list was last read.
    #[serde(skip)]
    pub(super) online: bool,
    /// When the list was last read with the coordinator there.
    #[serde(skip)]
    pub(super) looked: Option<Wall>,
}

impl Book {
    pub(super) fn new(control: ControlId, own: Own, bounds: Bounds, now: Wall) -> Book {
        Book {
            control,
            control_url: String::new(),
            own,
            people: None,
            pins: Vec::new(),
            removed: Vec::new(),
            filter: None,
            wall: now,
            clock_ok: true,
            back: None,
            bounds,
            online: false,
            looked: None,
        }
    }

    /// Whether what is remembered was learned as another node than `own`: a copied disk, a
    /// restored backup, a machine that joined anew.
    pub(super) fn is_of_another(&self, own: &Own) -> bool {
        !is_same_machine(&self.own, own)
    }

    /// The coordinator names this node as `own` in it.
    pub(super) fn enter(&mut self, own: &Own, people: Option<usize>, url: &str, now: Wall) {
        self.heed(now);
        self.own = own.clone();
        self.people = people.or(self.people);
        url.clone_into(&mut self.control_url);
    }

    /// Whether a new key may be made: who is to be told of it can be, and its age means
    /// something.
    pub(super) fn may_rotate(&self) -> bool {
        self.online && self.clock_ok
    }

    /// Takes note of the time.
    ///
    /// A device without a clock of its own begins in the past until it is told the time. What
    /// jumps from there to where time had got to was put right. What only goes on until there
    /// was wrong all the way, and is as much behind as before.
    pub(super) fn heed(&mut self, now: Wall) {
        if is_set_back(now, self.wall) {
            self.clock_ok = false;
            self.back = Some(now);
        } else {
            if let Some(back) = self.back.take() {
                self.clock_ok |= is_set_back(back, now);
            }
            self.wall = self.wall.max(now);
        }
    }

    /// A hello over the tailnet, with the coordinator there: the time is believed again. What
    /// was vouched for at a time that has not come yet has no age, so it has to be vouched for
    /// again.
    pub(super) fn believe(&mut self, now: Wall) {
        if self.clock_ok {
            return;
        }
        self.clock_ok = true;
        self.back = None;
        self.wall = now;
        for pin in &mut self.pins {
            if is_set_back(now, pin.verified) {
                pin.verified = Wall(1);
            }
            pin.reached = pin.reached.filter(|at| !is_set_back(now, *at));
        }
    }

    /// Takes in the packet filter as the daemon shows it.
    pub(super) fn heard_filter(&mut self, filter: Filter, now: Wall) {
        let before = self.filter.take();
        let changed = before.filter(|b| b.filter == filter).map_or(now, |b| b.changed);
        self.filter = Some(HeldFilter { filter, heard: now, changed });
    }

    /// The node reached this one over the tailnet.
    pub(super) fn reached(&mut self, node: &NodeId, now: Wall) {
        let since = self.filter.as_ref().map_or(Wall(0), |f| f.changed);
        if self.online
            && let Some(pin) = self.pins.iter_mut().find(|p| p.node == *node)
            && pin.reached.is_none_or(|at| at <= since || now.since(at) >= REACHED_AGAIN)
        {
            pin.reached = Some(now);
        }
    }

    /// Makes the marks of time in this older book those of `later`, as long as they are not far
    /// from those that were `shown` last: that time goes on is no news.
    pub(super) fn let_time_pass(&mut self, later: &Book, shown: (Wall, Wall)) {
        self.looked = later.looked;
        self.back = later.back;
        self.online = later.online;
        if later.wall.since(shown.0) < NEWS {
            self.wall = later.wall;
        }
        if let (Some(a), Some(b)) = (&mut self.filter, &later.filter)
            && b.heard.since(shown.1) < NEWS
        {
            a.heard = b.heard;
        }
    }

    /// Whether `written` is as good after a restart: it differs in nothing but times of day
    /// that went on for a while, by which a pin ends at most that much earlier.
    pub(super) fn is_kept_by(&self, written: &Book) -> bool {
        let mut kept = written.clone();
        let shown = (kept.wall, kept.filter.as_ref().map_or(Wall(0), |f| f.heard));
        kept.let_time_pass(self, shown);
        kept.bounds = self.bounds.clone();
        let asked = self.filter.as_ref().map_or(Wall(0), |f| f.changed);
        let on = |from: Wall, to: Wall| from <= to && to.since(from) < YOUNGER;
        for (old, new) in kept.pins.iter_mut().zip(&self.pins) {
            if on(old.verified, new.verified) {
                old.verified = new.verified;
            }
            // Before or after the policy changed makes all the difference.
            if let (Some(from), Some(to)) = (old.reached, new.reached)
                && on(from, to)
                && (from > asked) == (to > asked)
            {
                old.reached = new.reached;
            }
        }
        kept == *self
    }

    /// Whether a pin of this book is gone or suspended in the `later` one.
    pub(super) fn loses(&self, later: &Book) -> bool {
        let used = |pin: &Pin| !matches!(pin.state, PinState::Suspended { .. });
        let kept: BTreeMap<&NodeId, bool> =
            later.pins.iter().map(|pin| (&pin.node, used(pin))).collect();
        self.pins.iter().any(|pin| kept.get(&pin.node).is_none_or(|now| used(pin) && !now))
    }

    /// The contact longest ago among the pins still in use: no pinned node knows this node by
    /// a key that was replaced before.
    pub(super) fn oldest_contact(&self, now: Wall) -> Wall {
        let live = self.pins.iter().filter(|p| p.ends(&self.bounds) > now);
        live.map(|p| if p.by_hand.is_some() { p.learned } else { p.verified }).min().unwrap_or(now)
    }

    pub(super) fn by_key(&self, key: &PublicKey) -> Option<&Pin> {
        self.pins.iter().find(|p| p.key == *key)
    }
}

/// Whether a clock that says `now` was set back since it said `then`.
pub(super) fn is_set_back(now: Wall, then: Wall) -> bool {
    now + SET_BACK < then
}
