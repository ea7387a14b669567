//! For whom this node works at the moment.
//!
//! A plain value: whoever watches batteries, links and the clock sets it with
//! [`Gates::share_with`](super::Gates::share_with). Reports tell it to peers, and each gate
//! keeps to it: who is not let in any more is sent away, also from the queue; what runs, ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{Reason, Refusal};
use crate::api::report::Row;
use crate::balance::queue::Standing;
use crate::config::ShareLoads;
use crate::telemetry::{Clock, wall};
use crate::types::{Accepting, Moment, Side, Wall};

/// For whom this node works, and how much it may say about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// For whom.
    pub accepting: Accepting,
    /// Why not for all; empty if it does.
    pub why: Arc<str>,
    /// Until when that holds, as far as is known.
    pub until: Option<Wall>,
    /// Whether it is a person's order to take nothing new, until taken back.
    pub draining: bool,
    /// Whether every word costs (a battery, a metered link): then reports are rare.
    pub sparing: bool,
    /// What would have mattered, and nobody says.
    pub unknown: Vec<&'static str>,
    /// Which loads are made for guests.
    pub loads: ShareLoads,
    /// Most requests of guests that run at once, at each engine.
    pub inflight: Option<u32>,
}

impl Share {
    /// What a row says of who is let in, as it is told to others.
    pub fn over(&self, row: Row) -> Row {
        match self.accepting {
            Accepting::All => row,
            accepting => Row { accepting, why: self.why.to_string(), ..row },
        }
    }

    /// What holds guests back at one model, while they are let in.
    pub(super) fn at(&self, standing: &Standing) -> (Accepting, &'static str) {
        let there = standing.loaded || standing.loading;
        match self.loads {
            ShareLoads::None if !there => (Accepting::Mine, "share.loads is none"),
            ShareLoads::Fit if !standing.spares => (Accepting::Mine, "no room beside its owner's"),
            _ => (Accepting::All, ""),
        }
    }

    /// Why somebody of this side is not let in now, if he is not.
    pub(super) fn refuses(&self, side: Side) -> Option<Refusal> {
        if self.accepting.admits(side) {
            return None;
        }
        let why = if self.draining { Reason::Draining } else { Reason::Paused };
        let retry_after = self.until.map(|until| until.since(wall())).unwrap_or_default();
        Some(Refusal { why, retry_after })
    }
}

/// When programs of this node last used its engines.
#[derive(Debug, Default)]
pub(super) struct Used {
    now: AtomicU32,
    /// Milliseconds, and one: 0 = never.
    last: AtomicU64,
}

impl Used {
    /// One of them does, until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>, clock: Clock) -> Using {
        self.now.fetch_add(1, Relaxed);
        Using { used: self.clone(), clock }
    }

    /// For how long none has; `None` = none ever did.
    pub(super) fn since(&self, now: Moment) -> Option<Duration> {
        match (self.now.load(Relaxed), self.last.load(Relaxed)) {
            (0, 0) => None,
            (0, last) => Some(now.since(Moment::from_millis(last - 1))),
            _ => Some(Duration::ZERO),
        }
    }
}

/// A program of this node uses its engines.
#[derive(Debug)]
pub(super) struct Using {
    used: Arc<Used>,
    clock: Clock,
}

impl Drop for Using {
    fn drop(&mut self) {
        self.used.last.store(self.clock.now().millis() + 1, Relaxed);
        self.used.now.fetch_sub(1, Relaxed);
    }
}
