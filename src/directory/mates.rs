//! The models of one engine, as each of their cells sees the others.
//!
//! Read without a lock; changed when a model is seen there for the first time.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use super::cell::Cell;
use crate::balance::rates::{UNSAID_LOAD_RATE, load_time};
use crate::balance::unsaid::{self, Mate};
use crate::types::Moment;

/// The cells of one engine.
#[derive(Debug, Default)]
pub struct Mates(ArcSwap<Vec<Weak<Cell>>>);

impl Mates {
    /// Another model of the engine.
    pub(super) fn join(&self, cell: &Arc<Cell>) {
        self.0.rcu(|cells| {
            let living = cells.iter().filter(|cell| cell.strong_count() > 0).cloned();
            living.chain([Arc::downgrade(cell)]).collect::<Vec<_>>()
        });
    }

    /// Seconds until a load of `cell`'s model would begin, of which so many run side by side.
    pub(super) fn line(&self, cell: &Cell, slots: u32, now: Moment) -> f64 {
        let cells = self.0.load();
        let others = cells.iter().filter_map(Weak::upgrade);
        unsaid::line(others.filter(|other| !std::ptr::eq(&**other, cell)).map(|other| {
            let size = other.size.load(Relaxed) as f64;
            Mate {
                open: other.inflight.load(Relaxed).saturating_add(other.report.others()),
                left: other.report.left_of_all(now).as_secs_f64(),
                slots,
                loaded: other.is_loaded(),
                load: load_time(size, other.load_rate.get(), UNSAID_LOAD_RATE),
            }
        }))
    }
}
