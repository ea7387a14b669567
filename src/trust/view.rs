//! What is trusted at one moment, as one picture that readers take whole.

use std::sync::Arc;

use super::book::{Book, HeldFilter, is_set_back};
use super::keys::Ring;
use super::pins::{Bounds, Own, Pin};
use crate::types::{ControlId, NodeId, PublicKey, Wall};

/// What is trusted now, as one picture.
#[derive(Clone, Default)]
pub struct View {
    /// The tailnet; `None` if none was ever seen.
    pub control: Option<ControlId>,
    /// Its coordinator's URL.
    pub control_url: String,
    /// This node in it.
    pub own: Option<Own>,
    /// How many people own nodes of it.
    pub people: Option<usize>,
    /// This node's keys there.
    pub ring: Option<Arc<Ring>>,
    /// The pins.
    pub pins: Vec<Pin>,
    /// The packet filter that was shown last.
    pub filter: Option<HeldFilter>,
    /// Whether ages may be believed: false after the clock was set back, until it is put right
    /// or a hello over the tailnet.
    pub clock_ok: bool,
    /// How long pins live.
    pub bounds: Bounds,
    /// The latest time of day that was seen.
    wall: Wall,
}

impl View {
    pub(super) fn of(open: Option<(&Book, &Arc<Ring>)>, bounds: &Bounds) -> View {
        let Some((book, ring)) = open else {
            return View { clock_ok: true, bounds: bounds.clone(), ..View::default() };
        };
        View {
            control: Some(book.control.clone()),
            control_url: book.control_url.clone(),
            own: Some(book.own.clone()),
            people: book.people,
            ring: Some(Arc::clone(ring)),
            pins: book.pins.clone(),
            filter: book.filter.clone(),
            clock_ok: book.clock_ok,
            bounds: book.bounds.clone(),
            wall: book.wall,
        }
    }

    /// The pin of a node.
    pub fn pin(&self, node: &NodeId) -> Option<&Pin> {
        self.pins.iter().find(|p| p.node == *node)
    }

    /// The pin that has this key.
    pub fn by_key(&self, key: &PublicKey) -> Option<&Pin> {
        self.pins.iter().find(|p| p.key == *key)
    }

    /// The mesh port of a pin's node. Of a key that was added by hand nobody said one: it is
    /// the one everybody has.
    pub fn port(&self, pin: &Pin) -> u16 {
        let usual = || self.bounds.ports.first().copied().unwrap_or_default();
        if pin.port == 0 { usual() } else { pin.port }
    }

    /// The times of day in it that go on by themselves.
    pub(super) fn marks(&self) -> (Wall, Wall) {
        (self.wall, self.filter.as_ref().map_or(Wall(0), |f| f.heard))
    }

    /// Whether a clock that says `now` was set back since this picture was made.
    pub(super) fn is_set_back(&self, now: Wall) -> bool {
        is_set_back(now, self.wall)
    }
}
